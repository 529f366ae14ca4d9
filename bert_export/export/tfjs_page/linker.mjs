// Links mentions with an artifact: candidates in, ranked candidates out. Node, too.

import { readArtifact } from "./artifact.mjs";
import { readFile } from "./files.mjs";
import { PairEncoder, entityText } from "./pairs.mjs";
import { codePoints } from "./tokenizer.mjs";

export { AliasTable, normalize } from "./aliases.mjs";
export { FileError } from "./files.mjs";
export { PairEncoder, entityText } from "./pairs.mjs";
export { WordPiece, codePoints, parseVocab } from "./tokenizer.mjs";

// Pairs a run of the model. More at once are no faster, and nothing could be said of
// the progress meanwhile.
const BATCH = 8;

/**
 * @typedef {Object} RankedCandidate
 * @property {Object} candidate As it was given.
 * @property {number} score Log-odds that it is the entity meant.
 * @property {number} probability The same as a probability.
 * @property {number} share Softmax of the score among the mention's candidates.
 * @property {number} priorRank Its place among those given, from 1.
 */

/**
 * @typedef {Object} LinkedMention
 * @property {RankedCandidate[]} candidates Best first.
 * @property {number} nilProbability That none of the candidates is meant.
 * @property {boolean} isNil No candidate reaches the NIL threshold.
 * @property {number} textPieces Word pieces of the text, markers included.
 * @property {?number} readPieces How many of them the model read at least; less than
 *   `textPieces` where it saw a window around the mention. Null without candidates.
 */

/** The mention cannot be linked; `problem` is "outside", "no piece" or "too long". */
export class MentionError extends Error {
  constructor(message, problem) {
    super(message);
    this.name = "MentionError";
    this.problem = problem;
  }
}

/** A model, the tokenizer it was trained with, and a NIL threshold. */
export class Linker {
  /**
   * Loads an artifact.
   * @param {Object} tf TensorFlow.js with `loadGraphModel`, its backend ready.
   * @param {URL|string} directory The artifact, with a slash at its end; http:, https:
   *   or, in Node, file:.
   * @param {Object} [options] Those of `readArtifact`.
   * @return {Promise<Linker>}
   * @throws {FileError}
   */
  static async load(tf, directory, options = {}) {
    const [artifact, characters, page] = await Promise.all([
      readArtifact(directory, options),
      readJson("characters.json"),
      readJson("page.json"),
    ]);
    return Linker.fromParts(tf, artifact, characters, page.nil_threshold);
  }

  /**
   * Makes a linker of what has been read already.
   * @param {Object} tf
   * @param {import("./artifact.mjs").Artifact} artifact
   * @param {Object} characters The table characters.json.
   * @param {number} nilThreshold Probability below which a best candidate is NIL.
   * @return {Promise<Linker>}
   */
  static async fromParts(tf, artifact, characters, nilThreshold) {
    const model = await tf.loadGraphModel(tf.io.fromMemory(artifact.model));
    return new Linker(tf, model, artifact, characters, nilThreshold);
  }

  constructor(tf, model, { vocab, metadata }, characters, nilThreshold) {
    this.tf = tf;
    this.model = model;
    this.metadata = metadata;
    this.features = metadata.features;
    this.encoder = new PairEncoder(vocab, characters, metadata.features);
    this.nilThreshold = nilThreshold;
  }

