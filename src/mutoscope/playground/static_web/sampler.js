// The loop of a stream in plain JavaScript: the same steps as FrameStreamSampler in Python, on three ONNX graphs.

export class Normal {
  // Standard normal numbers from a seed (mulberry32 and Box–Muller). Python draws others from the same seed.
  constructor(seed) { this.state = seed >>> 0; this.spare = null; }
  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }
  next() {
    if (this.spare !== null) { const value = this.spare; this.spare = null; return value; }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform())), angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
  normal(count) { return Float32Array.from({ length: count }, () => this.next()); }
  uniforms(count) { return Float32Array.from({ length: count }, () => this.uniform()); }
  copy() { const other = new Normal(0); other.state = this.state; other.spare = this.spare; return other; }
}

export class Stream {
  // runtime: {ort: onnxruntime-web, sessions: {pass, head, decoder}}, which may change between two frames; world: the
  // manifest; draws: where noise comes from
  constructor(runtime, world, draws) {
    Object.assign(this, { runtime, world, draws });
    this.history = []; // {tokens, action, label}: what the network remembers; in a rolling window with keys and values
    this.frame = 0;
    this.unread = false; // whether the last frame of the history is yet to be read
    this.clear();
  }

  clear() { this.past = 0; this.held = []; this.keys = new Float32Array(0); this.values = new Float32Array(0); }

  get rolls() { return this.world.windowMode === "rolling"; }

  // The time of the frame in progress: with a window that is read anew, counted from its first frame.
  get time() { return this.rolls ? this.frame : this.history.length; }

  tensor(type, data, dims) { return new this.runtime.ort.Tensor(type, data, dims); }

  // One pass over frames [{tokens, hidden, action, label}] at the times from `first` on, after what the cache holds.
  async pass(frames, first, masked, level) {
    const { n, k, layers, positions, heads, size, actionSize } = this.world, f = frames.length, p = this.past;
    const tokens = new Float32Array(f * n * k), previous = new Float32Array(f * n * k), hidden = new Uint8Array(f * n), actions = new Float32Array(f * actionSize);
    frames.forEach((frame, i) => {
      tokens.set(frame.tokens, i * n * k);
      if (frame.previous) previous.set(frame.previous, i * n * k);
      if (frame.hidden) hidden.set(frame.hidden, i * n);
      actions.set(frame.action || new Float32Array(actionSize).fill(NaN), i * actionSize);
    });
    const mask = new Uint8Array(f * (p + f));
    for (let i = 0; i < f; i++) mask.fill(1, i * (p + f), i * (p + f) + p + i + 1);
    const levels = BigInt64Array.from({ length: f }, (_, i) => BigInt(this.world.cleanFirstFrame && first + i === 0 ? 0 : level));
    const cache = [layers, positions, heads, p, size];
    const held = this.rolls ? [...this.held, first] : Array.from({ length: p + f }, (_, i) => i), named = this.runtime.sessions.pass.inputNames;
    const optional = { previous: this.tensor("float32", previous, [1, f, n, k]), held: this.tensor("int64", BigInt64Array.from(held, BigInt), [p + f]) };
    return await this.runtime.sessions.pass.run({
      ...Object.fromEntries(Object.entries(optional).filter(([name]) => named.includes(name))),
      tokens: this.tensor("float32", tokens, [1, f, n, k]),
      hidden: this.tensor("bool", hidden, [1, f, n]),
      masked: this.tensor("bool", new Uint8Array(f).fill(masked ? 1 : 0), [f]),
      actions: this.tensor("float32", actions, [1, f, actionSize]),
      label: this.tensor("int64", BigInt64Array.of(BigInt(frames[0].label)), [1]),
      interval: this.tensor("int64", BigInt64Array.of(1n), [1]),
      times: this.tensor("int64", BigInt64Array.from({ length: f }, (_, i) => BigInt(first + i)), [f]),
      level: this.tensor("int64", levels, [1, f]),
      mask: this.tensor("bool", mask, [f, p + f]),
      keys: this.tensor("float32", this.keys, cache),
      values: this.tensor("float32", this.values, cache),
    });
  }

