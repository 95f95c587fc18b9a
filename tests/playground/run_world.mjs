// Runs an exported world in Node under given draws and actions: node run_world.mjs FOLDER INPUT.json OUTPUT.json

import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [folder, input, output] = process.argv.slice(2);
const module = (name) => import(pathToFileURL(path.join(path.resolve(folder), name)));
const { Stream } = await module("static/sampler.js");
const ort = await module("runtime/ort.wasm.min.mjs");
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = pathToFileURL(path.join(path.resolve(folder), "runtime/")).href;

const world = JSON.parse(await readFile(path.join(folder, "world.json")));
const { draws, actions, label, tokens } = JSON.parse(await readFile(input));
const sessions = {};
for (const name of ["pass", "head", "decoder"]) {
  sessions[name] = await ort.InferenceSession.create(await readFile(path.join(folder, `${name}.onnx`)));
}
let at = 0;
const take = (count) => {
  const found = Float32Array.from(draws[at++]);
  if (found.length !== count) throw new Error(`draw ${at}: ${count} numbers were asked for, there are ${found.length}`);
  return found;
};
const stream = new Stream({ ort, sessions }, world, { uniforms: take, normal: take });
await stream.open(Float32Array.from(tokens), label);
const play = async (action) => {
  const next = await stream.next(Float32Array.from(action), label);
  return Array.from(await stream.pixels(next)).filter((_, i) => i % 4 !== 3);
};
const frames = [], marks = [];
for (const action of actions) {
  marks.push({ bookmark: stream.bookmark(), at });
  frames.push(await play(action));
}
const used = at, again = [], { bookmark, at: before } = marks[actions.length - 3];
await stream.rewind(bookmark);
at = before;
for (const action of actions.slice(-3)) again.push(await play(action));
await writeFile(output, JSON.stringify({ frames, again, used }));
