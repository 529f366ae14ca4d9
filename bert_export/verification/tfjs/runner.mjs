/**
 * Runs a model in one of TensorFlow.js' runtimes and answers requests about it.
 *
 *   node runner.mjs --runtime=RUNTIME --model=DIR --packages=DIR [--chromium=FILE]
 *
 * RUNTIME is node-tfjs, node-wasm, node-cpu, chromium-wasm or chromium-webgl; PACKAGES
 * has node_modules. Each line of the standard input is a request as JSON, each line
 * of the standard output its answer, {"result": ...} or {"error": message}:
 *
 *   {"command": "load", "way": "file" | "http"}        first, and to load it anew
 *   {"command": "describe"}                            backend, versions, inputs …
 *   {"command": "run", "inputs": …, "method": …}       outputs, and tensors alive
 *   {"command": "time", "requests": […], "limits": …}  milliseconds of each
 *
 * It ends when its input does. Arrays are as model.mjs has them.
 */

import {resolve} from 'node:path';
import process from 'node:process';
import {createInterface} from 'node:readline';
import {parseArgs} from 'node:util';

import {openInBrowser} from './browser_runtimes.mjs';
import {openInNode} from './node_runtimes.mjs';


function keepStandardOutputClean() {
  const seen = new Set();
  const tell = (...words) => {
    const line = words.join(' ');
    // TensorFlow.js repeats its advice at every request.
    if (!seen.has(line)) process.stderr.write(`${line}\n`);
    seen.add(line);
  };
  for (const level of ['log', 'info', 'warn', 'error', 'debug']) console[level] = tell;
}


async function handle(model, {command, ...rest}) {
  switch (command) {
    case 'load': {
      const started = performance.now();
      await model.load(rest.way);
      return {milliseconds: performance.now() - started};
    }
    case 'describe':
      return model.describe();
    case 'run':
      return model.run(rest.inputs, rest.method);
    case 'time':
      return model.time(rest.requests, rest.limits);
    default:
      throw new Error(`unknown command ${command}`);
  }
}


async function main() {
  keepStandardOutputClean();
  const text = {type: 'string'};
  const {values: options} = parseArgs({options: {
    runtime: text, model: text, packages: text, chromium: text,
  }});
  const {runtime, chromium} = options;
  const packages = resolve(options.packages);
  const directory = resolve(options.model);
  const inBrowser = runtime.startsWith('chromium-');
  const model = inBrowser ?
      await openInBrowser(runtime, packages, directory, chromium) :
      await openInNode(runtime, packages, directory);
  for await (const line of createInterface({input: process.stdin})) {
    let reply;
    try {
      reply = {result: await handle(model, JSON.parse(line))};
    } catch (error) {
      reply = {error: String(error?.message ?? error)};
    }
    process.stdout.write(`${JSON.stringify(reply)}\n`);
  }
  await model.close();
}

await main();
