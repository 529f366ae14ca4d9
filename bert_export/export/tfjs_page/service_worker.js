// Keeps the page for offline use. All it serves is of one version, its own.

"use strict";

const version = new URL(location.href).searchParams.get("v");
const scope = new URL("./", location.href);
const content = new URL(`${version}/`, scope);
// The page opens the same cache for the model; see page.mjs.
const prefix = `bert_export ${scope.pathname} `;
const cacheName = prefix + version;

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  if (request.mode === "navigate" && new URL(request.url).pathname === scope.pathname) {
    event.respondWith(navigate(request));
  } else if (request.url.startsWith(content.href)) {
    event.respondWith(keptOrFetched(request));
  }
});

async function install() {
  const response = await fetch(new URL("page.json", content));
  const { start_files: files } = await response.json();
  const index = await fetch(scope, { cache: "no-cache" });
  if (!(await index.clone().text()).includes(version)) {
    throw new Error("the server has another version by now");
  }
  const cache = await caches.open(cacheName);
  await cache.put(scope, index);
  await cache.addAll(files.map((path) => new URL(path, content)));
  // Pages of other versions are not disturbed: their addresses are not answered here.
  await self.skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) {
    if (name.startsWith(prefix) && name !== cacheName) await caches.delete(name);
  }
  await self.clients.claim();
}

/** The server's page, which may be of a newer version, or else the one kept. */
async function navigate(request) {
  try {
    return await fetch(request);
  } catch (error) {
    const kept = await (await caches.open(cacheName)).match(scope);
    if (kept) return kept;
    throw error;
  }
}

async function keptOrFetched(request) {
  const cache = await caches.open(cacheName);
  const kept = await cache.match(request);
  if (kept) return kept;
  const response = await fetch(request);
  if (response.ok) await cache.put(request, response.clone());
  return response;
}