  /**
   * Ranks a mention's candidates.
   * @param {{text: string, start: number, end: number}} mention Offsets in code
   *   points, as in Python; `codePointOffset` makes them of JavaScript's.
   * @param {Object[]} candidates Entities `{name, aliases, description}`; what else
   *   they have is kept.
   * @param {Object} [options]
   * @param {function(number, number): void} [options.onProgress] Called with the pairs
   *   that are done, and of how many.
   * @param {function(): Promise<boolean>} [options.isCancelled] Asked before each run.
   * @return {Promise<?LinkedMention>} Null if cancelled.
   * @throws {MentionError} The mention lies outside the text, has no word piece, or
   *   more than the model takes.
   */
  async link({ text, start, end }, candidates, options = {}) {
    const pieces = this.encoder.encodeText(text, start, end);
    if (pieces.problem) throw this.#mentionError(pieces);
    const pairs = candidates.map((candidate) => {
      const segment = entityText(candidate, this.features.candidate_fields);
      return this.encoder.assemble(pieces, this.encoder.encodeCandidate(segment));
    });
    const scores = [];
    const probabilities = [];
    for (let first = 0; first < pairs.length; first += BATCH) {
      if (await options.isCancelled?.()) return null;
      const batch = await this.score(pairs.slice(first, first + BATCH));
      scores.push(...batch.scores);
      probabilities.push(...batch.probabilities);
      options.onProgress?.(scores.length, pairs.length);
    }
    const shares = softmax(scores);
    const ranked = candidates
      .map((candidate, index) => ({
        candidate,
        score: scores[index],
        probability: probabilities[index],
        share: shares[index],
        priorRank: index + 1,
      }))
      // Stable, so that equal ones keep their order.
      .sort((a, b) => b.score - a.score);
    const best = Math.max(0, ...probabilities);
    const kept = pairs.map(({ window }) => window[1] - window[0]);
    return {
      candidates: ranked,
      nilProbability: 1 - best,
      isNil: !ranked.length || ranked[0].probability < this.nilThreshold,
      textPieces: pieces.ids.length,
      readPieces: kept.length ? Math.min(...kept) : null,
    };
  }

  /**
   * Runs the model once.
   * @param {import("./pairs.mjs").Pair[]} pairs
   * @return {Promise<{scores: number[], probabilities: number[]}>}
   */
  async score(pairs) {
    const { tf, features } = this;
    const longest = Math.max(...pairs.map((pair) => pair.inputIds.length));
    const shape = [pairs.length, longest];
    const sequence = (row) => {
      const values = new Int32Array(pairs.length * longest);
      pairs.forEach((pair, index) => values.set(row(pair), index * longest));
      return tf.tensor2d(values, shape, "int32");
    };
    const inputs = {
      [features.input_ids]: sequence((pair) => pair.inputIds),
      [features.input_mask]: sequence((pair) => pair.inputIds.map(() => 1)),
      [features.segment_ids]: sequence((pair) => pair.segmentIds),
    };
    const spans = [(pair) => pair.startPs, (pair) => pair.endPs];
    // A plain pair classifier reads neither of them.
    features.span_fields.forEach((name, index) => {
      inputs[name] = tf.tensor1d(pairs.map(spans[index]), "int32");
    });
    let outputs = [];
    try {
      outputs = this.model.execute(inputs, ["score", "probabilities"]);
      const [scores, probabilities] = await Promise.all(
        outputs.map((output) => output.data()),
      );
      return {
        scores: Array.from(scores),
        probabilities: pairs.map((_, index) => probabilities[2 * index + 1]),
      };
    } finally {
      tf.dispose([inputs, outputs]);
    }
  }

  #mentionError({ problem, first, last }) {
    const message = {
      outside: "The mention must lie inside the text.",
      "no piece":
        "The mention has no word piece: only white space, control characters or the " +
        "like.",
      "too long":
        `The mention has ${last - first + 1} word pieces; the model takes at most ` +
        `${this.encoder.maxMentionPieces}.`,
    }[problem];
    return new MentionError(message, problem);
  }
}

/**
 * Code points before a place in JavaScript's string.
 * @param {string} text
 * @param {number} offset In UTF-16 code units, as of selections.
 * @return {number}
 */
export function codePointOffset(text, offset) {
  return codePoints(text.slice(0, offset)).length;
}

/**
 * Reads a JSON file that lies beside this module.
 * @param {string} name
 * @return {Promise<any>}
 * @throws {FileError}
 */
export async function readJson(name) {
  const bytes = await readFile(new URL(name, import.meta.url));
  return JSON.parse(new TextDecoder().decode(bytes));
}

function softmax(scores) {
  const most = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
