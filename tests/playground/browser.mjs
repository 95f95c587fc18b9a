// What a person does on the page, in Chromium: node browser.mjs SCENARIO ADDRESS FOLDER '{"options": "of the scenario"}'
// FOLDER holds node_modules. The last line of the output is the outcome as JSON.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [, , scenario, address, folder, given] = process.argv;
const options = JSON.parse(given || "{}");
const { chromium } = createRequire(join(folder, "package.json"))("playwright-core");
const AXE = join(folder, "node_modules/axe-core/axe.min.js");
const SECONDS = 60_000;

const frameOf = (page) => page.evaluate(() => Number(document.getElementById("screen").dataset.frame ?? -1));
const reached = (page, frame) =>
  page.waitForFunction((n) => Number(document.getElementById("screen").dataset.frame) === n, frame, { timeout: SECONDS });
const pixels = (page) => page.evaluate(() => {
  const canvas = document.getElementById("screen");
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 < 3);
});
const violations = async (page) => {
  await page.evaluate(readFileSync(AXE, "utf-8"));
  const found = await page.evaluate(() => window.axe.run());
  return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
};
const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

const pages = [];

// Paused from the start, as reduced motion has it, so that every frame is a step of one's own.
async function open(browser, settings = {}, hash = "") {
  const context = await browser.newContext({ reducedMotion: "reduce", viewport: { width: 1280, height: 800 }, acceptDownloads: true, ...settings });
  const page = await context.newPage();
  page.trouble = [];
  pages.push(page);
  page.on("console", (message) => { if (["error", "warning"].includes(message.type()) && !/willReadFrequently/.test(message.text())) page.trouble.push(message.text()); });
  page.on("pageerror", (error) => page.trouble.push(error.message));
  page.on("requestfailed", (request) => page.trouble.push(`failed: ${request.url()}`));
  page.on("request", (request) => {
    const { protocol, host } = new URL(request.url());
    if (/^(http|ws)/.test(protocol) && host !== new URL(address).host) page.trouble.push(`outside: ${request.url()}`);
  });
  await page.goto(address + hash);
  await page.locator(".panel").waitFor({ state: "attached" });
  return page;
}

async function steps(page, count) {
  const frames = [];
  for (let i = 0; i < count; i++) {
    const next = (await frameOf(page)) + 1;
    await page.click("#step");
    await reached(page, next);
    frames.push(await pixels(page));
  }
  return frames;
}

async function watched(page, panel) {
  await panel.locator(".downloads a").first().waitFor({ timeout: SECONDS });
  return await panel.locator(".state").innerText();
}

async function choose(page, panel, values) {
  await panel.locator("[name=model]").selectOption(values.model);
  for (const [name, value] of Object.entries(values)) {
    if (name === "model") continue;
    const field = panel.locator(`[name="${name}"]`);
    if (!(await field.isVisible())) await panel.locator("summary").click();
    const kind = await field.evaluate((node) => node.type);
    if (kind === "file") await field.setInputFiles(value);
    else if (kind === "checkbox") await field.setChecked(value);
    else if (kind.startsWith("select")) await field.selectOption(String(value));
    else await field.fill(String(value));
  }
}

