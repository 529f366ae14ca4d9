// Uses the page in Chromium as people do; prints what it found as JSON.
// node browse.mjs SCENARIO ADDRESS PACKAGES CHROMIUM [ARGUMENT]

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [scenario, address, packages, executablePath, argument] = process.argv.slice(2);
const { chromium } = createRequire(`${packages}/`)("playwright-core");
const SECONDS = 1000;

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  console.log(JSON.stringify((await scenarios()[scenario]()) ?? null));
} finally {
  await browser.close();
}

async function open(options = {}, url = address) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(30 * SECONDS);
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error") page.errors.push(message.text());
  });
  await page.goto(url);
  return page;
}

/** Waits until the mention is ranked, or what else is said in its place. */
async function settled(page, title) {
  await page.waitForFunction((wanted) => {
    const results = document.querySelector(".results");
    const found = results.querySelector("h2").textContent;
    return (
      document.body.dataset.state === "ready" &&
      !results.hidden &&
      !results.hasAttribute("aria-busy") &&
      (!wanted || found === `Candidates for “${wanted}”`)
    );
  }, title);
}

async function ranking(page) {
  const items = await page.locator(".candidate").all();
  return Promise.all(
    items.map(async (item) => ({
      id: await item.getAttribute("data-id"),
      score: Number(await item.getAttribute("data-score")),
      share: await item.locator(".share").textContent(),
    })),
  );
}

/** Types a text and selects a part of it, as a mouse would. */
async function choose(page, text, surface) {
  await page.fill("#text", text);
  await page.locator("#text").evaluate((field, part) => {
    const start = field.value.indexOf(part);
    field.focus();
    field.setSelectionRange(start, start + part.length);
  }, surface);
  await settled(page, surface);
}

async function failed(page) {
  await page.waitForSelector(".failure:not([hidden])");
  return {
    message: await page.textContent(".failure .message"),
    advice: await page.textContent(".failure .advice"),
    role: await page.getAttribute(".failure", "role"),
  };
}

