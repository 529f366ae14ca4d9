// The alias table: which entities a surface form may refer to, as corpus/aliases.py.

import { readFile } from "./files.mjs";

// What Python's str.split() takes for white space; JavaScript's \s differs.
const WHITE_SPACE =
  /[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;
const CHEROKEE = /[\u13a0-\u13f5\u13f8-\u13fd\uab70-\uabbf]/;
const DOTLESS_I = "\u0131";
const NEAR = 6;

/**
 * @typedef {Object} Entity
 * @property {string} id
 * @property {string} name
 * @property {string[]} aliases
 * @property {string} description
 */

/**
 * The form in which names are compared: NFKC, case-folded, NFKC again, runs of white
 * space made one space. Equal to `normalize` of corpus/aliases.py, but for letters
 * younger than the Unicode version of either side.
 * @param {string} surface
 * @return {string}
 */
export function normalize(surface) {
  const folded = foldCase(surface.normalize("NFKC")).normalize("NFKC");
  return folded.split(WHITE_SPACE).filter(Boolean).join(" ");
}

/** Unicode's full case folding, character by character. */
function foldCase(text) {
  return Array.from(text, (character) => {
    if (character === DOTLESS_I) return character;
    const upper = Array.from(character, (c) => c.toLowerCase()).join("").toUpperCase();
    // Cherokee's small letters are the younger ones, and fold to the capitals.
    if (CHEROKEE.test(character)) return upper;
    return Array.from(upper, (c) => c.toLowerCase()).join("");
  }).join("");
}

/** Looks surface forms up in sorted shards; a look-up reads one file at most. */
export class AliasTable {
  /**
   * @param {URL|string} directory Where the shards are, with a slash at its end.
   * @param {string[]} firsts The first alias of each shard, in rising order of UTF-16
   *   code units: `aliases` of page.json.
   */
  constructor(directory, firsts) {
    this.directory = directory;
    this.firsts = firsts;
    this.shards = new Map();
  }

  /**
   * Entities of that name first, then of that alias.
   * @param {string} surface
   * @return {Promise<Entity[]>}
   */
  async lookup(surface) {
    const key = normalize(surface);
    const shard = await this.#shard(key);
    const ids = Object.hasOwn(shard.aliases, key) ? shard.aliases[key] : [];
    return ids.map((id) => {
      const [name, aliases, description] = shard.entities[id];
      return { id, name, aliases, description };
    });
  }

  /**
   * Aliases that are spelt like the surface form: those in the file that was read for
   * it, so words that begin alike.
   * @param {string} surface
   * @return {Promise<string[]>} The nearest first.
   */
  async near(surface) {
    const key = normalize(surface);
    const shard = await this.#shard(key);
    const most = key.length < 4 ? 1 : key.length < 8 ? 2 : 3;
    return Object.keys(shard.aliases)
      .filter((alias) => Math.abs(alias.length - key.length) <= most)
      .map((alias) => ({ alias, distance: editDistance(alias, key) }))
      .filter(({ distance }) => distance > 0 && distance <= most)
      .sort((a, b) => a.distance - b.distance || a.alias.length - b.alias.length)
      .slice(0, NEAR)
      .map(({ alias }) => alias);
  }

  /**
   * The file in which a surface form is looked up.
   * @param {string} surface
   * @return {URL}
   */
  url(surface) {
    return new URL(`${this.#number(normalize(surface))}.json.gz`, this.directory);
  }

  /** The last shard that begins at or before a normalized alias. */
  #number(key) {
    let low = 0;
    let high = this.firsts.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.firsts[middle] <= key) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  async #shard(key) {
    if (!this.firsts.length) return { aliases: {}, entities: {} };
    const { href } = this.url(key);
    if (!this.shards.has(href)) {
      const reading = readFile(new URL(href)).then(decompress).then(JSON.parse);
      this.shards.set(href, reading);
      // A failed one is asked for again.
      reading.catch(() => this.shards.delete(href));
    }
    return this.shards.get(href);
  }
}

/** Text of a gzip file; servers that name its encoding have it inflated already. */
async function decompress(bytes) {
  let stream = new Blob([bytes]).stream();
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
    stream = stream.pipeThrough(new DecompressionStream("gzip"));
  }
  return new Response(stream).text();
}

/** Levenshtein's distance. */
function editDistance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 0; i < a.length; i += 1) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j += 1) {
      const replaced = row[j] + (a[i] === b[j] ? 0 : 1);
      next.push(Math.min(replaced, row[j + 1] + 1, next[j] + 1));
    }
    row = next;
  }
  return row[b.length];
}
