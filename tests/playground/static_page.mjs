// An exported world in Chromium: node static_page.mjs SCENARIO ADDRESS FOLDER '{"chromium": …}'
// FOLDER holds node_modules. The last line of the output is the outcome as JSON.

import { createRequire } from "node:module";
import { join } from "node:path";

const [, , scenario, address, folder, given] = process.argv;
const options = JSON.parse(given);
const { chromium } = createRequire(join(folder, "package.json"))("playwright-core");
// Chromium's own software in place of a graphics processor
const GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"];

async function open(browser) {
  const page = await browser.newPage({ reducedMotion: "reduce" });
  page.trouble = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type()) && !/willReadFrequently/.test(message.text())) page.trouble.push(message.text()); });
  page.on("pageerror", (error) => page.trouble.push(error.message));
  page.on("request", (request) => {
    const { protocol, host } = new URL(request.url());
    if (/^(http|ws)/.test(protocol) && host !== new URL(address).host) page.trouble.push(`outside: ${request.url()}`);
  });
  await page.goto(address);
  return page;
}

const SCENARIOS = {
  // Frames by steps, back, and on again
  async play(browser) {
    const page = await open(browser);
    const reached = (n) => page.waitForFunction((frame) => Number(document.getElementById("screen").dataset.frame) === frame, n, { timeout: 60_000 });
    const pixels = () => page.evaluate(() => document.getElementById("screen").toDataURL());
    await reached(0);
    const seen = [];
    for (let i = 1; i <= 4; i++) { await page.click("#step"); await reached(i); seen.push(await pixels()); }
    await page.locator("#timeline").fill("2");
    await reached(2);
    const again = [await pixels()];
    for (let i = 3; i <= 4; i++) { await page.click("#step"); await reached(i); again.push(await pixels()); }
    return { frames: new Set(seen).size, same: again.every((image, i) => image === seen[i + 1]), isolated: await page.evaluate(() => self.crossOriginIsolated), trouble: page.trouble };
  },

  // The same frames from WebAssembly and WebGPU for the same draws; null without WebGPU
  async runtimes(browser) {
    const page = await open(browser);
    const found = await page.evaluate(async () => {
      if (!(await navigator.gpu?.requestAdapter())) return null;
      const { isFaster, openRuntime } = await import("/static/runtimes.js"), { Normal, Stream } = await import("/static/sampler.js");
      const world = await (await fetch("/world.json")).json(), [first] = world.firstFrames;
      const bytes = Uint8Array.from(atob(first.tokens), (c) => c.charCodeAt(0));
      const tokens = new Float32Array(bytes.length / 2); // not the picture's own: any will do to compare
      for (let i = 0; i < tokens.length; i++) tokens[i] = Math.sin(i);
      const clips = {};
      for (const kind of ["wasm", "webgpu"]) {
        const stream = new Stream(await openRuntime(kind), world, new Normal(3)), clip = [];
        await stream.open(tokens, first.label);
        for (let i = 0; i < 8; i++) clip.push(...(await stream.pixels(await stream.next(new Float32Array(world.actions.length).fill(i % 2), first.label))));
        clips[kind] = clip;
      }
      const faster = await isFaster(await openRuntime("webgpu"), await openRuntime("wasm"), world, tokens);
      return { difference: Math.max(...clips.wasm.map((value, i) => Math.abs(value - clips.webgpu[i]))), faster };
    });
    return { found, trouble: page.trouble.filter((text) => !/WebGPU|powerPreference|VerifyEachNodeIsAssigned|assigned to the preferred/.test(text)) };
  },
};

const browser = await chromium.launch({ executablePath: options.chromium, args: ["--no-sandbox", ...GPU] });
try {
  console.log(JSON.stringify(await SCENARIOS[scenario](browser)));
} finally {
  await browser.close();
}
