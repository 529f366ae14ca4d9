// Runs the page's tokenizer, pair encoder and alias normalization for the tests.
// node encode.mjs MODULES < {"vocab", "characters", "features", "texts", …} > JSON

import { readFileSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const modules = pathToFileURL(`${process.argv[2]}/`);
const { PairEncoder, normalize } = await import(new URL("linker.mjs", modules));
const input = JSON.parse(readFileSync(0, "utf-8"));

function answer() {
  if (input.surfaces) return input.surfaces.map(normalize);
  const encoder = new PairEncoder(input.vocab, input.characters, input.features);
  if (input.texts) return input.texts.map((text) => encoder.wordpiece.tokenize(text));
  return input.pairs.map(([text, start, end, candidate]) => {
    const pieces = encoder.encodeText(text, start, end);
    if (pieces.problem) return { problem: pieces.problem };
    return encoder.assemble(pieces, encoder.encodeCandidate(candidate));
  });
}

const bytes = Buffer.from(JSON.stringify(answer()));
for (let sent = 0; sent < bytes.length; ) sent += writeSync(1, bytes, sent);
