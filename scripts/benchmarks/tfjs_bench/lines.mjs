/** @fileoverview Calls as JSON lines on standard input, answers on standard output. */

import {createInterface} from 'node:readline';

/**
 * Answers `{"call": name, "args": [...]}` with `{"result": ...}` or `{"error": ...}`
 * until the input ends. What a library prints to the output is sent to standard error.
 *
 * @param {object} functions By name.
 */
export async function serve(functions) {
  const write = process.stdout.write.bind(process.stdout);
  const answer = (message) => write(`${JSON.stringify(message)}\n`);
  process.stdout.write = process.stderr.write.bind(process.stderr);
  answer({result: 'ready'});
  for await (const line of createInterface({input: process.stdin})) {
    const {call, args} = JSON.parse(line);
    try {
      answer({result: (await functions[call](...args)) ?? null});
    } catch (error) {
      answer({error: error.stack ?? String(error)});
    }
  }
}
