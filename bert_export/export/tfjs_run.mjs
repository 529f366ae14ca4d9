// Runs a TensorFlow.js model on given inputs, with the plain JavaScript backend.
//
//   node tfjs_run.mjs PACKAGES REQUEST.json RESPONSE.json
//
// PACKAGES is a directory with node_modules/@tensorflow/tfjs. The request is {model:
// path of model.json, kind: "graph-model" | "layers-model", outputs: [name],
// batches: [{name: TENSOR}]}; the response {call: "predict" | "executeAsync", why,
// batches: [[TENSOR]]} or {error: message}. A TENSOR is {shape, dtype, data}, its data
// in base64, little-endian.

import {readFileSync, writeFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';

const [packages, requestPath, responsePath] = process.argv.slice(2);
const require = createRequire(join(packages, 'package.json'));
// TensorFlow.js advises its native package, on whatever stream.
console.log = console.warn = console.info = () => {};
const tf = require('@tensorflow/tfjs');

const ARRAYS = {float32: Float32Array, int32: Int32Array, bool: Uint8Array};

/**
 * Reads model.json and its shards, as tf.io's handlers do over HTTP.
 * @param {string} path of model.json
 * @return {object} an IOHandler
 */
function fromDisk(path) {
  return {
    load: async () => {
      const json = JSON.parse(readFileSync(path, 'utf8'));
      return tf.io.getModelArtifactsForJSON(json, async (manifest) => {
        const specs = manifest.flatMap((group) => group.weights);
        const buffers = manifest.flatMap((group) => group.paths).map((name) => {
          const bytes = readFileSync(join(dirname(path), name));
          return bytes.buffer.slice(
              bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
        });
        return [specs, tf.io.concatenateArrayBuffers(buffers)];
      });
    },
  };
}

function decode({shape, dtype, data}) {
  const bytes = Buffer.from(data, 'base64');
  const buffer = bytes.buffer.slice(
      bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return tf.tensor(new ARRAYS[dtype](buffer), shape, dtype);
}

async function encode(tensor) {
  const {shape, dtype} = tensor;
  const values = await tensor.data();
  const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  return {shape, dtype, data: bytes.toString('base64')};
}

const asList = (result) => result instanceof tf.Tensor ? [result] :
  Array.isArray(result) ? result : Object.values(result);

async function runGraph(model, names, batches) {
  let call = 'predict';
  let why = '';
  const results = [];
  for (const batch of batches) {
    if (call === 'predict') {
      try {
        results.push(asList(model.execute(batch, names)));
        continue;
      } catch (error) {
        call = 'executeAsync';
        why = error.message;
      }
    }
    results.push(asList(await model.executeAsync(batch, names)));
  }
  return {call, why, results};
}

function runLayers(model, names, batches) {
  // Names of a Sequential's inputs and outputs are not always Keras' own.
  const known = names.every((name) => model.outputNames.includes(name));
  const results = batches.map((batch) => {
    const inputs = model.inputs.map(
        (input, index) => batch[input.name] ?? Object.values(batch)[index]);
    model.resetStates();
    const outputs = asList(model.predict(inputs));
    return known && names.length === outputs.length ?
      names.map((name) => outputs[model.outputNames.indexOf(name)]) : outputs;
  });
  return {call: 'predict', why: '', results};
}

async function run() {
  const request = JSON.parse(readFileSync(requestPath, 'utf8'));
  await tf.setBackend('cpu');
  await tf.ready();
  const batches = request.batches.map((batch) => Object.fromEntries(
      Object.entries(batch).map(([name, value]) => [name, decode(value)])));
  const layers = request.kind === 'layers-model';
  const load = layers ? tf.loadLayersModel : tf.loadGraphModel;
  const model = await load(fromDisk(request.model));
  const {call, why, results} = layers ?
    runLayers(model, request.outputs, batches) :
    await runGraph(model, request.outputs, batches);
  const encoded = [];
  for (const outputs of results) {
    encoded.push(await Promise.all(outputs.map(encode)));
  }
  return {call, why, batches: encoded};
}

let response;
try {
  response = await run();
} catch (error) {
  response = {error: error.message};
}
writeFileSync(responsePath, JSON.stringify(response));
