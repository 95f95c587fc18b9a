// Play: keys to the server, frames to the canvas, and the time between the two.

import { announce, connect, fill, firstFrame, image, say, tell, upload } from "./wire.js";

const byId = (id) => document.getElementById(id);
const KEYS = {
  left: ["ArrowLeft", "KeyA"], right: ["ArrowRight", "KeyD"], forward: ["ArrowUp", "KeyW"], up: ["ArrowUp", "KeyW"],
  back: ["ArrowDown", "KeyS"], down: ["ArrowDown", "KeyS"], attack: ["Space"], jump: ["Space"],
};
const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "space" };
const AXES = [["ArrowLeft", "ArrowRight"], ["ArrowUp", "ArrowDown"], ["KeyA", "KeyD"], ["KeyW", "KeyS"]];
const SPEEDS = { "-3": 0.125, "-2": 0.25, "-1": 0.5, 0: 1, 1: 2 };
const LATENCY = "key to photon";
const MEASUREMENTS = 1000; // kept by the browser
const WINDOW = 60; // measurements that the shown medians are taken over

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const keyName = (code) => NAMES[code] || code.replace("Key", "").replace("Digit", "");

class Recent {
  constructor() { this.values = []; }
  add(value) { this.values.push(value); if (this.values.length > WINDOW) this.values.shift(); }
  get median() { return this.values.length ? median(this.values) : null; }
}

export class Play {
  constructor(models) {
    this.models = models.filter((model) => model.streams);
    this.socket = null;
    this.held = new Set();
    this.actionId = 0;
    this.pressed = new Map(); // id of an action -> when it was sent
    this.running = false;
    this.uploaded = null;
    this.prepareForm();
    this.prepareControls();
  }

  // ------------------------------------------------------------------------------------------------------- the form

  get model() { return this.models.find((model) => model.name === byId("play-model").value); }

  prepareForm() {
    if (!this.models.length) return;
    fill(byId("play-model"), this.models.map((model) => [model.name, model.name]),
      (this.models.find((model) => model.playable) || this.models[0]).name);
    byId("play-model").onchange = () => this.offerClasses();
    byId("play-class").onchange = () => this.offerFirstFrames();
    byId("play-first").onchange = () => this.preview();
    byId("play-upload").onchange = async (event) => {
      const [file] = event.target.files;
      this.uploaded = null;
      if (!file) return;
      try { this.uploaded = (await upload(file)).upload; tell(""); } catch (error) { tell(error.message); }
    };
    byId("play-form").onsubmit = (event) => { event.preventDefault(); this.begin(); };
    for (const button of byId("save").querySelectorAll("button")) {
      button.onclick = () => say(this.socket, { type: "save", format: button.dataset.format });
    }
    this.offerClasses();
  }

  offerClasses() {
    const { classes } = this.model;
    fill(byId("play-class"), classes.length ? classes.map((name) => [name, name]) : [["", "–"]]);
    this.offerFirstFrames();
  }

  offerFirstFrames() {
    const model = this.model, label = model.classes.indexOf(byId("play-class").value);
    const names = Object.entries(model.first_frames).filter(([, at]) => at === label || label < 0).map(([name]) => name);
    const own = names.length ? [["", "any of its own"], ...names.map((name) => [name, name]), ...(this.model.alone ? [] : [["none", "generated"]])] : [["", "generated"]];
    fill(byId("play-first"), own);
    byId("real-label").hidden = !(byId("play-class").value in model.real);
    this.preview();
  }

  preview() {
    const name = byId("play-first").value, picture = byId("first-preview");
    const address = name && name !== "none" ? firstFrame(this.model.name, name) : null;
    picture.hidden = !address;
    if (address) {
      picture.src = address;
      picture.alt = `First frame ${name}`;
    }
  }

  // ---------------------------------------------------------------------------------------------------- the session

  begin() {
    const model = this.model;
    if (!model) return;
    const label = byId("play-class").value, first = byId("play-first").value;
    const start = {
      type: "start", model: model.name, seed: Number(byId("play-seed").value) || 0,
      class_label: label || null, first_frame: this.uploaded ? null : first || null, upload: this.uploaded,
      real: byId("play-real").checked && !byId("real-label").hidden,
      paused: matchMedia("(prefers-reduced-motion: reduce)").matches,
    };
    tell("");
    this.rate = new Recent(); this.latency = new Recent(); this.last = null;
    if (this.socket && this.socket.readyState === WebSocket.OPEN) { say(this.socket, start); return; }
    this.socket = connect("/play", {
      opened: (socket) => say(socket, start),
      message: (header, content) => this.receive(header, content),
      closed: (reason) => { if (reason) tell(reason); this.setRunning(false); },
    });
  }

  async receive(header, content) {
    if (header.type === "queued") tell(`Waiting: ${header.ahead} ahead of you.`);
    if (header.type === "error") tell(header.message);
    if (header.type === "saved") this.offerFile(header);
    if (header.type === "started") this.started(header);
    if (header.type === "frame") await this.draw(header, content);
  }