  // Reads finished frames into the cache.
  async observe(frames, first) {
    const found = await this.pass(frames, first, false, this.world.contextNoiseLevel);
    if (this.rolls) {
      Object.assign(frames[0], { number: first, keys: found.new_keys.data, values: found.new_values.data });
      this.remember(frames[0]);
      return;
    }
    this.keys = this.joined(this.keys, found.new_keys.data, frames.length);
    this.values = this.joined(this.values, found.new_values.data, frames.length);
    this.past += frames.length;
  }

  // Takes a frame that was read into a rolling cache, in place of the oldest one if the cache is full.
  remember(frame) {
    const { window, keepsFirst } = this.world, spared = keepsFirst ? 1 : 0;
    if (this.past < window - 1 + spared) {
      this.keys = this.joined(this.keys, frame.keys, 1);
      this.values = this.joined(this.values, frame.values, 1);
      this.past += 1;
      this.held.push(frame.number);
    } else if (this.past > spared) {
      const slot = this.held.indexOf(Math.min(...this.held.slice(spared)));
      this.replace(this.keys, frame.keys, slot);
      this.replace(this.values, frame.values, slot);
      this.held[slot] = frame.number;
    }
  }

  replace(cache, added, slot) {
    const { size } = this.world, p = this.past;
    for (let row = 0; row * size < added.length; row++) cache.set(added.subarray(row * size, (row + 1) * size), (row * p + slot) * size);
  }

  // What a rolling window no longer holds is forgotten.
  forget() {
    const { keepsFirst } = this.world;
    this.history = this.history.filter((frame) => this.held.includes(frame.number) || (keepsFirst && frame.number === 0));
  }

  joined(old, added, f) {
    const { layers, positions, heads, size } = this.world, p = this.past, rows = layers * positions * heads;
    const all = new Float32Array(rows * (p + f) * size);
    for (let row = 0; row < rows; row++) {
      all.set(old.subarray(row * p * size, (row + 1) * p * size), row * (p + f) * size);
      all.set(added.subarray(row * f * size, (row + 1) * f * size), (row * (p + f) + p) * size);
    }
    return all;
  }

  // The frames of neighbouring equal labels share a pass, as in Python.
  async read() {
    this.clear();
    let first = 0;
    while (first < this.history.length) {
      let end = first + 1;
      while (end < this.history.length && this.history[end].label === this.history[first].label) end++;
      await this.observe(this.history.slice(first, end), first);
      first = end;
    }
  }

  // Moves a full window on, which is then read anew; returns whether it was full.
  async makeRoom() {
    const { window, windowMode } = this.world, count = this.history.length;
    if (this.rolls || count < window) return false;
    const keep = windowMode === "chunked" ? window >> 1 : window - 1 - (windowMode === "anchored" ? 1 : 0);
    this.history = [...(windowMode === "anchored" ? this.history.slice(0, 1) : []), ...this.history.slice(count - keep)];
    await this.read();
    return true;
  }

  // The first frame, from latents that exist already.
  async open(tokens, label) {
    this.history = [{ tokens, action: null, label }];
    this.frame = 1;
    this.unread = false;
    await this.read();
  }

  // What the next frame needs and its action does not change: the frame before is read, and a full window moves on.
  async workAhead() {
    if (!this.unread) return;
    this.unread = false;
    if (!(await this.makeRoom())) await this.observe(this.history.slice(-1), this.time - 1);
    if (this.rolls) this.forget();
  }

