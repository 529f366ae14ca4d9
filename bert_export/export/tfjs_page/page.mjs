// The page: text and mention in, ranked candidates out; the model runs in worker.mjs.

import { AliasTable, normalize } from "./aliases.mjs";
import { FileError, readFile } from "./files.mjs";
import { MentionField } from "./mention.mjs";
import { codePoints } from "./tokenizer.mjs";

const ARTIFACT = new URL("../../", import.meta.url);
const BACKEND_NAMES = { wasm: "WASM", webgl: "WebGL", cpu: "CPU" };
// Selecting with the mouse or the arrow keys passes many mentions by.
const PAUSE_MILLISECONDS = 150;

const find = (selector) => document.querySelector(selector);
const results = find(".results");
const field = new MentionField(find("#text"), find(".backdrop"), mentionChanged);

let worker = null;
let page = null; // page.json
let aliases = null;
let active = null; // The backend at work: {backend, details}.
let pause = 0;
let request = 0;
let current = null; // What is ranked: {id, surface, candidates, asked}.
let latencies = [];
let isFirstAnswer = true;
const own = new Map(); // Candidates of one's own, by normalized surface form.

start();

async function start() {
  setState("loading");
  try {
    page = await readPage();
    aliases = new AliasTable(new URL("aliases/", import.meta.url), page.aliases);
    find("#model-name").textContent = page.name;
    showExamples();
    if (!field.text && page.examples.length) showExample(page.examples[0]);
    else mentionChanged();
    startWorker();
  } catch (error) {
    fail(error.message, error.advice ?? "Reload the page.");
  }
}

/** The cache of this version; service_worker.js forms the same name. */
function cacheName() {
  return `bert_export ${new URL("../", import.meta.url).pathname} ${page.version}`;
}

async function readPage() {
  const bytes = await readFile(new URL("page.json", import.meta.url));
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new FileError(
      "page.json is damaged.",
      "Copy the whole artifact to the server again, then retry.",
    );
  }
}

function setState(state) {
  document.body.dataset.state = state;
  find(".loading").hidden = state !== "loading";
  find(".failure").hidden = state !== "failed";
  for (const radio of document.querySelectorAll("[name=backend]")) {
    radio.disabled = state !== "ready";
  }
}

// --- the model ---------------------------------------------------------------------

function startWorker() {
  worker?.terminate();
  active = null;
  worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => answers[data.type](data);
  worker.onerror = (event) => {
    event.preventDefault();
    fail(
      "The part of the page that runs the model could not be loaded.",
      "Check the connection and that the page/ directory was copied whole, then retry.",
    );
  };
  worker.postMessage({
    type: "load",
    artifact: ARTIFACT.href,
    version: page.version,
    files: page.files,
    nilThreshold: page.nil_threshold,
    cacheName: cacheName(),
    backend: chosenBackend(),
  });
}

const answers = {
  progress({ loaded, total }) {
    const progress = find("progress");
    progress.max = total;
    progress.value = loaded;
    find(".loading .amount").textContent =
      `${megabytes(loaded)} of ${megabytes(total)} MB`;
    if (loaded >= total) find("#loading-label").textContent = "Preparing the model";
  },

  ready({ backend, details }) {
    active = { backend, details };
    latencies = [];
    setState("ready");
    find("#active").textContent =
      `${BACKEND_NAMES[backend]} is active: ${details.join(", ")}.`;
    rank();
  },

  refused({ backend, message }) {
    setState("ready");
    find(`[name=backend][value=${backend}]`).checked = true;
    find("#active").textContent = `${message} ${BACKEND_NAMES[backend]} stays active.`;
  },

  failed({ message, advice }) {
    fail(message, advice);
  },

  pairs({ id, done, of }) {
    if (id !== current?.id || done === of) return;
    find(".latency").textContent = `Ranking: ${done} of ${of} candidates`;
  },

  linked({ id, result, milliseconds }) {
    if (id !== current?.id) return;
    latencies.push(milliseconds);
    showRanked(result);
    if (isFirstAnswer) firstAnswer();
  },

  mentionProblem({ id, message }) {
    if (id !== current?.id) return;
    showNotice(message);
    announce(message);
  },

  kept() {
    showOffline();
  },
};

function fail(message, advice) {
  worker?.terminate();
  worker = null;
  setState("failed");
  find(".failure .message").textContent = message;
  find(".failure .advice").textContent = advice;
  results.hidden = true;
}

find(".failure button").addEventListener("click", () => {
  find("progress").value = 0;
  find("#loading-label").textContent = "Loading the model";
  find("#text").focus();
  start();
});

function chosenBackend() {
  return find("[name=backend]:checked").value;
}

find(".choices").addEventListener("change", () => {
  active = null;
  find("#active").textContent = `Switching to ${BACKEND_NAMES[chosenBackend()]} …`;
  for (const radio of document.querySelectorAll("[name=backend]")) {
    // Not all of them: the one that has the focus would lose it.
    radio.disabled = !radio.checked;
  }
  document.body.dataset.state = "switching";
  worker.postMessage({ type: "backend", backend: chosenBackend() });
});

