/**
 * @fileoverview What Node and the page do alike: load models, run, time and profile
 * them.
 */

import {registerLayers} from './layers.mjs';

/** Runs of one model in one call of `time`, at most. */
const MOST_RUNS = 5000;

/**
 * Makes the functions that measure.py calls.
 *
 * @param {object} tf TensorFlow.js, its backend chosen and ready.
 * @param {object} [wasm] The package of the WASM backend, where that is chosen.
 * @returns {object} The functions by name; arguments and results are JSON.
 */
export function createBench(tf, wasm) {
  registerLayers(tf);
  /** Loaded models by id. */
  const loaded = new Map();

  function tensors(inputs) {
    const made = {};
    for (const [name, {shape, dtype, values}] of Object.entries(inputs)) {
      made[name] = tf.tensor(values, shape, dtype);
    }
    return made;
  }

  /** Outputs as flat arrays by name; waits until they are computed. */
  function run({model, kind}, feeds) {
    const inOrder = () => model.inputNames.map((name) => feeds[name]);
    const results = model.predict(kind === 'layers' ? inOrder() : feeds);
    const outputs = {};
    const put = (name, tensor) => {
      // Not data(), which looks every few milliseconds whether WebGL has finished.
      outputs[name] = tensor.dataSync();
      tensor.dispose();
    };
    const names = model.outputNodes ?? model.outputNames;
    if (results instanceof tf.Tensor) {
      put(names[0], results);
    } else if (Array.isArray(results)) {
      results.forEach((tensor, index) => put(names[index], tensor));
    } else {
      Object.entries(results).forEach(([name, tensor]) => put(name, tensor));
    }
    return outputs;
  }

  return {
    /** What this runtime is. */
    async about() {
      const backend = tf.getBackend();
      const about = {backend, tfjs: tf.version.tfjs};
      if (backend === 'wasm') {
        about.simd = await tf.env().getAsync('WASM_HAS_SIMD_SUPPORT');
        about.threads = wasm.getThreadsCount();
      }
      if (backend === 'webgl') {
        const {gl} = tf.backend().gpgpu;
        const names = gl.getExtension('WEBGL_debug_renderer_info');
        about.renderer = names && gl.getParameter(names.UNMASKED_RENDERER_WEBGL);
      }
      return about;
    },

    /**
     * Loads a model and runs it once.
     *
     * @param {string} id A name for it.
     * @param {string} kind 'layers', 'graph', or 'saved' for a SavedModel that
     *   tfjs-node runs.
     * @param {string} url Of its model.json; the SavedModel's directory.
     * @param {string} inputsUrl Of a JSON file of inputs by name: shape, dtype, values.
     * @returns {Promise<object>} Its outputs by name, as flat arrays.
     */
    async load(id, kind, url, inputsUrl) {
      const load = {
        layers: () => tf.loadLayersModel(url),
        graph: () => tf.loadGraphModel(url),
        saved: () => tf.node.loadSavedModel(url, ['serve'], 'serving_default'),
      };
      const model = await load[kind]();
      const inputs = await (await fetch(inputsUrl)).json();
      for (const input of Object.values(inputs)) {
        const array = input.dtype === 'int32' ? Int32Array : Float32Array;
        input.values = array.from(input.values);
      }
      const entry = {model, kind, inputs, feeds: tensors(inputs)};
      loaded.set(id, entry);
      const outputs = Object.entries(run(entry, entry.feeds));
      return Object.fromEntries(outputs.map(([name, data]) => [name, [...data]]));
    },

    /**
     * Times models in turn, so that all see the same machine.
     *
     * @param {string[]} ids The models.
     * @param {number} seconds To spend on all together.
     * @param {number} least How often each runs at least.
     * @param {boolean} fresh Whether a run begins with the inputs as plain arrays
     *   instead of tensors.
     * @returns {object} Milliseconds of each run by id.
     */
    time(ids, seconds, least, fresh) {
      const times = Object.fromEntries(ids.map((id) => [id, []]));
      const end = performance.now() + seconds * 1000;
      for (let round = 0; round < MOST_RUNS; ++round) {
        if (round >= least && performance.now() > end) break;
        // Each is as often first as last.
        for (const id of round % 2 ? [...ids].reverse() : ids) {
          const entry = loaded.get(id);
          const began = performance.now();
          const feeds = fresh ? tensors(entry.inputs) : entry.feeds;
          run(entry, feeds);
          if (fresh) tf.dispose(feeds);
          times[id].push(performance.now() - began);
        }
      }
      return times;
    },

    /**
     * What one run consists of.
     *
     * @param {string} id The model.
     * @returns {Promise<object>} By kernel: how often it ran and its milliseconds,
     *   each waited for. Kernels that call others hold their times, too.
     */
    async profile(id) {
      const entry = loaded.get(id);
      const {kernels} = await tf.profile(() => {
        run(entry, entry.feeds);
      });
      const byName = {};
      for (const {name, kernelTimeMs} of kernels) {
        // Not kernels but functions with a gradient around them.
        if (name.endsWith('__op')) continue;
        const seen = (byName[name] ??= {count: 0, ms: 0});
        seen.count += 1;
        seen.ms += Number(kernelTimeMs) || 0;
      }
      return byName;
    },

    /**
     * How much of a run TensorFlow's library does itself; of tfjs-node only.
     *
     * @param {string} id The model.
     * @param {number} runs How often to run it.
     * @returns {object[]} Of each run: the native calls, the milliseconds in
     *   them, and the milliseconds in all.
     */
    nativeShare(id, runs) {
      const entry = loaded.get(id);
      const backend = tf.backend();
      const {binding} = backend;
      let ms = 0;
      let calls = 0;
      const executeOp = (...args) => {
        const began = performance.now();
        try {
          return binding.executeOp(...args);
        } finally {
          ms += performance.now() - began;
          calls += 1;
        }
      };
      backend.binding = Object.create(binding, {executeOp: {value: executeOp}});
      const result = [];
      try {
        for (let index = 0; index < runs; ++index) {
          [ms, calls] = [0, 0];
          const began = performance.now();
          run(entry, entry.feeds);
          result.push({calls, native: ms, total: performance.now() - began});
        }
      } finally {
        backend.binding = binding;
      }
      return result;
    },

    /** @param {string} id A model that is no longer needed. */
    unload(id) {
      const entry = loaded.get(id);
      tf.dispose(entry.feeds);
      entry.model.dispose();
      loaded.delete(id);
    },
  };
}
