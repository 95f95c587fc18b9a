// What runs the graphs: WebAssembly everywhere, or a graphics processor through WebGPU where that is faster.

import { Normal, Stream } from "./sampler.js";

const MODULES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };
const GRAPHS = ["pass", "head", "decoder"];
const TIMED = 3; // frames, after one that compiles the kernels
const MARGIN = 0.9; // of the time of WebAssembly: an equal one would use more power for nothing

// kind: "wasm" or "webgpu"
export async function openRuntime(kind) {
  const ort = await import(new URL(`../runtime/${MODULES[kind]}`, import.meta.url));
  ort.env.wasm.wasmPaths = new URL("../runtime/", import.meta.url).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const sessions = {};
  for (const name of GRAPHS) {
    const data = await (await fetch(new URL(`../${name}.onnx`, import.meta.url))).arrayBuffer();
    sessions[name] = await ort.InferenceSession.create(data, { executionProviders: [kind] });
  }
  return { kind, ort, sessions };
}

// Milliseconds of the fastest of some frames after a given one.
export async function frameTime(runtime, world, tokens) {
  const stream = new Stream(runtime, world, new Normal(0)), action = new Float32Array(world.actions.length);
  await stream.open(tokens, world.firstFrames[0].label);
  let fastest = Infinity;
  for (let i = 0; i <= TIMED; i++) {
    const begin = performance.now();
    await stream.pixels(await stream.next(action, world.firstFrames[0].label));
    if (i > 0) fastest = Math.min(fastest, performance.now() - begin);
  }
  return fastest;
}

// A runtime on a graphics processor, or null where there is none, or it fails.
export async function otherRuntime() {
  try {
    const adapter = await self.navigator.gpu?.requestAdapter();
    if (!adapter || adapter.info?.isFallbackAdapter) return null; // a processor that imitates one is never faster
    return await openRuntime("webgpu");
  } catch (error) {
    console.info(`WebGPU is not used: ${error.message}`);
    return null;
  }
}

export async function isFaster(other, current, world, tokens) {
  try {
    return (await frameTime(other, world, tokens)) < MARGIN * (await frameTime(current, world, tokens));
  } catch (error) {
    console.info(`WebGPU is not used: ${error.message}`);
    return false;
  }
}
