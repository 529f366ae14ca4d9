/** The page's side of a browser's runtime: what browser_runtimes.mjs calls. */

import * as graph from '/scripts/model.mjs';

const tf = window.tf;
let model;

window.runtime = {
  async open(backend) {
    // As the linking page does it: of two cores WASM would take but one.
    if ([2, 3].includes(navigator.hardwareConcurrency)) {
      Object.defineProperty(navigator, 'hardwareConcurrency', {value: 4});
    }
    tf.wasm.setWasmPaths('/packages/@tensorflow/tfjs-backend-wasm/dist/');
    if (!await tf.setBackend(backend)) {
      throw new Error(`this browser has no ${backend} backend`);
    }
    await tf.ready();
  },

  async describe() {
    const wasm = tf.getBackend() === 'wasm';
    return {
      backend: tf.getBackend(),
      isolated: window.crossOriginIsolated,
      versions: {tfjs: tf.version.tfjs},
      wasm: wasm && {
        simd: await tf.env().getAsync('WASM_HAS_SIMD_SUPPORT'),
        threaded_build: await tf.env().getAsync('WASM_HAS_MULTITHREAD_SUPPORT'),
        threads: tf.wasm.getThreadsCount(),
      },
      ...graph.describe(model),
    };
  },

  async load(way) {
    const from = way === 'http' ?
        '/model/model.json' :
        tf.io.browserFiles([...document.querySelector('#files').files]);
    const loaded = await tf.loadGraphModel(from);
    model?.dispose();
    model = loaded;
  },

  async run(inputs, method) {
    const outputs = await graph.run(tf, model, inputs, method);
    return {outputs, tensors: tf.memory().numTensors};
  },

  time: (requests, limits) => graph.time(tf, model, requests, limits),
};
