// The page's own measurements while keys are pressed: node playground_page.mjs ADDRESS FOLDER CHROMIUM SECONDS

import { createRequire } from "node:module";
import { join } from "node:path";

const [, , address, folder, executablePath, seconds] = process.argv;
const { chromium } = createRequire(join(folder, "package.json"))("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
const begin = performance.now();
await page.goto(address);
await page.waitForFunction(() => document.getElementById("screen").dataset.frame !== undefined, null, { timeout: 60_000 });
const firstFrame = (performance.now() - begin) / 1000;
const speed = (value) => page.locator("#speed").fill(value);
const frame = () => page.evaluate(() => Number(document.getElementById("screen").dataset.frame));
const found = { seconds_until_first_frame: firstFrame };
for (const [name, value] of [["at_the_models_rate", "0"], ["twice_as_fast", "1"]]) {
  await speed(value);
  await page.evaluate(() => performance.clearMeasures());
  const from = await frame(), since = performance.now();
  const keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "Space"];
  await page.focus("#screen");
  for (let i = 0; performance.now() - since < 1000 * seconds; i++) {
    const key = keys[i % keys.length];
    await page.keyboard.down(key);
    await page.waitForTimeout(270);
    await page.keyboard.up(key);
    await page.waitForTimeout(230);
  }
  const rate = ((await frame()) - from) / ((performance.now() - since) / 1000);
  const times = await page.evaluate(() => performance.getEntriesByName("key to photon").map((entry) => entry.duration));
  times.sort((a, b) => a - b);
  const at = (share) => Number((times[Math.min(times.length - 1, Math.floor(share * times.length))] / 1000).toFixed(3));
  found[name] = { frames_per_second: Number(rate.toFixed(2)), keys: times.length, seconds_key_median: at(0.5), seconds_key_95: at(0.95) };
}
console.log(JSON.stringify(found));
await browser.close();
