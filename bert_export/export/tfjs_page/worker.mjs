// Runs the model in a thread of its own, so that the page never stands still.

import { readArtifact } from "./artifact.mjs";
import { FileError, Linker, MentionError, readJson } from "./linker.mjs";

const BUNDLES = {
  wasm: "tf-backend-wasm.min.js",
  webgl: "tf-backend-webgl.min.js",
  cpu: "tf-backend-cpu.min.js",
};

let linker = null;
let artifact = null;
let newestRequest = 0;
let cacheName = null;

self.onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    const { message, advice } = error;
    const unexpected =
      "This was not foreseen. Reload the page; if it happens again, try another " +
      "browser or backend.";
    postMessage({ type: "failed", message, advice: advice ?? unexpected });
  }
};

const handlers = {
  /** Loads everything: {artifact, version, files, cacheName, backend}. */
  async load(request) {
    const tensorflow = loadTensorFlow(request.backend);
    tensorflow.catch(() => {});
    const characters = readJson("characters.json");
    characters.catch(() => {});
    cacheName = request.cacheName;
    artifact = await readArtifact(request.artifact, {
      files: request.files,
      version: request.version,
      cache: await openCache(),
      onProgress: (progress) => postMessage({ type: "progress", ...progress }),
    });
    const active = await tensorflow;
    linker = await Linker.fromParts(
      self.tf,
      artifact,
      await characters,
      request.nilThreshold,
    );
    postMessage({ type: "ready", ...active });
  },

  /** Switches to another backend: {backend}. */
  async backend({ backend }) {
    const before = self.tf.getBackend();
    try {
      postMessage({ type: "ready", ...(await loadTensorFlow(backend)) });
    } catch (error) {
      await self.tf.setBackend(before);
      postMessage({ type: "refused", backend: before, message: error.message });
    }
  },

  /** Links a mention: {id, mention, candidates}. A newer request ends it. */
  async link({ id, mention, candidates }) {
    newestRequest = id;
    const begin = performance.now();
    try {
      const result = await linker.link(mention, candidates, {
        onProgress: (done, of) => postMessage({ type: "pairs", id, done, of }),
        isCancelled: async () => {
          await messages();
          return newestRequest !== id;
        },
      });
      if (!result) return;
      const milliseconds = performance.now() - begin;
      postMessage({ type: "linked", id, result, milliseconds });
    } catch (error) {
      if (!(error instanceof MentionError)) throw error;
      postMessage({ type: "mentionProblem", id, message: error.message });
    }
  },

  /** Keeps the artifact for offline use. */
  async keep() {
    const cache = await openCache();
    if (!cache) return;
    for (const [url, bytes] of artifact.files) {
      if (!(await cache.match(url))) await cache.put(url, new Response(bytes));
    }
    artifact = null;
    postMessage({ type: "kept" });
  },
};

/** Lets messages that wait be handled. */
function messages() {
  return new Promise((resolve) => setTimeout(resolve));
}

async function openCache() {
  // Only pages that came by HTTPS or from this computer have caches.
  return self.caches ? caches.open(cacheName) : undefined;
}

/**
 * Has the WASM backend use both of two cores.
 *
 * It takes half of what the browser reports, whatever setThreadsCount() says, as two
 * cores are often one that is shared. Of two it would leave one idle.
 */
function useAllOfFewCores() {
  if ([2, 3].includes(navigator.hardwareConcurrency)) {
    Object.defineProperty(navigator, "hardwareConcurrency", { value: 4 });
  }
}

/** Loads what a backend needs and makes it the active one. */
async function loadTensorFlow(backend) {
  try {
    // Each adds to the global tf that the first one makes.
    for (const bundle of ["tf-core.min.js", "tf-converter.min.js", BUNDLES[backend]]) {
      await import(`./tfjs/${bundle}`);
    }
  } catch (error) {
    throw new FileError(
      `TensorFlow.js could not be loaded: ${error.message}`,
      "Check the connection and that the page/ directory was copied whole, then retry.",
    );
  }
  const { tf } = self;
  useAllOfFewCores();
  tf.wasm?.setWasmPaths(new URL("./tfjs/", import.meta.url).href);
  const works = await tf.setBackend(backend).catch(() => false);
  if (!works) {
    throw new FileError(
      `This browser cannot run the ${backend} backend.`,
      "Choose another backend.",
    );
  }
  await tf.ready();
  const details = [];
  if (backend === "wasm") {
    if (await tf.env().getAsync("WASM_HAS_SIMD_SUPPORT")) details.push("SIMD");
    const threads = (await tf.env().getAsync("WASM_HAS_MULTITHREAD_SUPPORT"))
      ? tf.wasm.getThreadsCount()
      : 1;
    details.push(threads === 1 ? "1 thread" : `${threads} threads`);
  } else if (backend === "webgl") {
    details.push(`WebGL ${tf.env().getNumber("WEBGL_VERSION")}`);
  } else {
    details.push("plain JavaScript");
  }
  return { backend, details };
}
