/** Opens a model in headless Chromium: with the WASM or the WebGL backend. */

import {mkdtemp, readdir, rm} from 'node:fs/promises';
import {createRequire} from 'node:module';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import process from 'node:process';
import {fileURLToPath} from 'node:url';

import {serve} from './server.mjs';

const FLAGS = [
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-quic',
  '--disable-sync',
  '--no-first-run',
  // WebGL without a graphics card.
  '--enable-unsafe-swiftshader',
];


/**
 * @param {string} runtime
 * @param {string} packages A directory with node_modules.
 * @param {string} directory The model's.
 * @param {string} executable Chromium's.
 * @returns {Promise<object>} describe, load, run, time and close.
 */
export async function openInBrowser(runtime, packages, directory, executable) {
  const require = createRequire(join(packages, 'package.json'));
  const {chromium} = require('playwright-core');
  const server = await serve({
    model: directory,
    packages: join(packages, 'node_modules'),
    scripts: dirname(fileURLToPath(import.meta.url)),
  });
  const profile = await mkdtemp(join(tmpdir(), 'bert_export_chromium_'));
  let browser;
  const close = async () => {
    await browser?.close();
    server.close();
    await rm(profile, {recursive: true, force: true, maxRetries: 5});
  };
  try {
    browser = await chromium.launchPersistentContext(profile, {
      executablePath: executable,
      headless: true,
      // Chromium has no sandbox for root.
      args: [...FLAGS, ...(process.getuid?.() === 0 ? ['--no-sandbox'] : [])],
    });
    const page = browser.pages()[0] ?? await browser.newPage();
    // How long a model may take is for the caller to say.
    page.setDefaultTimeout(0);
    page.on('console', (message) => console.error(message.text()));
    page.on('crash', () => {
      console.error('the page crashed');
      process.exit(1);
    });
    await page.goto(`${server.url}/scripts/page/index.html`);
    await page.evaluate(
        (backend) => window.runtime.open(backend), runtime.split('-')[1]);
    const call = (name, ...args) => page.evaluate(
        ([method, values]) => window.runtime[method](...values), [name, args]);
    return {
      async describe() {
        const {versions, ...rest} = await call('describe');
        const chromiumVersion = browser.browser()?.version();
        return {
          ...rest,
          versions: {
            node: process.versions.node,
            ...(chromiumVersion && {chromium: chromiumVersion}),
            ...versions,
          },
        };
      },
      async load(way) {
        if (way === 'file') {
          // As a person hands files to a page: the JSON first, then its weights.
          const names = (await readdir(directory)).filter((name) =>
            name === 'model.json' || name.endsWith('.bin'));
          names.sort((a, b) => (b === 'model.json') - (a === 'model.json'));
          await page.setInputFiles(
              '#files', names.map((name) => join(directory, name)));
        }
        await call('load', way);
      },
      run: (inputs, method) => call('run', inputs, method),
      time: (requests, limits) => call('time', requests, limits),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}
