// Watch: a call to the server, every step of it on two canvases.

import { Region } from "./region.js";
import { announce, connect, fill, image, say, tell, upload, uploadedFrame } from "./wire.js";

const FRAME_MS = 125;
const SIMPLE = new Set(["task", "class_label", "prompt", "actions", "seed", "num_decoding_steps", "guidance_scale", "context", "task_video", "region"]);

export class Watch {
  constructor(models) {
    this.models = models;
    this.panels = [new Panel(models)];
    document.getElementById("panels").append(this.panels[0].form);
    const second = document.getElementById("second");
    second.onchange = () => this.compare(second.checked);
  }

  compare(both) {
    if (both && this.panels.length === 1) {
      this.panels.push(new Panel(this.models));
      document.getElementById("panels").append(this.panels[1].form);
    } else if (!both && this.panels.length === 2) {
      const panel = this.panels.pop();
      panel.stop();
      panel.form.remove();
    }
    for (const panel of this.panels) panel.together = both ? this.panels : [panel];
  }

  restore(shared) { this.panels[0].restore(shared); }
}

class Panel {
  constructor(models) {
    this.models = models;
    this.together = [this];
    this.form = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.clip = this.form.querySelector(".clip");
    this.grid = this.form.querySelector(".grid");
    this.state = this.form.querySelector(".state");
    fill(this.form.elements.model, models.map((model) => [model.name, `${model.name} (${model.title})`]));
    this.form.elements.model.onchange = () => this.offerOptions();
    this.form.onsubmit = (event) => { event.preventDefault(); for (const panel of this.together) panel.begin(this.seed); };
    this.form.elements.stop.onclick = () => this.stop();
    this.form.elements.frame.oninput = (event) => { this.shown = Number(event.target.value); this.follow = false; this.paint(); };
    this.form.oninput = () => this.share();
    this.frames = [];
    this.offerOptions();
  }

  get model() { return this.models.find((model) => model.name === this.form.elements.model.value); }
  get seed() { return this.form.elements.seed?.value; }

  // ------------------------------------------------------------------------------------------------------- options

  offerOptions() {
    const box = this.form.querySelector(".options"), more = document.createElement("details"), inner = document.createElement("div");
    const title = document.createElement("summary");
    title.textContent = "All options";
    more.append(title, inner);
    box.replaceChildren();
    this.region = null;
    for (const option of this.model.options) {
      if (option.name === "class_label" && !this.model.classes.length) continue;
      if (option.name === "actions" && !this.model.actions.length) continue;
      (SIMPLE.has(option.name) ? box : inner).append(this.field(option));
    }
    box.append(more);
    const task = this.form.elements.task;
    if (this.region) {
      task.addEventListener("change", () => this.region.offer(task.value));
      this.region.offer(task.value);
    }
    this.share();
  }

  field(option) {
    if (option.kind === "region") {
      this.region = new Region(option.name, option.help, this.model);
      return this.region.box;
    }
    const label = document.createElement("label");
    label.title = option.help;
    label.append(option.name.replaceAll("_", " "));
    let input;
    if (option.kind === "choice") {
      input = document.createElement("select");
      fill(input, [["", option.default === null ? "–" : String(option.default)], ...option.choices.map((choice) => [choice, choice])]);
    } else {
      input = document.createElement("input");
      input.type = { int: "number", float: "number", flag: "checkbox", upload: "file" }[option.kind] || "text";
      if (option.kind === "float") input.step = "any";
      if (option.kind === "flag") { input.checked = option.default === true; label.classList.add("check"); }
      else if (option.kind !== "upload") input.placeholder = option.default === null ? "" : String(option.default);
    }
    if (option.kind === "upload") input.onchange = () => this.take(input);
    input.name = option.name;
    input.dataset.kind = option.kind;
    label.append(input);
    return label;
  }

  // A file travels as soon as it is chosen, so that its first frame can be drawn on.
  async take(input) {
    const file = input.files[0];
    input.uploaded = file ? upload(file) : null;
    try {
      const found = await input.uploaded;
      tell("");
      if (this.region && file) this.region.show(found ? await uploadedFrame(this.model.name, found.upload) : null);
    } catch (error) { tell(error.message); }
  }

  async values() {
    const options = {};
    for (const input of this.form.querySelectorAll("[data-kind]")) {
      const { kind } = input.dataset;
      if (kind === "upload") { if (input.uploaded) options[input.name] = (await input.uploaded).upload; }
      else if (kind === "flag") { if (input.checked !== input.defaultChecked) options[input.name] = input.checked; }
      else if (kind === "region") { if (input.value && !this.region.box.hidden) options[input.name] = input.value.split(",").map(Number); }
      else if (input.value !== "") options[input.name] = kind === "int" || kind === "float" ? Number(input.value) : input.value;
    }
    return options;
  }

  share() {
    const found = new URLSearchParams({ view: "watch", model: this.model.name });
    for (const input of this.form.querySelectorAll("[data-kind]")) {
      if (input.dataset.kind !== "upload" && input.dataset.kind !== "flag" && input.value) found.set(input.name, input.value);
    }
    this.form.querySelector(".share").href = `#${found}`;
  }

