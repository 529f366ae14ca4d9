/** @fileoverview Takes the backend that the address names, offers the benchmark. */

import {createBench} from './bench.mjs';

try {
  const {tf} = globalThis;
  const options = new URLSearchParams(location.search);
  const backend = options.get('backend');
  const threads = Number(options.get('threads'));
  if (threads) {
    // The backend takes half of these at most, whatever it is told.
    Object.defineProperty(navigator, 'hardwareConcurrency', {value: 2 * threads});
    tf.wasm.setThreadsCount(threads);
  }
  tf.wasm.setWasmPaths('/packages/@tensorflow/tfjs-backend-wasm/dist/');
  if (!(await tf.setBackend(backend))) {
    throw new Error(`this browser offers no ${backend} backend`);
  }
  await tf.ready();
  globalThis.bench = createBench(tf, tf.wasm);
} catch (error) {
  globalThis.failure = error.stack ?? String(error);
}
