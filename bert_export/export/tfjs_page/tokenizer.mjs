// WordPiece exactly as in training: the same ids and offsets as features/tokenizer.py.

const MAX_BYTES_PER_WORD = 100;
const HANGUL_FIRST = 0xac00;
const HANGUL_LAST = 0xd7a3;
const WORD = 0;
const WHITE_SPACE = 1;
const ALONE = 2;

/**
 * @typedef {Object} Pieces
 * @property {number[]} ids Word-piece ids.
 * @property {number[]} starts Offset of the first character each comes from, in code
 *   points.
 * @property {number[]} ends Offset behind the last one, in code points.
 */

/**
 * Reads BERT's vocab.txt.
 * @param {string} text A word piece a line; its id is the line's number from 0.
 * @return {string[]}
 */
export function parseVocab(text) {
  const vocab = text.split("\n").map((line) => line.replace(/\r$/, ""));
  while (vocab.length && !vocab.at(-1)) vocab.pop();
  return vocab;
}

/**
 * The text's characters (code points). Half a surrogate pair, which no UTF-8 text can
 * hold, becomes U+FFFD, as it does on its way to any server.
 * @param {string} text
 * @return {string[]}
 */
export function codePoints(text) {
  return Array.from(text, (character) => {
    const unit = character.charCodeAt(0);
    const alone = character.length === 1 && unit >= 0xd800 && unit <= 0xdfff;
    return alone ? "\ufffd" : character;
  });
}

/** Normalization, words, and the longest known piece first (WordPiece). */
export class WordPiece {
  /**
   * @param {string[]} vocab Of `parseVocab`.
   * @param {Object} characters The table characters.json of the page.
   */
  constructor(vocab, characters) {
    this.ids = new Map(vocab.map((piece, id) => [piece, id]));
    this.unknown = this.ids.get("[UNK]");
    this.longest = Math.max(...vocab.map((piece) => piece.length));
    this.hangul = characters.hangul;
    this.normalized = new Map(Object.entries(characters.replaced));
    forEach(characters.dropped, (point) => {
      this.normalized.set(String.fromCodePoint(point), "");
    });
    forEach(characters.space, (point) => {
      this.normalized.set(String.fromCodePoint(point), " ");
    });
    this.kinds = new Uint8Array(0x110000);
    forEach(characters.white_space, (point) => {
      this.kinds[point] = WHITE_SPACE;
    });
    forEach(characters.alone, (point) => {
      this.kinds[point] = ALONE;
    });
  }

  /**
   * Cuts a text into word pieces.
   *
   * A piece is never given an empty range: where one character becomes several
   * pieces, each of them has that character. Dropped characters (accents, joiners)
   * belong to the piece before them.
   * @param {string} text
   * @return {Pieces}
   */
  tokenize(text) {
    const pieces = { ids: [], starts: [], ends: [] };
    // The normalized text, and the source of each of its characters.
    const normalized = [];
    const sources = [];
    const original = codePoints(text);
    original.forEach((character, source) => {
      for (const result of this.#normalize(character)) {
        normalized.push(result);
        sources.push(source);
      }
    });
    sources.push(original.length);

    let first = 0;
    while (first < normalized.length) {
      const kind = this.#kind(normalized[first]);
      let last = first + 1;
      if (kind === WORD) {
        while (last < normalized.length && this.#kind(normalized[last]) === WORD) {
          last += 1;
        }
      }
      if (kind !== WHITE_SPACE) this.#cut(normalized, first, last, sources, pieces);
      first = last;
    }
    return pieces;
  }

  #normalize(character) {
    const point = character.codePointAt(0);
    if (this.hangul && point >= HANGUL_FIRST && point <= HANGUL_LAST) {
      return character.normalize("NFD");
    }
    return this.normalized.get(character) ?? character;
  }

  #kind(character) {
    return this.kinds[character.codePointAt(0)];
  }

  /** Adds the pieces of the word `normalized[first:last]`. */
  #cut(normalized, first, last, sources, pieces) {
    const found = [];
    let begin = utf8Length(normalized, first, last) > MAX_BYTES_PER_WORD ? -1 : first;
    while (begin >= 0 && begin < last) {
      const prefix = begin > first ? "##" : "";
      let end = Math.min(last, begin + this.longest);
      let piece = prefix + normalized.slice(begin, end).join("");
      while (end > begin && !this.ids.has(piece)) {
        end -= 1;
        piece = piece.slice(0, piece.length - normalized[end].length);
      }
      if (end === begin) {
        begin = -1;
      } else {
        found.push([this.ids.get(piece), begin, end]);
        begin = end;
      }
    }
    if (begin < 0) found.splice(0, Infinity, [this.unknown, first, last]);
    for (const [id, from, to] of found) {
      pieces.ids.push(id);
      pieces.starts.push(sources[from]);
      pieces.ends.push(Math.max(sources[to], sources[to - 1] + 1));
    }
  }
}

function forEach(ranges, visit) {
  for (let index = 0; index < ranges.length; index += 2) {
    for (let point = ranges[index]; point <= ranges[index + 1]; point += 1) {
      visit(point);
    }
  }
}

function utf8Length(characters, first, last) {
  let bytes = 0;
  for (let index = first; index < last; index += 1) {
    const point = characters[index].codePointAt(0);
    bytes += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  }
  return bytes;
}