function firstAnswer() {
  isFirstAnswer = false;
  performance.mark("first-answer");
  const seconds = performance.getEntriesByName("first-answer")[0].startTime / 1000;
  find("#first-answer").textContent =
    `First answer ${seconds.toFixed(1)} seconds after the page was opened.`;
  keepForOffline();
}

// --- offline use -------------------------------------------------------------------

async function keepForOffline() {
  if (!navigator.serviceWorker || !globalThis.caches) {
    find("#offline").textContent =
      "Not kept for offline use: that needs HTTPS, or a server on this computer.";
    return;
  }
  try {
    const scope = new URL("../", import.meta.url);
    const script = new URL(`service_worker.js?v=${page.version}`, scope);
    await activated(await navigator.serviceWorker.register(script, { scope }));
    const cache = await caches.open(cacheName());
    const surfaces = page.examples.map((example) => surfaceOf(example));
    const shards = new Set(surfaces.map((surface) => aliases.url(surface).href));
    await cache.addAll([...shards]);
    worker.postMessage({ type: "keep" });
  } catch (error) {
    find("#offline").textContent = `Not kept for offline use: ${error.message}`;
  }
}

/** Waits until a service worker is at work; the browser gives one that fails up. */
function activated(registration) {
  const installed = registration.installing ?? registration.waiting;
  return new Promise((resolve, reject) => {
    const look = () => {
      if (!installed || installed.state === "activated") resolve();
      if (installed?.state === "redundant") reject(new Error("files are missing."));
    };
    installed?.addEventListener("statechange", look);
    look();
  });
}

function showOffline() {
  find("#offline").textContent =
    "Kept on this device: works offline, for the examples and what was looked up.";
  document.body.dataset.kept = "true";
}

// --- text and mention --------------------------------------------------------------

for (const [id, act] of Object.entries({
  previous: () => field.move(-1),
  next: () => field.move(1),
  shorter: () => field.resize(-1),
  longer: () => field.resize(1),
})) {
  find(`#${id}`).addEventListener("click", act);
}

