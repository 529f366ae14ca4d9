// Reads an artifact: model.json, its weight shards and the vocabulary, all checked.

import { FileError, readFile } from "./files.mjs";
import { parseVocab } from "./tokenizer.mjs";

const BYTES_PER_VALUE = {
  float32: 4,
  int32: 4,
  float16: 2,
  uint16: 2,
  uint8: 1,
  bool: 1,
};
const ADVICE = "Serve a tfjs artifact that `bert-export` wrote, whole, then retry.";

/**
 * @typedef {Object} Artifact
 * @property {Object} model What `tf.io.fromMemory` takes.
 * @property {string[]} vocab
 * @property {Object} metadata `bert_export` of model.json's userDefinedMetadata.
 * @property {Map<string, Uint8Array>} files All that was read, by address.
 */

/**
 * @typedef {Object} Progress
 * @property {number} loaded Bytes of the weights that are here.
 * @property {number} total Bytes of all weights.
 */

/**
 * Reads an artifact.
 * @param {URL|string} directory The artifact, with a slash at its end; http:, https:
 *   or, in Node, file:.
 * @param {Object} [options]
 * @param {Object<string, {bytes: number, sha256: string}>} [options.files] What the
 *   files must be: `files` of page.json.
 * @param {string} [options.version] Made part of addresses, so that no cache mixes
 *   versions.
 * @param {Cache} [options.cache] Asked before the network.
 * @param {function(Progress): void} [options.onProgress]
 * @return {Promise<Artifact>}
 * @throws {FileError} A file is missing, truncated or not what it should be.
 */
export async function readArtifact(directory, options = {}) {
  const files = new Map();
  const read = async (path, onBytes) => {
    const url = new URL(path, directory);
    if (options.version) url.searchParams.set("v", options.version);
    const expected = options.files?.[path];
    const bytes = await readFile(url, { ...expected, cache: options.cache, onBytes });
    files.set(url.href, bytes);
    return bytes;
  };
  // Both at once, and no failure of the one unheard while the other is waited for.
  const vocabulary = read("assets.extra/vocab.txt");
  vocabulary.catch(() => {});
  const modelJson = parseModel(await read("model.json"));
  const metadata = modelJson.userDefinedMetadata.bert_export;
  const progress = { loaded: 0, total: totalBytes(modelJson) };
  options.onProgress?.({ ...progress });
  const onBytes = (bytes) => {
    progress.loaded += bytes;
    options.onProgress?.({ ...progress });
  };
  const paths = modelJson.weightsManifest.flatMap((group) => group.paths);
  const shards = await Promise.all(paths.map((path) => read(path, onBytes)));
  const found = shards.reduce((sum, shard) => sum + shard.length, 0);
  if (found !== progress.total) {
    const sizes = paths.map((path, index) => `${path} ${shards[index].length}`);
    throw new FileError(
      `The weights have ${found} bytes, model.json says ${progress.total} ` +
        `(${sizes.join(", ")}).`,
      "A file is truncated or of another version. Copy the whole artifact again.",
    );
  }
  const weights = new Uint8Array(found);
  let offset = 0;
  for (const shard of shards) {
    weights.set(shard, offset);
    offset += shard.length;
  }
  return {
    model: {
      ...modelJson,
      weightSpecs: modelJson.weightsManifest.flatMap((group) => group.weights),
      weightData: weights.buffer,
    },
    vocab: parseVocab(new TextDecoder().decode(await vocabulary)),
    metadata,
    files,
  };
}

function parseModel(bytes) {
  let model;
  try {
    model = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new FileError(`model.json is not JSON: ${error.message}.`, ADVICE);
  }
  if (!model?.modelTopology || !Array.isArray(model.weightsManifest)) {
    throw new FileError("model.json describes no TensorFlow.js model.", ADVICE);
  }
  if (model.userDefinedMetadata?.bert_export?.format_version !== 1) {
    throw new FileError("model.json is of no linker that this page can run.", ADVICE);
  }
  return model;
}

function totalBytes(model) {
  let total = 0;
  for (const { weights } of model.weightsManifest) {
    for (const { shape, dtype, quantization } of weights) {
      const stored = quantization?.dtype ?? dtype;
      total += shape.reduce((a, b) => a * b, 1) * BYTES_PER_VALUE[stored];
    }
  }
  return total;
}
