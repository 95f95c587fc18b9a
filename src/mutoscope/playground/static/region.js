// The region of a task: drawn with mouse or finger over the clip, or typed as four numbers.

const SIDES = ["left", "top", "right", "bottom"];
const CENTRAL = [25, 25, 75, 75]; // percent: the paper's region
const SMALLEST = 4; // percent: a click is no region

export class Region {
  constructor(name, help, { width, height }) {
    this.box = document.createElement("fieldset");
    this.box.className = "region";
    this.box.title = help;
    const title = document.createElement("legend");
    title.textContent = "Region in percent, or drawn over the clip";
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width: 4 * width, height: 4 * height });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "The region within the frame; the numbers beside it say the same");
    const numbers = document.createElement("div");
    numbers.className = "row";
    this.inputs = SIDES.map((side, i) => this.number(side, CENTRAL[i]));
    numbers.append(...this.inputs.map((input) => input.parentElement));
    // What the form sends: nothing as long as the region is the paper's
    this.field = Object.assign(document.createElement("input"), { type: "hidden", name });
    this.field.dataset.kind = "region";
    this.box.append(title, this.canvas, numbers, this.field);
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onpointermove = (event) => { if (this.from) this.stretch(event); };
    this.canvas.onpointerup = this.canvas.onpointercancel = () => { this.from = null; };
    this.picture = null;
    this.paint();
  }

  number(side, value) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "number", min: 0, max: 100, step: 1, value });
    label.append(side, input);
    input.oninput = () => this.changed();
    return input;
  }

  get sides() { return this.inputs.map((input) => Number(input.value)); }

  // "0.25,0.25,0.75,0.75", as links have it
  set text(value) {
    const sides = value.split(",").map(Number);
    if (sides.length !== 4 || !sides.every(Number.isFinite)) return;
    this.inputs.forEach((input, i) => { input.value = Math.round(100 * sides[i]); });
    this.changed();
  }

  changed() {
    const isCentral = this.sides.every((side, i) => side === CENTRAL[i]);
    this.field.value = isCentral ? "" : this.sides.map((side) => side / 100).join(",");
    this.paint();
  }

  place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const within = (value) => Math.round(100 * Math.min(Math.max(value, 0), 1));
    return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.from = this.place(event);
    event.preventDefault();
  }

  stretch(event) {
    const [x, y] = this.place(event), [fromX, fromY] = this.from;
    if (Math.abs(x - fromX) < SMALLEST || Math.abs(y - fromY) < SMALLEST) return;
    const sides = [Math.min(x, fromX), Math.min(y, fromY), Math.max(x, fromX), Math.max(y, fromY)];
    this.inputs.forEach((input, i) => { input.value = sides[i]; });
    this.changed();
    this.field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  show(picture) {
    this.picture = picture;
    this.paint();
  }

  // Only outpainting and inpainting have a region
  offer(task) { this.box.hidden = !/^(out|in)paint/.test(task); }

  paint() {
    const context = this.canvas.getContext("2d"), { width, height } = this.canvas;
    context.fillStyle = "#55504a";
    context.fillRect(0, 0, width, height);
    if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
    const [left, top, right, bottom] = this.sides.map((side, i) => (side / 100) * (i % 2 ? height : width));
    context.lineWidth = 3;
    for (const [style, dash] of [["#000", []], ["#ffd9b0", [8, 8]]]) {
      context.strokeStyle = style;
      context.setLineDash(dash);
      context.strokeRect(left, top, right - left, bottom - top);
    }
  }
}