function showExamples() {
  const items = page.examples.map((example) => {
    const characters = codePoints(example.text);
    const mention = document.createElement("b");
    mention.textContent = surfaceOf(example);
    const button = document.createElement("button");
    button.type = "button";
    button.dir = "auto";
    button.append(
      characters.slice(0, example.start).join(""),
      mention,
      characters.slice(example.end).join(""),
    );
    button.addEventListener("click", () => showExample(example));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  find(".examples ul").replaceChildren(...items);
  find(".examples").hidden = !items.length;
}

function surfaceOf({ text, start, end }) {
  return codePoints(text).slice(start, end).join("");
}

function showExample({ text, start, end }) {
  const characters = codePoints(text);
  const first = characters.slice(0, start).join("").length;
  const last = characters.slice(0, end).join("").length;
  field.set(text, first, last);
  find(".composer").scrollIntoView({ block: "nearest" });
}

/** Text or mention are others: says what is to be done, or ranks. */
function mentionChanged() {
  clearTimeout(pause);
  current = null;
  find("#hint").textContent = hint();
  if (!field.hasMention) {
    results.hidden = true;
    return;
  }
  pause = setTimeout(() => rank(), PAUSE_MILLISECONDS);
}

function hint() {
  if (!field.text.trim()) {
    return "Type or paste a sentence, then select a mention in it.";
  }
  if (!field.hasMention) {
    return (
      "Nothing is selected. Select a word or phrase: with the mouse, with Shift and " +
      "the arrow keys, or with the buttons."
    );
  }
  const length = codePoints(field.text).length;
  return length > 1000
    ? `${length.toLocaleString("en")} characters. ` +
        "The model reads those around the mention."
    : "Select another mention at any time, or change the text.";
}

/** Looks up the mention's candidates, under another name if asked, and ranks them. */
async function rank(asked = field.surface) {
  clearTimeout(pause);
  if (!field.hasMention || !page) return;
  request += 1;
  const id = request;
  current = { id, surface: field.surface, asked, candidates: null };
  results.hidden = false;
  results.setAttribute("aria-busy", "true");
  const title = `Candidates for “${shortened(field.surface)}”`;
  find("#results-title").textContent = title;
  let candidates;
  try {
    candidates = await aliases.lookup(asked);
  } catch (error) {
    if (id === current?.id) showNotice(`${error.message} ${error.advice ?? ""}`);
    return;
  }
  if (id !== current?.id) return;
  current.candidates = [...candidates, ...(own.get(normalize(current.surface)) ?? [])];
  if (!active) {
    if (document.body.dataset.state === "loading") {
      showNotice("Waiting for the model …");
    }
    return;
  }
  const near = candidates.length > 1 ? [] : await aliases.near(asked);
  if (id !== current?.id) return;
  current.near = near;
  const before = codePoints(field.text.slice(0, field.start)).length;
  const mention = {
    text: field.text,
    start: before,
    end: before + codePoints(field.surface).length,
  };
  if (current.candidates.length) {
    worker.postMessage({ type: "link", id, mention, candidates: current.candidates });
  } else {
    showNone();
  }
}

function shortened(text) {
  const characters = codePoints(text);
  return characters.length <= 60 ? text : `${characters.slice(0, 59).join("")}…`;
}

// --- results -----------------------------------------------------------------------

/** Says something in place of a ranking. */
function showNotice(text) {
  results.removeAttribute("aria-busy");
  find(".results ol").replaceChildren();
  find(".results .legend").hidden = true;
  find(".near").hidden = true;
  find(".latency").textContent = "";
  find(".results .notice").textContent = text;
  find(".results .notice").hidden = false;
}

function showNone() {
  const surface = shortened(current.surface);
  const text =
    `The alias table has no entity named “${surface}”. Names must match in full; ` +
    "an inflected word may be missing.";
  showNotice(text);
  showNear();
  const near = current.near.join(", ");
  announce(near ? `${text} Names that are spelt alike: ${near}.` : text);
}

/** Offers the candidates of names that are spelt like the mention. */
function showNear() {
  const { near } = current;
  const items = near.map((alias) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dir = "auto";
    button.textContent = alias;
    button.addEventListener("click", () => rank(alias));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  find(".near ul").replaceChildren(...items);
  find(".near").hidden = !items.length;
}

function showRanked(result) {
  const { candidates, isNil, nilProbability, textPieces, readPieces } = result;
  results.removeAttribute("aria-busy");
  showNear();
  const notices = [];
  if (normalize(current.asked) !== normalize(current.surface)) {
    notices.push(`These are the candidates of “${current.asked}”.`);
  }
  if (isNil) {
    notices.push(
      `None is likely enough (below ${page.nil_threshold.toFixed(2)}): the model ` +
        `would link this mention to nothing.`,
    );
  }
  if (readPieces < textPieces) {
    notices.push(
      `Of the text's ${textPieces.toLocaleString("en")} word pieces the model reads ` +
        `${readPieces} around the mention.`,
    );
  }
  find(".results .notice").textContent = notices.join(" ");
  find(".results .notice").hidden = !notices.length;
  find(".results ol").replaceChildren(...candidates.map(rankedItem));
  find(".results .legend").hidden = false;
  find(".latency").textContent = latencyText(candidates.length);
  const nil = probabilityText(nilProbability);
  find("#nil").textContent = `That none of them is meant: ${nil}.`;
  const [best] = candidates;
  const { name, description } = best.candidate;
  announce(
    `${count(candidates.length, "candidate")} for ${current.surface}. First: ` +
      `${name}, ${description}, ${percent(best.share)}. ${notices.join(" ")}`,
  );
}

function rankedItem({ candidate, share, probability, score }, index) {
  const item = element("li", "candidate");
  item.dataset.id = candidate.id;
  item.dataset.score = score;
  const what = element("div", "what");
  const title = element("h3");
  title.dir = "auto";
  title.textContent = candidate.name;
  if (candidate.aliases.length) {
    title.append(" ", element("span", "aliases", candidate.aliases.join(", ")));
  }
  const description = element("p", "description", candidate.description);
  description.dir = "auto";
  what.append(title, description);
  const numbers = element("div", "numbers");
  numbers.append(
    element("span", "share", percent(share)),
    element("span", "probability", probabilityText(probability)),
  );
  const bar = element("div", "bar");
  bar.style.setProperty("--share", `${100 * share}%`);
  item.append(element("span", "rank", `${index + 1}`), what, numbers, bar);
  if (candidate.isOwn) item.append(removeButton(candidate));
  return item;
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function latencyText(pairs) {
  const sorted = latencies.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  const many =
    latencies.length > 1
      ? ` The median of ${latencies.length} mentions is ${milliseconds(median)}.`
      : "";
  return (
    `${milliseconds(latencies.at(-1))} for ${count(pairs, "pair")} on ` +
    `${BACKEND_NAMES[active.backend]}, from text to scores.${many} The look-up of ` +
    "candidates is not counted."
  );
}

function probabilityText(probability) {
  return probability < 0.001 ? "p < 0.001" : `p ${probability.toFixed(3)}`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function announce(text) {
  find("#announcement").textContent = text;
}

function percent(share) {
  const value = 100 * share;
  return `${value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

// --- candidates of one's own -------------------------------------------------------

find(".own form").addEventListener("submit", (event) => {
  event.preventDefault();
  const values = new FormData(event.target);
  const key = normalize(field.surface);
  const added = {
    id: `own:${crypto.randomUUID?.() ?? Math.random()}`,
    name: values.get("name").trim(),
    aliases: [],
    description: values.get("description").trim(),
    isOwn: true,
  };
  own.set(key, [...(own.get(key) ?? []), added]);
  event.target.reset();
  rank(current?.asked);
});

function removeButton(candidate) {
  const button = element("button", "remove", "Remove");
  button.type = "button";
  button.setAttribute("aria-label", `Remove ${candidate.name}`);
  button.addEventListener("click", () => {
    const key = normalize(field.surface);
    own.set(
      key,
      own.get(key).filter(({ id }) => id !== candidate.id),
    );
    find(".own summary").focus();
    rank(current?.asked);
  });
  return button;
}
