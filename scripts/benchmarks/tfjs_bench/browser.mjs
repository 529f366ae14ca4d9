/**
 * @fileoverview Runs models in headless Chromium as measure.py says, over JSON lines.
 *
 * Usage: node browser.mjs webgl|wasm PACKAGES CHROMIUM ADDRESS THREADS
 */

import {createRequire} from 'node:module';
import path from 'node:path';

import {serve} from './lines.mjs';

const [backend, packages, executablePath, address, threads] = process.argv.slice(2);
const require = createRequire(path.join(packages, 'package.json'));
const {chromium} = require('playwright-core');

const browser = await chromium.launch({
  executablePath,
  args: [
    // WebGL without a graphics card.
    '--enable-unsafe-swiftshader',
    // Chromium has no sandbox for root.
    ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []),
  ],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(0);
  page.on('pageerror', (error) => console.error(String(error)));
  await page.goto(`${address}/bench/page.html?backend=${backend}&threads=${threads}`);
  await page.waitForFunction(() => globalThis.bench || globalThis.failure);
  const failure = await page.evaluate(() => globalThis.failure);
  if (failure) throw new Error(failure);
  const names = await page.evaluate(() => Object.keys(globalThis.bench));
  const call = ([name, args]) => globalThis.bench[name](...args);
  const inPage = (name) => [name, (...args) => page.evaluate(call, [name, args])];
  await serve({
    ...Object.fromEntries(names.map(inPage)),
    version: () => browser.version(),
  });
} finally {
  await browser.close();
}
