// Pair encoding exactly as features/pairs.py: `[CLS] text [SEP] candidate [SEP]`.

import { WordPiece, codePoints } from "./tokenizer.mjs";

const NUM_SPECIALS = 3;

/**
 * @typedef {Object} TextPieces A tokenized text with its mention.
 * @property {number[]} ids Word-piece ids, markers included.
 * @property {number} first Index of the mention's first piece.
 * @property {number} last Index of its last piece; less than `first` if it has none.
 * @property {?string} problem Why the mention cannot be encoded; null if it can:
 *   "outside", "no piece" or "too long".
 */

/**
 * @typedef {Object} Pair Ready for the model, not padded.
 * @property {number[]} inputIds
 * @property {number[]} segmentIds 0 for the text, 1 for the candidate.
 * @property {number} startPs Token index of the mention's first piece.
 * @property {number} endPs Token index of its last piece.
 * @property {number[]} window The text's pieces that were kept, [from, to).
 */

/**
 * An entity's text, segment B: "bank, depository: a financial institution that …".
 * @param {{name: string, aliases: string[], description: string}} entity
 * @param {string[]} fields Which of name, aliases and description, in this order.
 * @return {string}
 */
export function entityText(entity, fields) {
  let text = "";
  let followsDescription = false;
  for (const field of fields) {
    const value = entity[field] ?? "";
    const part = Array.isArray(value) ? value.join(", ") : value;
    if (!part) continue;
    const isDescription = field === "description";
    if (text) text += isDescription || followsDescription ? ": " : ", ";
    text += part;
    followsDescription = isDescription;
  }
  return text;
}

/** Encodes a mention's text with its candidates, windowed around the mention. */
export class PairEncoder {
  /**
   * @param {string[]} vocab Of `parseVocab`.
   * @param {Object} characters The table characters.json of the page.
   * @param {Object} features The config's `features` section: max_seq_length and
   *   mention_marker are read.
   */
  constructor(vocab, characters, features) {
    this.wordpiece = new WordPiece(vocab, characters);
    this.maxSeqLength = features.max_seq_length;
    // Pieces of text and candidate together, and those the text surely gets.
    this.room = features.max_seq_length - NUM_SPECIALS;
    this.textRoom = Math.ceil(this.room / 2);
    const ids = this.wordpiece.ids;
    this.cls = ids.get("[CLS]");
    this.sep = ids.get("[SEP]");
    this.marker = features.mention_marker ? ids.get(features.mention_marker) : null;
    this.margin = this.marker === null ? 0 : 1;
  }

  /** Pieces that a mention may have. */
  get maxMentionPieces() {
    return this.textRoom - 2 * this.margin;
  }

  /**
   * Tokenizes a text and finds its mention's pieces.
   * @param {string} text
   * @param {number} start Offset of the mention's first character, in code points.
   * @param {number} end Offset behind its last one, in code points.
   * @return {TextPieces}
   */
  encodeText(text, start, end) {
    const inside = start >= 0 && start < end && end <= codePoints(text).length;
    const { ids, starts, ends } = this.wordpiece.tokenize(text);
    if (!inside) return { ids, first: 0, last: -1, problem: "outside" };
    // Pieces are in the text's order, so counting them finds the span.
    let first = ends.filter((offset) => offset <= start).length;
    let last = starts.filter((offset) => offset < end).length - 1;
    const size = last - first + 1;
    if (size < 1) return { ids, first, last, problem: "no piece" };
    if (this.margin) {
      ids.splice(last + 1, 0, this.marker);
      ids.splice(first, 0, this.marker);
      first += 1;
      last += 1;
    }
    const problem = size > this.maxMentionPieces ? "too long" : null;
    return { ids, first, last, problem };
  }

  /**
   * Tokenizes a candidate's text.
   * @param {string} candidate
   * @return {number[]} Ids, cut to what a pair can hold of them at most.
   */
  encodeCandidate(candidate) {
    return this.wordpiece.tokenize(candidate).ids.slice(0, this.room);
  }

  /**
   * Makes a pair, cutting where needed.
   *
   * The text keeps half of the room (rounded up), or all that the candidate leaves
   * of it if that is more, as a window centred on the mention; the candidate is cut
   * at its end.
   * @param {TextPieces} text Without a problem.
   * @param {number[]} candidate Of `encodeCandidate`.
   * @return {Pair}
   */
  assemble(text, candidate) {
    const most = Math.max(this.room - candidate.length, this.textRoom);
    const keepText = Math.min(text.ids.length, most);
    const keepCandidate = Math.min(candidate.length, this.room - keepText);
    const markedSize = text.last - text.first + 1 + 2 * this.margin;
    const centred = text.first - this.margin - Math.floor((keepText - markedSize) / 2);
    const from = Math.min(Math.max(centred, 0), text.ids.length - keepText);
    const inputIds = [
      this.cls,
      ...text.ids.slice(from, from + keepText),
      this.sep,
      ...candidate.slice(0, keepCandidate),
      this.sep,
    ];
    return {
      inputIds,
      segmentIds: inputIds.map((_, position) => (position > keepText + 1 ? 1 : 0)),
      startPs: text.first + 1 - from,
      endPs: text.last + 1 - from,
      window: [from, from + keepText],
    };
  }
}
