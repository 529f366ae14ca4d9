/**
 * @fileoverview Runs models in Node as measure.py says: one JSON line in, one out.
 *
 * Usage: node node.mjs tensorflow|wasm PACKAGES
 */

import {createRequire} from 'node:module';
import path from 'node:path';
import util from 'node:util';

import {createBench} from './bench.mjs';
import {serve} from './lines.mjs';

const [backend, packages] = process.argv.slice(2);
const require = createRequire(path.join(packages, 'package.json'));

async function start() {
  if (backend === 'tensorflow') {
    // It calls these, which Node.js has not from 23 on.
    util.isArray ??= Array.isArray;
    util.isNullOrUndefined ??= (value) => value === null || value === undefined;
    return [require('@tensorflow/tfjs-node')];
  }
  const tf = require('@tensorflow/tfjs');
  const wasm = require('@tensorflow/tfjs-backend-wasm');
  const directory = path.dirname(require.resolve('@tensorflow/tfjs-backend-wasm'));
  wasm.setWasmPaths(`${directory}${path.sep}`);
  await tf.setBackend(backend);
  return [tf, wasm];
}

const [tf, wasm] = await start();
await tf.ready();
await serve(createBench(tf, wasm));
