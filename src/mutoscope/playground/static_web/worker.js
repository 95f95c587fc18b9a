// The model in a worker: answers the same messages as the server of `mutoscope play`.

import { isFaster, openRuntime, otherRuntime } from "./runtimes.js";
import { Normal, Stream } from "./sampler.js";

const IN_FLIGHT = 2, REMEMBERED = 600;
let world, runtime, candidate = null, stream, cards = [], start = null, tried = false;
let action = {}, actionId = 0, running = false, steps = 0, interval = 100, due = 0, shown = 0, busy = false, label = -1;

async function open() {
  world = await (await fetch(new URL("../world.json", import.meta.url))).json();
  runtime = await openRuntime("wasm");
  postMessage({ type: "ready" });
}

// A graphics processor is looked for once there is something to see: its runtime is large, and nobody waits for it.
async function look() {
  candidate = await otherRuntime();
  work();
}

// Between two frames it is timed, and takes over if it is faster.
async function compare() {
  const other = candidate;
  candidate = null;
  if (!(await isFaster(other, runtime, world, halves(world.firstFrames[0].tokens)))) return;
  runtime = other;
  stream.runtime = other;
}

function halves(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), found = new Float32Array(bytes.length / 2);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < found.length; i++) {
    const half = view.getUint16(2 * i, true), sign = half >> 15 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
    found[i] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : (fraction / 1024) * 2 ** -14);
  }
  return found;
}

const scaled = () => Float32Array.from(world.actions, ({ name, offset, scale }) => ((action[name] || 0) - offset) / scale);

async function show(index, tokens, times) {
  const begin = performance.now();
  const pixels = await stream.pixels(tokens), decoded = performance.now();
  const image = new ImageData(pixels, world.width, world.height);
  cards[index] = { tokens, bookmark: stream.bookmark(), times };
  if (index > REMEMBERED) delete cards[index - REMEMBERED];
  postMessage({ type: "frame", view: "model", index, action_id: times.id, sampling_ms: times.sampling, decoding_ms: decoded - begin, image });
}

async function begin(message) {
  start = message;
  label = message.class_label === null ? -1 : Math.max(world.classes.indexOf(message.class_label), Number.isInteger(message.class_label) ? message.class_label : -1);
  const fitting = world.firstFrames.filter((frame) => (message.first_frame ? frame.name === message.first_frame : label < 0 || frame.label === label));
  const draws = new Normal(message.seed || 0);
  const chosen = fitting[Math.floor(draws.uniform() * fitting.length)] || world.firstFrames[0];
  if (label < 0) label = chosen.label;
  stream = new Stream(runtime, world, draws);
  const tokens = halves(chosen.tokens);
  await stream.open(tokens, label);
  cards = []; shown = 0; running = !message.paused; steps = 0; interval = 1000 / world.fps; due = 0;
  postMessage({ type: "started", model: world.name, width: world.width, height: world.height, fps: world.fps, seed: message.seed || 0, actions: world.actions, real: false, remembered: REMEMBERED });
  await show(0, tokens, { id: actionId, sampling: 0 });
  if (!tried) { tried = true; look(); }
}

async function rewind(index) {
  const card = cards[index];
  if (!card) { postMessage({ type: "error", message: `Frame ${index} is not remembered.` }); return; }
  cards.length = index + 1;
  await stream.rewind(card.bookmark);
  shown = index;
  await show(index, card.tokens, card.times);
}

async function draw() {
  const index = cards.length, id = actionId, begun = performance.now();
  const tokens = await stream.next(scaled(), label);
  await show(index, tokens, { id, sampling: performance.now() - begun });
  await stream.workAhead(); // before the keys of the next frame are read
}

const asked = [];
async function work() {
  if (busy || !runtime) return;
  busy = true;
  try {
    for (;;) {
      const message = asked.shift();
      if (message) {
        if (message.type === "start") await begin(message);
        else if (message.type === "rewind") { running = false; steps = 0; await rewind(message.frame); }
        else if (message.type === "reset") await rewind(0);
        continue;
      }
      if (candidate && stream) { await compare(); continue; }
      const may = stream && (running || steps > 0) && cards.length - 1 - shown < IN_FLIGHT;
      if (!may) break;
      const left = due - performance.now();
      if (left > 0) { setTimeout(work, left); break; }
      due = Math.max(due + interval, performance.now());
      steps = Math.max(0, steps - 1);
      await draw();
    }
  } catch (error) {
    postMessage({ type: "error", message: String(error.message || error) });
  } finally {
    busy = false;
  }
}

onmessage = ({ data }) => {
  if (data.type === "action") { action = data.action; actionId = data.id; }
  else if (data.type === "pause") running = false;
  else if (data.type === "go") { running = true; due = 0; }
  else if (data.type === "step") { running = false; steps += 1; }
  else if (data.type === "rate") interval = 1000 / data.fps;
  else if (data.type === "shown") shown = Math.max(shown, data.frame);
  else asked.push(data);
  work();
};

open().then(work, (error) => { throw error; });
