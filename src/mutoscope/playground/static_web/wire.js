// The wire of a page without a server: messages go to a worker that runs the model here.

export function connect(path, { opened, message, closed }) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const socket = {
    readyState: WebSocket.OPEN,
    send: (text) => worker.postMessage(JSON.parse(text)),
    close: () => { socket.readyState = WebSocket.CLOSED; worker.terminate(); },
  };
  worker.onmessage = ({ data }) => {
    if (data.type === "ready") opened(socket);
    else message(data, data.image || null);
  };
  worker.onerror = (event) => { socket.close(); closed(`The model cannot run here: ${event.message}`); };
  return socket;
}

export const say = (socket, value) => {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(value));
};

export async function listModels() {
  const response = await fetch("world.json");
  if (!response.ok) throw new Error("world.json is missing.");
  const world = await response.json();
  const frames = Object.fromEntries(world.firstFrames.map((frame) => [frame.name, frame.label]));
  return [{
    name: world.name, title: "MAGI", classes: world.classes, tasks: [], actions: world.actions, first_frames: frames,
    playable: true, streams: true, real: {}, options: [], alone: true,
  }];
}

export const firstFrame = () => null; // its pixels are not in the folder

export async function image(content) { return await createImageBitmap(content); }

export async function upload() { throw new Error("A page without a server cannot read pictures."); }

export const uploadedFrame = upload;

export function tell(text) {
  const notice = document.getElementById("notice");
  notice.textContent = text || "";
  notice.hidden = !text;
}

export function announce(text) { document.getElementById("status").textContent = text; }

export function fill(select, values, chosen) {
  select.replaceChildren(...values.map(([value, label]) => new Option(label, value, false, value === chosen)));
}