const SCENARIOS = {
  // Two runs with one seed: no key, and a key that is held after some frames
  async keys(browser) {
    const page = await open(browser), runs = [];
    for (const key of [null, options.key]) {
      if (runs.length) await page.click("#reset");
      await reached(page, 0);
      const before = await steps(page, options.before);
      await page.focus("#screen");
      if (key) await page.keyboard.down(key);
      const after = await steps(page, options.after);
      if (key) await page.keyboard.up(key);
      runs.push([...before, ...after]);
    }
    return { runs, trouble: page.trouble };
  },

  // Play, go back, play on: the same keys lead to the same frames, and the film holds what was played
  async rewind(browser) {
    const page = await open(browser);
    await reached(page, 0);
    const first = await steps(page, 6);
    await page.locator("#timeline").fill("2");
    await reached(page, 2);
    const again = await steps(page, 4);
    const files = [];
    for (const form of ["mp4", "gif", "png", "lerobot"]) {
      await page.click(`#save [data-format=${form}]`);
      const link = page.locator("#saved a").nth(files.length);
      await link.waitFor();
      const [download] = await Promise.all([page.waitForEvent("download"), link.click()]);
      const path = join(options.out, download.suggestedFilename());
      await download.saveAs(path);
      files.push(path);
    }
    return { first, again, files, trouble: page.trouble };
  },

  // Running by itself, keys on the page's buttons too
  async running(browser) {
    const page = await open(browser, { reducedMotion: "no-preference" });
    await page.waitForFunction(() => Number(document.getElementById("screen").dataset.frame) > 5, null, { timeout: SECONDS });
    await page.locator("#keys button").first().hover();
    await page.mouse.down();
    await page.waitForFunction(() => document.getElementById("latency").textContent.includes("ms"), null, { timeout: SECONDS });
    await page.mouse.up();
    const numbers = await page.locator(".numbers").innerText();
    await page.click("#go");
    await page.waitForTimeout(300);
    const stopped = await frameOf(page);
    await page.waitForTimeout(500);
    return { numbers, moved: (await frameOf(page)) - stopped, trouble: page.trouble };
  },

  // One clip of each listed call
  async watch(browser) {
    const page = await open(browser), states = [];
    await page.click("#tab-watch");
    const panel = page.locator(".panel").first();
    for (const values of options.calls) {
      await choose(page, panel, values);
      await panel.locator("button.primary").click();
      await panel.locator(".downloads a").first().waitFor({ state: "detached" });
      states.push(await watched(page, panel));
    }
    if (options.picture) await page.screenshot({ path: options.picture });
    return { states, trouble: page.trouble };
  },

  // Two panels under one seed, and the link that leads back to the settings
  async compare(browser) {
    const page = await open(browser);
    await page.click("#tab-watch");
    await page.locator("#second").check();
    const panels = page.locator(".panel");
    await choose(page, panels.nth(0), { ...options.call, seed: 7 });
    await choose(page, panels.nth(1), options.call);
    await panels.nth(0).locator("button.primary").click();
    const states = [await watched(page, panels.nth(0)), await watched(page, panels.nth(1))];
    const grab = (i) => panels.nth(i).locator("canvas.clip").evaluate((canvas) => canvas.toDataURL());
    const clips = [await grab(0), await grab(1)];
    const link = await panels.nth(0).locator(".share").getAttribute("href");
    const other = await open(browser, {}, link);
    await watched(other, other.locator(".panel").first());
    clips.push(await other.locator("canvas.clip").first().evaluate((canvas) => canvas.toDataURL()));
    return { states, link, same: clips.every((clip) => clip === clips[0]), trouble: [...page.trouble, ...other.trouble] };
  },

  // A rectangle drawn with the mouse over the uploaded clip
  async region(browser) {
    const page = await open(browser), sent = [];
    page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => sent.push(JSON.parse(payload))));
    await page.click("#tab-watch");
    const panel = page.locator(".panel").first();
    const seen = page.waitForResponse((response) => response.url().includes("/first-frame/"));
    await choose(page, panel, { model: options.model, task: "inpaint-central", paste_given: true, task_video: options.video });
    await seen;
    await panel.locator(".region canvas").scrollIntoViewIfNeeded();
    const { x, y, width, height } = await panel.locator(".region canvas").boundingBox();
    await page.mouse.move(x + 6, y + 6);
    await page.mouse.down();
    await page.mouse.move(x + 0.5 * width, y + 0.5 * height, { steps: 4 });
    await page.mouse.up();
    const link = await panel.locator(".share").getAttribute("href");
    await panel.locator("button.primary").click();
    const state = await watched(page, panel);
    if (options.picture) await page.screenshot({ path: options.picture });
    await panel.locator("[name=task]").selectOption("frame-prediction");
    return { state, link, region: sent.at(-1).options.region, hidden: await panel.locator(".region").isHidden(), trouble: page.trouble };
  },

  // A clip that takes long is stopped
  async stop(browser) {
    const page = await open(browser);
    await page.click("#tab-watch");
    const panel = page.locator(".panel").first();
    await choose(page, panel, options.call);
    await panel.locator("button.primary").click();
    await page.waitForFunction(() => /step/.test(document.querySelector(".panel .state").textContent), null, { timeout: SECONDS });
    await panel.locator("[name=stop]").click();
    const state = await panel.locator(".state").innerText();
    await page.waitForTimeout(1000);
    return { state, later: await panel.locator(".state").innerText(), trouble: page.trouble };
  },

  // For everyone: axe-core, a phone, 200 % zoom (half the width), the keyboard alone
  async everyone(browser) {
    const found = [];
    const views = { light: { colorScheme: "light" }, dark: { colorScheme: "dark" }, phone: { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true }, zoomed: { viewport: { width: 640, height: 400 } } };
    for (const [name, settings] of Object.entries(views)) {
      const page = await open(browser, settings);
      await reached(page, 0);
      for (const view of ["play", "watch"]) {
        await page.click(`#tab-${view}`);
        found.push(...(await violations(page)).map((violation) => `${name}, ${view}: ${violation}`));
        if ((await overflow(page)) > 0) found.push(`${name}, ${view}: wider than the window`);
      }
      found.push(...page.trouble);
      await page.context().close();
    }
    const page = await open(browser), visited = [];
    await reached(page, 0);
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press("Tab");
      visited.push(await page.evaluate(() => document.activeElement.id || document.activeElement.dataset.action || document.activeElement.tagName));
    }
    return { found, visited, trouble: page.trouble };
  },
};

const browser = await chromium.launch({ executablePath: options.chromium, args: ["--no-sandbox"] });
try {
  console.log(JSON.stringify(await SCENARIOS[scenario](browser)));
} catch (error) {
  for (const page of pages) console.error(page.trouble, await page.locator("#notice").innerText());
  throw error;
} finally {
  await browser.close();
}