  // The next frame: its tokens, one set after another.
  async next(action, label) {
    const { n, k, d, sets } = this.world;
    await this.workAhead();
    const uniform = this.draws.uniforms(n);
    const order = Array.from({ length: n }, (_, i) => i).sort((a, b) => uniform[a] - uniform[b]);
    const tokens = new Float32Array(n * k), hidden = new Uint8Array(n).fill(1);
    const previous = this.world.predictsChange ? this.history[this.history.length - 1].tokens : null;
    let start = 0;
    for (const size of sets) {
      const frame = { tokens, hidden, action, label, previous };
      const { z } = await this.pass([frame], this.time, true, 0);
      const ids = order.slice(start, start + size), chosen = new Float32Array(size * d);
      ids.forEach((id, i) => chosen.set(z.data.subarray(id * d, (id + 1) * d), i * d));
      const base = new Float32Array(size * k);
      if (previous) ids.forEach((id, i) => base.set(previous.subarray(id * k, (id + 1) * k), i * k));
      const drawn = await this.denoise(chosen, size, base);
      ids.forEach((id, i) => { tokens.set(drawn.subarray(i * k, (i + 1) * k), id * k); hidden[id] = 0; });
      start += size;
    }
    this.history.push({ tokens, action, label });
    this.unread = true;
    this.frame += 1;
    return tokens;
  }

  // From noise to the tokens of a set: DDPM with learned variances (arXiv 2102.09672).
  // base: what the head's prediction is added to
  async denoise(z, count, base) {
    const { k, d, steps, temperature, sampleRange, predictsSample } = this.world;
    let x = this.draws.normal(count * k);
    for (const step of steps) {
      const { y } = await this.runtime.sessions.head.run({
        x: this.tensor("float32", x, [count, k]),
        z: this.tensor("float32", z, [count, d]),
        time: this.tensor("float32", Float32Array.of(step.time), []),
      });
      const noise = step.noisy ? this.draws.normal(count * k) : null, next = new Float32Array(count * k);
      for (let i = 0; i < count; i++) {
        for (let j = 0; j < k; j++) {
          const at = i * k + j, guess = y.data[i * 2 * k + j] + base[at], fraction = y.data[i * 2 * k + k + j];
          let sample = predictsSample ? guess : step.inverse * x[at] - step.inverseNoise * guess;
          if (sampleRange !== null) sample = Math.max(-sampleRange, Math.min(sampleRange, sample));
          next[at] = step.ofSample * sample + step.ofNoisy * x[at];
          if (noise) {
            const weight = (fraction + 1) / 2, logVariance = weight * step.largest + (1 - weight) * step.smallest;
            next[at] += Math.exp(0.5 * logVariance) * temperature * noise[at];
          }
        }
      }
      x = next;
    }
    return x;
  }

  // Tokens (rows of channel, row in patch, column in patch) as latents (channel, row, column), decoded to RGBA.
  async pixels(tokens) {
    const { rows, columns, patch, channels, width, height } = this.world, { k } = this.world;
    const h = rows * patch, w = columns * patch, latents = new Float32Array(channels * h * w);
    for (let token = 0; token < rows * columns; token++) {
      const top = Math.floor(token / columns) * patch, left = (token % columns) * patch;
      for (let c = 0; c < channels; c++) for (let y = 0; y < patch; y++) for (let x = 0; x < patch; x++) {
        latents[(c * h + top + y) * w + left + x] = tokens[token * k + (c * patch + y) * patch + x];
      }
    }
    const { pixels } = await this.runtime.sessions.decoder.run({ latents: this.tensor("float32", latents, [1, channels, 1, h, w]) });
    const image = new Uint8ClampedArray(width * height * 4);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) image[4 * i + c] = Math.round(pixels.data[3 * i + c]);
      image[4 * i + 3] = 255;
    }
    return image;
  }

  bookmark() { return { history: [...this.history], frame: this.frame, draws: this.draws.copy?.() }; }

  async rewind(bookmark) {
    this.history = [...bookmark.history];
    this.frame = bookmark.frame;
    if (bookmark.draws) this.draws = bookmark.draws.copy();
    this.unread = false;
    if (this.rolls) {
      this.clear();
      for (const frame of this.history) if (frame.keys) this.remember(frame); else this.unread = true;
    } else if (!(await this.makeRoom())) await this.read();
  }
}
