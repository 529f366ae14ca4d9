// Links mentions in Node with the page's modules: node link.mjs ARTIFACT PACKAGES

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [artifact, packages] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const tf = require("@tensorflow/tfjs-core");
Object.assign(globalThis, { tf });
require("@tensorflow/tfjs-backend-cpu");
const { loadGraphModel } = require("@tensorflow/tfjs-converter");
const { AliasTable, Linker, readJson } = await import(`${artifact}page/linker.mjs`);

const linker = await Linker.load({ ...tf, loadGraphModel }, artifact);
const described = await readJson("page.json");
const directory = new URL(`page/${described.version}/aliases/`, artifact);
const aliases = new AliasTable(directory, described.aliases);
const results = [];
for (const { mention, lookup } of JSON.parse(readFileSync(0, "utf-8"))) {
  try {
    const candidates = lookup ? await aliases.lookup(lookup) : [];
    results.push(await linker.link(mention, candidates));
  } catch (error) {
    results.push({ error: error.message });
  }
}
console.log(JSON.stringify(results));
