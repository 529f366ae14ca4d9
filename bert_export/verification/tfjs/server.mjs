/** Serves directories on the loopback interface, with what a browser's threads take. */

import {createReadStream} from 'node:fs';
import {stat} from 'node:fs/promises';
import {createServer} from 'node:http';
import {extname, join, normalize, sep} from 'node:path';
import {pipeline} from 'node:stream';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.mjs': 'text/javascript; charset=utf-8',
  '.wasm': 'application/wasm',
};
const HEADERS = {
  // TensorFlow.js asks for all shards before it reads any, and Chromium reads ahead
  // only what it may store: with no-store and more shards than it has connections (6),
  // loading a model would never end.
  'Cache-Control': 'no-cache',
  // A page without these has no shared memory.
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
};


/**
 * Starts a server on a free port.
 *
 * @param {Object<string, string>} folders Directories by the first part of the path.
 * @returns {Promise<{url: string, close: function(): void}>} The address without a
 *     slash at its end.
 */
export async function serve(folders) {
  const server = createServer((request, response) => {
    send(folders, request, response).catch((error) => {
      response.destroy(error);
    });
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const close = () => {
    server.close();
    server.closeAllConnections?.();
  };
  return {url: `http://127.0.0.1:${server.address().port}`, close};
}


async function send(folders, request, response) {
  const {pathname} = new URL(request.url, 'http://localhost');
  const [, first, ...rest] = decodeURIComponent(pathname).split('/');
  const folder = Object.hasOwn(folders, first) ? folders[first] : undefined;
  const path = folder && join(folder, normalize(sep + rest.join(sep)));
  const found = path && await stat(path).catch(() => undefined);
  if (!found?.isFile()) {
    response.writeHead(404, {...HEADERS, 'Content-Type': 'text/plain'});
    response.end('no such file');
    return;
  }
  response.writeHead(200, {
    ...HEADERS,
    'Content-Type': TYPES[extname(path)] ?? 'application/octet-stream',
    'Content-Length': found.size,
  });
  pipeline(createReadStream(path), response, () => {});
}