  restore(shared) {
    if (!this.models.some((model) => model.name === shared.get("model"))) return;
    this.form.elements.model.value = shared.get("model");
    this.offerOptions();
    for (const [name, value] of shared) {
      const input = this.form.elements[name];
      if (input?.dataset?.kind === "region") this.region.text = value;
      else if (input?.dataset?.kind && input.dataset.kind !== "upload") input.value = value;
    }
    this.region?.offer(this.form.elements.task.value);
    this.share();
    this.begin();
  }

  // ---------------------------------------------------------------------------------------------------- generation

  async begin(seed) {
    this.stop();
    tell("");
    let options;
    try { options = await this.values(); } catch (error) { tell(error.message); return; }
    if (seed) options.seed = Number(seed);
    this.frames = []; this.levels = null; this.shown = 0; this.follow = true;
    this.form.querySelector(".downloads").replaceChildren();
    this.form.elements.stop.disabled = false;
    const ask = { model: this.model.name, options };
    this.socket = connect("/watch", {
      opened: (socket) => say(socket, ask),
      message: (header, content) => this.receive(header, content),
      closed: (reason) => { if (reason) tell(reason); this.form.elements.stop.disabled = true; },
    });
  }

  stop() {
    this.socket?.close();
    this.socket = null;
    clearInterval(this.timer);
  }

  async receive(header, content) {
    if (header.type === "queued") this.state.textContent = `Waiting: ${header.ahead} ahead.`;
    if (header.type === "error") { this.state.textContent = header.message; tell(header.message); }
    if (header.type === "started") {
      Object.assign(this.clip, { width: header.width, height: header.height });
      this.state.textContent = `${header.task}, seed ${header.seed}`;
    }
    if (header.type === "step") await this.step(header, content);
    if (header.type === "done") this.done(header);
  }

  async step(header, content) {
    const [t, h, w] = header.grid;
    if (!this.levels || this.levels.length !== t * h * w) {
      const grown = new Float32Array(t * h * w).fill(-1);
      if (this.levels) grown.set(this.levels.subarray(0, Math.min(grown.length, this.levels.length)));
      this.levels = grown;
    }
    this.shape = header.grid;
    header.decided.forEach((position, i) => { this.levels[position] = header.confidence ? header.confidence[i] / 255 : 0.8; });
    this.latest = header.decided.length ? Math.floor(header.decided[0] / (h * w)) : 0;
    if (header.count) await this.cut(header, content);
    const bar = this.form.querySelector("progress");
    if (header.num_steps) bar.value = (header.step + 1) / header.num_steps; else bar.removeAttribute("value");
    this.state.textContent = `step ${header.step + 1}${header.num_steps ? ` of ${header.num_steps}` : ""}, ${header.seconds.toFixed(2)} s, ${this.frames.length} frames`;
    this.paint();
  }

  async cut(header, content) {
    const sprite = await image(content, "image/png");
    const width = sprite.width / header.count;
    for (let i = 0; i < header.count; i++) this.frames[header.first + i] = await createImageBitmap(sprite, i * width, 0, width, sprite.height);
    sprite.close();
    const slider = this.form.elements.frame;
    slider.max = this.frames.length - 1;
    if (this.follow) { this.shown = header.preview ? this.shown : this.frames.length - 1; slider.value = this.shown; }
  }

  paint() {
    const frame = this.frames[this.shown];
    if (frame) this.clip.getContext("2d").drawImage(frame, 0, 0, this.clip.width, this.clip.height);
    if (!this.levels) return;
    // All latent frames side by side in rows, in the order of time
    const [t, h, w] = this.shape, columns = Math.ceil(Math.sqrt((t * h) / w)), rows = Math.ceil(t / columns);
    Object.assign(this.grid, { width: columns * (w + 1), height: rows * (h + 1) });
    const context = this.grid.getContext("2d");
    for (let i = 0; i < t * h * w; i++) {
      const frameNumber = Math.floor(i / (h * w)), y = Math.floor(i / w) % h, x = i % w, level = this.levels[i];
      context.fillStyle = level < 0 ? "#2b2b33" : `hsl(32 80% ${20 + 55 * level}%)`;
      context.fillRect((frameNumber % columns) * (w + 1) + x, Math.floor(frameNumber / columns) * (h + 1) + y, 1, 1);
    }
  }

  done(header) {
    const links = Object.entries(header.files).map(([form, name]) => {
      const link = document.createElement("a");
      link.href = `/api/files/${name}${location.search}`;
      link.textContent = form.toUpperCase();
      link.download = "";
      return link;
    });
    this.form.querySelector(".downloads").replaceChildren(...links);
    this.form.elements.stop.disabled = true;
    announce(`The clip of ${header.frames} frames is complete.`);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    this.timer = setInterval(() => {
      if (!this.follow || !this.form.isConnected) return;
      this.shown = (this.shown + 1) % this.frames.length;
      this.form.elements.frame.value = this.shown;
      this.paint();
    }, FRAME_MS);
  }
}