  started(header) {
    tell("");
    for (const id of ["screen", "real-screen"]) Object.assign(byId(id), { width: header.width, height: header.height });
    byId("real-figure").hidden = !header.real;
    this.fps = header.fps;
    this.offerKeys(header.actions);
    byId("speed").value = 0;
    byId("speed-number").textContent = "1×";
    this.setRunning(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    announce(`${header.model} began.`);
  }

  async draw(header, content) {
    const picture = await image(content, header.media_type);
    const canvas = byId(header.view === "real" ? "real-screen" : "screen");
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    if (header.view === "real") return;
    requestAnimationFrame(() => this.measure(header, performance.now()));
    say(this.socket, { type: "shown", frame: header.index });
    canvas.dataset.frame = header.index;
    const line = byId("timeline");
    line.max = header.index; line.value = header.index;
    byId("frame-number").textContent = header.index;
  }

  measure(header, now) {
    if (this.last !== null && header.index === this.last.index + 1) this.rate.add(now - this.last.now);
    this.last = { index: header.index, now };
    for (const [id, sent] of this.pressed) {
      if (id > header.action_id) continue;
      this.pressed.delete(id);
      if (id === header.action_id) this.noteLatency(sent, now);
    }
    const show = (id, value, unit) => { byId(id).textContent = value === null ? "–" : `${value.toFixed(unit === "ms" ? 0 : 1)} ${unit}`; };
    show("rate", this.rate.median ? 1000 / this.rate.median : null, "");
    show("latency", this.latency.median, "ms");
    show("sampling", header.sampling_ms, "ms");
    show("decoding", header.decoding_ms, "ms");
  }

  // Also for tools that read the browser's own list of measurements; it would grow for as long as the page is open.
  noteLatency(sent, now) {
    this.latency.add(now - sent);
    performance.measure(LATENCY, { start: sent, end: now });
    if (performance.getEntriesByName(LATENCY).length > MEASUREMENTS) performance.clearMeasures(LATENCY);
  }

  offerFile(header) {
    const link = document.createElement("a");
    link.href = `/api/files/${header.file}${location.search}`;
    link.textContent = `${header.format}: ${header.frames} frames`;
    link.download = "";
    byId("saved").append(link);
    announce("The file is ready.");
    link.focus();
  }

  // ------------------------------------------------------------------------------------------------------- the keys

  offerKeys(actions) {
    this.codes = new Map(); // code of a key -> [name of the action, value]
    const used = new Set(), buttons = [];
    let digit = 1, axis = 0;
    const free = (wanted) => wanted.filter((code) => !used.has(code));
    const add = (name, value, codes, text) => {
      if (!codes.length) codes = [`Digit${digit++}`];
      for (const code of codes) { used.add(code); this.codes.set(code, [name, value]); }
      buttons.push(this.keyButton(name, value, text, codes[0]));
    };
    for (const { name, button } of actions) {
      if (button) add(name, 1, free(KEYS[name] || []), name);
      else {
        const [less, more] = AXES[axis++] || [];
        add(name, -1, free(less ? [less] : []), `${name} −`);
        add(name, 1, free(more ? [more] : []), `${name} +`);
      }
    }
    byId("keys").replaceChildren(...buttons);
    this.held.clear();
  }

  keyButton(name, value, text, code) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(text);
    const key = document.createElement("kbd");
    key.textContent = keyName(code);
    button.append(key);
    const id = `${name}:${value}`;
    button.dataset.action = id;
    const set = (down) => (event) => {
      event.preventDefault();
      if (down && event.pointerId !== undefined) button.setPointerCapture?.(event.pointerId);
      this.hold(id, down);
    };
    button.onpointerdown = set(true);
    button.onpointerup = button.onpointercancel = button.onlostpointercapture = set(false);
    button.onkeydown = (event) => { if (event.code === "Enter") this.hold(id, true); };
    button.onkeyup = (event) => { if (event.code === "Enter") this.hold(id, false); };
    button.onblur = () => this.hold(id, false);
    return button;
  }

  hold(id, down) {
    if (this.held.has(id) === down) return;
    if (down) this.held.add(id); else this.held.delete(id);
    for (const button of byId("keys").children) button.classList.toggle("held", this.held.has(button.dataset.action));
    const action = {};
    for (const one of this.held) {
      const at = one.lastIndexOf(":");
      action[one.slice(0, at)] = Number(one.slice(at + 1)) * (this.scale || 1);
    }
    this.actionId += 1;
    this.pressed.set(this.actionId, performance.now());
    say(this.socket, { type: "action", id: this.actionId, action });
  }

  prepareControls() {
    const typing = (target) => target.closest("input, select, textarea");
    document.addEventListener("keydown", (event) => {
      const found = this.codes?.get(event.code);
      if (!found || event.repeat || typing(event.target) || byId("play").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest("button") && event.code === "Space") return; // a focused button is pressed by it
      event.preventDefault();
      this.hold(`${found[0]}:${found[1]}`, true);
    });
    document.addEventListener("keyup", (event) => {
      const found = this.codes?.get(event.code);
      if (found) this.hold(`${found[0]}:${found[1]}`, false);
    });
    addEventListener("blur", () => { for (const id of [...this.held]) this.hold(id, false); });
    byId("go").onclick = () => { this.setRunning(!this.running); say(this.socket, { type: this.running ? "go" : "pause" }); };
    byId("step").onclick = () => { this.setRunning(false); say(this.socket, { type: "step" }); };
    byId("reset").onclick = () => say(this.socket, { type: "reset" });
    byId("timeline").onchange = (event) => { this.setRunning(false); say(this.socket, { type: "rewind", frame: Number(event.target.value) }); };
    byId("timeline").oninput = (event) => { byId("frame-number").textContent = event.target.value; };
    byId("speed").oninput = (event) => {
      const factor = SPEEDS[event.target.value];
      byId("speed-number").textContent = `${factor}×`;
      say(this.socket, { type: "rate", fps: this.fps * factor });
    };
  }

  setRunning(running) {
    this.running = running;
    byId("go").textContent = running ? "Pause" : "Go on";
    byId("go").setAttribute("aria-pressed", String(running));
  }

  pause() { if (this.running) { this.setRunning(false); say(this.socket, { type: "pause" }); } }
}
