/** Opens a model in Node.js: with tfjs-node, the WASM backend or the plain CPU one. */

import {readFile} from 'node:fs/promises';
import {createRequire} from 'node:module';
import {join} from 'node:path';
import process from 'node:process';
import util from 'node:util';

import * as graph from './model.mjs';
import {serve} from './server.mjs';

const BACKENDS = {
  'node-tfjs': 'tensorflow',
  'node-wasm': 'wasm',
  'node-cpu': 'cpu',
};


/**
 * @param {string} runtime
 * @param {string} packages A directory with node_modules.
 * @param {string} directory The model's.
 * @returns {Promise<object>} describe, load, run, time and close.
 */
export async function openInNode(runtime, packages, directory) {
  const require = createRequire(join(packages, 'package.json'));
  const {tf, wasm, file} = backendOf(runtime, require);
  await tf.setBackend(BACKENDS[runtime]);
  await tf.ready();
  let server;
  let model;
  return {
    async describe() {
      return {
        backend: tf.getBackend(),
        versions: {
          node: process.versions.node,
          tfjs: tf.version.tfjs,
          ...(tf.version['tfjs-node'] && {'tfjs-node': tf.version['tfjs-node']}),
          ...(wasm && {'tfjs-backend-wasm': wasm.version_wasm}),
        },
        wasm: wasm && {
          simd: await tf.env().getAsync('WASM_HAS_SIMD_SUPPORT'),
          threaded_build: await tf.env().getAsync('WASM_HAS_MULTITHREAD_SUPPORT'),
          threads: wasm.getThreadsCount(),
        },
        ...graph.describe(model),
      };
    },
    async load(way) {
      let from = file(join(directory, 'model.json'));
      if (way === 'http') {
        server ??= await serve({model: directory});
        from = `${server.url}/model/model.json`;
      }
      const loaded = await tf.loadGraphModel(from);
      model?.dispose();
      model = loaded;
    },
    run: async (inputs, method) => {
      const outputs = await graph.run(tf, model, inputs, method);
      return {outputs, tensors: tf.memory().numTensors};
    },
    time: (requests, limits) => graph.time(tf, model, requests, limits),
    close: async () => server?.close(),
  };
}


function backendOf(runtime, require) {
  if (runtime === 'node-tfjs') {
    // It calls these, which Node.js has not from 23 on.
    util.isArray ??= Array.isArray;
    util.isNullOrUndefined ??= (value) => value === null || value === undefined;
    const tf = require('@tensorflow/tfjs-node');
    return {tf, file: (path) => tf.io.fileSystem(path)};
  }
  const tf = require('@tensorflow/tfjs');
  const wasm = runtime === 'node-wasm' && require('@tensorflow/tfjs-backend-wasm');
  return {tf, wasm, file: (path) => ({load: () => readArtifacts(tf, path)})};
}


/** What tf.io.fileSystem does, which only tfjs-node has. */
async function readArtifacts(tf, path) {
  const modelJson = JSON.parse(await readFile(path, 'utf-8'));
  return tf.io.getModelArtifactsForJSON(modelJson, async (groups) => {
    const paths = groups.flatMap((group) => group.paths);
    const shards = await Promise.all(
        paths.map((shard) => readFile(join(path, '..', shard))));
    const whole = Buffer.concat(shards);
    return [
      groups.flatMap((group) => group.weights),
      whole.buffer.slice(whole.byteOffset, whole.byteOffset + whole.byteLength),
    ];
  });
}