function scenarios() {
  return {
    /** From the first look to a mention selected with the mouse. */
    async path() {
      const page = await open();
      await settled(page, "bank");
      const example = await ranking(page);
      assert.match(await page.textContent("#announcement"), /^3 candidates for bank/);
      await page.locator(".examples button").nth(2).click();
      await settled(page, "北京");
      const second = await ranking(page);
      await page.fill("#text", "bank of money");
      assert.ok(await page.locator(".results").isHidden());
      assert.match(await page.textContent("#hint"), /Nothing is selected/);
      await page.dblclick("#text", { position: { x: 25, y: 22 } });
      await settled(page, "bank");
      const typed = await ranking(page);
      assert.equal(await page.textContent(".backdrop mark"), "bank");
      // Typing behind the mention keeps it.
      await page.press("#text", "Control+End");
      await page.keyboard.type(" of the river");
      await settled(page, "bank");
      assert.equal(await page.textContent(".backdrop mark"), "bank");
      const latency = await page.textContent(".latency");
      assert.match(latency, /ms for 3 pairs on WASM, .* median of \d+ mentions is/);
      const active = await page.textContent("#active");
      assert.deepEqual(page.errors, []);
      return { example, second, typed, active };
    },

    /** Nothing but keys. */
    async keyboard() {
      const page = await open();
      await settled(page, "bank");
      const names = [];
      const rings = [];
      for (let step = 0; step < 9; step += 1) {
        await page.keyboard.press("Tab");
        const [name, ring] = await page.evaluate(() => {
          const at = document.activeElement;
          const label = at.labels?.[0]?.textContent.trim();
          const shown = at.closest(".editor") ?? at.nextElementSibling ?? at;
          const outlined = [at, shown].some(
            (element) => getComputedStyle(element).outlineStyle !== "none",
          );
          return [at.id || label || at.textContent.trim(), outlined];
        });
        names.push(name);
        rings.push(ring);
      }
      assert.deepEqual(names.slice(0, 6), [
        "text",
        "previous",
        "next",
        "shorter",
        "longer",
        "Add a candidate of your own",
      ]);
      const without = names[rings.indexOf(false)];
      assert.ok(rings.every(Boolean), `no visible focus: ${without}`);
      // By words.
      await page.focus("#next");
      await page.keyboard.press("Enter");
      await settled(page, "of");
      await page.focus("#longer");
      await page.keyboard.press("Space");
      await settled(page, "of the");
      await page.keyboard.press("Space");
      await settled(page, "of the river");
      await page.focus("#shorter");
      await page.keyboard.press("Space");
      await settled(page, "of the");
      // With Shift and arrow keys.
      await page.focus("#text");
      await page.keyboard.press("Control+a");
      await page.keyboard.type("river of money");
      await page.keyboard.press("Control+Home");
      for (let step = 0; step < 5; step += 1) {
        await page.keyboard.press("Shift+ArrowRight");
      }
      await settled(page, "river");
      const announced = await page.textContent("#announcement");
      assert.match(announced, /^2 candidates for river\. First: /);
      assert.equal(await page.getAttribute("#announcement", "aria-live"), "polite");
      const selected = await ranking(page);
      // A candidate of one's own.
      await page.focus(".own summary");
      await page.keyboard.press("Enter");
      await page.keyboard.press("Tab");
      await page.keyboard.type("money");
      await page.keyboard.press("Tab");
      await page.keyboard.type("a place of the bank");
      await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
      await page.waitForSelector(".remove");
      await settled(page, "river");
      assert.equal((await ranking(page)).length, 3);
      await page.focus(".remove");
      await page.keyboard.press("Enter");
      await page.waitForSelector(".remove", { state: "detached" });
      await settled(page, "river");
      return { selected };
    },

    /** Each backend in turn ranks alike. */
    async backends() {
      const page = await open();
      await settled(page, "bank");
      const found = {};
      for (const backend of ["cpu", "webgl", "wasm"]) {
        await page.focus("[name=backend]:checked");
        await page.dispatchEvent(`[name=backend][value=${backend}]`, "click");
        await page.waitForFunction(
          (name) => document.querySelector("#active").textContent.startsWith(name),
          { cpu: "CPU is", webgl: "WebGL is", wasm: "WASM is" }[backend],
        );
        await settled(page, "bank");
        found[backend] = {
          ranking: await ranking(page),
          active: await page.textContent("#active"),
        };
      }
      assert.deepEqual(page.errors, []);
      return found;
    },

    /** A file is wrong; says what the page says, before and after it is mended. */
    async wrong() {
      const page = await open();
      return failed(page);
    },

    /** Weights are missing at first: retry goes on where it stopped. */
    async retry() {
      const context = await browser.newContext();
      const page = await context.newPage();
      page.setDefaultTimeout(30 * SECONDS);
      await context.route("**/*.bin*", (route) => route.abort());
      await page.goto(address);
      const failure = await failed(page);
      await context.unroute("**/*.bin*");
      await page.focus(".failure button");
      await page.keyboard.press("Enter");
      await settled(page, "bank");
      assert.ok(await page.locator(".failure").isHidden());
      return failure;
    },

    /** Works when the server (its process id is the argument) has gone. */
    async offline() {
      const page = await open();
      await settled(page, "bank");
      await page.waitForFunction(() => document.body.dataset.kept === "true");
      const online = await ranking(page);
      process.kill(Number(argument), "SIGINT");
      // Until nobody listens any more.
      while (
        await fetch(address).then(
          () => true,
          () => false,
        )
      );
      await page.reload();
      await settled(page, "bank");
      const offline = await ranking(page);
      await page.locator(".examples button").nth(1).click();
      await settled(page, "river");
      const second = (await ranking(page)).length;
      await page.dispatchEvent("[name=backend][value=cpu]", "click");
      await page.waitForFunction(() =>
        document.querySelector("#active").textContent.includes("stays active"),
      );
      await settled(page, "river");
      return { online, offline, second };
    },

    /** A new version at the same address (the argument) takes the old one's place. */
    async versions() {
      const page = await open();
      await page.waitForFunction(() => document.body.dataset.kept === "true");
      const first = await page.getAttribute("body", "data-version");
      await fetch(argument);
      await page.reload();
      await settled(page, "bank");
      const second = await page.getAttribute("body", "data-version");
      await page.waitForFunction(() => document.body.dataset.kept === "true");
      const caches = await page.evaluate(() => window.caches.keys());
      const urls = await page.evaluate(async () => {
        const [name] = await window.caches.keys();
        const requests = await (await window.caches.open(name)).keys();
        return requests.map((request) => request.url);
      });
      return { first, second, caches, urls, notice: await page.textContent(".notice") };
    },

    /** As narrow as phones are. */
    async phone() {
      const page = await open({
        viewport: { width: 360, height: 640 },
        isMobile: true,
        hasTouch: true,
        deviceScaleFactor: 2,
      });
      await settled(page, "bank");
      const width = () => page.evaluate(() => document.documentElement.scrollWidth);
      assert.equal(await width(), 360);
      await choose(page, `${"unable".repeat(40)} bank`, "bank");
      assert.equal(await width(), 360);
      await page.tap(".own summary");
      assert.equal(await width(), 360);
      const small = await page.evaluate(() =>
        Array.from(document.querySelectorAll("button, summary, .choices label"))
          .filter((element) => element.checkVisibility())
          .filter((element) => element.getBoundingClientRect().height < 24)
          .map((element) => element.textContent),
      );
      assert.deepEqual(small, []);
    },

    /** Texts that trip pages over. */
    async texts() {
      const page = await open();
      await settled(page, "bank");
      const found = {};
      for (const [name, text, surface] of JSON.parse(argument)) {
        await choose(page, text, surface);
        found[name] = {
          ranking: await ranking(page),
          notice: await page.textContent(".results .notice"),
          hint: await page.textContent("#hint"),
          direction: await page
            .locator("#text")
            .evaluate((field) => (field.matches(":dir(rtl)") ? "rtl" : "ltr")),
        };
      }
      assert.deepEqual(page.errors, []);
      return found;
    },

    /** No candidate: says so, and offers names that are spelt alike. */
    async unknown() {
      const page = await open();
      await settled(page, "bank");
      await choose(page, "the banks of the river", "banks");
      const notice = await page.textContent(".results .notice");
      const near = await page.locator(".near button").allTextContents();
      await page.locator(".near button", { hasText: /^bank$/ }).click();
      await page.waitForSelector(".candidate");
      await settled(page, "banks");
      const used = await page.textContent(".results .notice");
      return { notice, near, used, ranking: await ranking(page) };
    },

    /** Colours follow the system, and can be read: contrast of text is 4.5 or more. */
    async colours() {
      const lowest = {};
      for (const colorScheme of ["light", "dark"]) {
        const page = await open({ colorScheme, reducedMotion: "reduce" });
        await settled(page, "bank");
        lowest[colorScheme] = await page.evaluate(lowestContrast);
        const transitions = await page.evaluate(() =>
          Array.from(document.querySelectorAll("*"), (element) =>
            parseFloat(getComputedStyle(element).transitionDuration),
          ),
        );
        assert.equal(Math.max(...transitions), 0);
      }
      return lowest;
    },
  };
}

/** The lowest contrast (WCAG 2) of any visible text with what lies behind it. */
function lowestContrast() {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = numbers(colour)
      .slice(0, 3)
      .map((value) => value / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    const alpha = numbers(colour)[3] ?? 1;
    return alpha || !element.parentElement ? colour : behind(element.parentElement);
  };
  let lowest = [99, "", ""];
  for (const element of document.querySelectorAll("main *")) {
    const hasText = Array.from(element.childNodes).some(
      (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim(),
    );
    if (!hasText || !element.checkVisibility()) continue;
    if (element.closest(".backdrop")) continue;
    const pair = [getComputedStyle(element).color, behind(element)].map(luminance);
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, element.tagName, element.textContent];
  }
  return lowest;
}
