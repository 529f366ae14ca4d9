/**
 * Loads, describes, runs and times a GraphModel, in Node.js and in a browser alike.
 *
 * An array is {dtype, shape, data}: data is its bytes, little-endian, as base64.
 */

const ARRAYS = {float32: Float32Array, int32: Int32Array};
const DTYPES = {DT_FLOAT: 'float32', DT_INT32: 'int32', DT_INT64: 'int64'};


/**
 * Inputs and outputs by name, as the model's signature has them.
 *
 * @param {tf.GraphModel} model
 * @returns {{inputs: object, outputs: object}} By name: dtype, and shape with -1 for
 *     a dimension that requests choose; shape is null where the model has none.
 */
export function describe(model) {
  const signature = model.modelSignature ?? {};
  const inGraph = new Set(model.inputs.map(({name}) => name));
  const side = (tensors, named) => Object.fromEntries(
      Object.entries(tensors ?? {}).filter(([, {name}]) => named(nodeName(name)))
          .map(([key, {dtype, tensorShape}]) => [key, {
            dtype: DTYPES[dtype] ?? dtype,
            shape: tensorShape?.unknownRank ?
                null : (tensorShape?.dim ?? []).map(({size}) => Number(size)),
          }]));
  return {
    inputs: side(signature.inputs, (name) => inGraph.has(name)),
    outputs: side(signature.outputs, () => true),
  };
}


/**
 * Answers one request.
 *
 * @param {object} tf
 * @param {tf.GraphModel} model
 * @param {object} inputs Arrays by name.
 * @param {string} method executeAsync, or execute or predict.
 * @returns {Promise<object>} Arrays by the signature's names.
 */
export async function run(tf, model, inputs, method = 'executeAsync') {
  const answers = await answer(tf, model, decodeAll(inputs), method);
  return Object.fromEntries(Object.entries(answers).map(
      ([name, {dtype, shape, values}]) => [name, {dtype, shape, data: encode(values)}]));
}


/**
 * Times requests one after the other, from plain arrays to plain arrays.
 *
 * @param {object} tf
 * @param {tf.GraphModel} model
 * @param {object[]} requests Arrays by name each; answered in turn, again and again.
 * @param {{warmUp: number, seconds: number, minRuns: number, maxSeconds: number}}
 *     limits How many are answered before any is timed; how long it is timed at
 *     least; how often at least, unless that takes maxSeconds. The warm-up ends after
 *     maxSeconds, too.
 * @returns {Promise<number[]>} Milliseconds of each.
 */
export async function time(tf, model, requests, limits) {
  const {warmUp, seconds, minRuns, maxSeconds} = limits;
  const decoded = requests.map(decodeAll);
  const next = (number) =>
      answer(tf, model, decoded[number % decoded.length], 'executeAsync');
  const warmed = performance.now() + 1000 * maxSeconds;
  for (let number = 0; number < warmUp && performance.now() < warmed; number++) {
    await next(number);
  }
  const taken = [];
  const started = performance.now();
  for (;;) {
    const before = performance.now();
    await next(taken.length);
    const after = performance.now();
    taken.push(after - before);
    const elapsed = (after - started) / 1000;
    if (elapsed > maxSeconds || (elapsed > seconds && taken.length >= minRuns)) {
      return taken;
    }
  }
}


async function answer(tf, model, inputs, method) {
  const signature = model.modelSignature?.outputs ?? {};
  const names = Object.keys(signature);
  const nodes = names.map((name) => nodeName(signature[name].name));
  const tensors = {};
  let found = [];
  try {
    for (const [name, {dtype, shape, values}] of Object.entries(inputs)) {
      tensors[name] = tf.tensor(values, shape, dtype);
    }
    if (method === 'predict') {
      // It takes no names of outputs.
      found = inOrder(await model.predict(tensors), model.outputNodes, nodes);
    } else {
      found = [await model[method](tensors, nodes)].flat();
    }
    const values = await Promise.all(found.map((tensor) => tensor.data()));
    return Object.fromEntries(names.map((name, number) => {
      const {dtype, shape} = found[number];
      return [name, {dtype, shape, values: values[number]}];
    }));
  } finally {
    tf.dispose([tensors, found]);
  }
}


function inOrder(result, have, wanted) {
  const named = Array.isArray(result) ?
      Object.fromEntries(have.map((node, number) => [node, result[number]])) : result;
  return wanted.map((node) => named[node]);
}


function nodeName(tensorName) {
  return tensorName.split(':')[0];
}


function decodeAll(arrays) {
  return Object.fromEntries(Object.entries(arrays).map(([name, array]) => {
    const {dtype, shape, data} = array;
    const type = ARRAYS[dtype];
    if (!type) throw new Error(`input ${name} is ${dtype}; this runtime has no such`);
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    return [name, {dtype, shape, values: new type(bytes.buffer)}];
  }));
}


function encode(values) {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
