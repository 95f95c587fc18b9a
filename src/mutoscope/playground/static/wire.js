// Messages between the page and the server: a header of JSON, and bytes.

export function readMessage(data) {
  if (typeof data === "string") return { header: JSON.parse(data), content: null };
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  return { header, content: data.slice(4 + length) };
}

export function connect(path, { opened, message, closed }) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}${path}${location.search}`);
  socket.binaryType = "arraybuffer";
  let said = null;
  socket.onopen = () => opened(socket);
  socket.onmessage = (event) => {
    const { header, content } = readMessage(event.data);
    if (header.type === "error") said = header.message;
    message(header, content);
  };
  socket.onclose = (event) => closed(said || (event.wasClean ? event.reason : "The connection was lost. Begin again."));
  return socket;
}

export const say = (socket, value) => {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(value));
};

export async function listModels() {
  const response = await fetch(`/api/models${location.search}`);
  const models = await response.json();
  if (!response.ok) throw new Error(models.detail);
  return models;
}

export const firstFrame = (model, name) =>
  `/api/models/${encodeURIComponent(model)}/first-frames/${encodeURIComponent(name)}${location.search}`;

export async function image(content, type) {
  return await createImageBitmap(new Blob([content], { type }));
}

export async function upload(file) {
  const response = await fetch(`/api/uploads${location.search}`, { method: "POST", body: file });
  const found = await response.json();
  if (!response.ok) throw new Error(found.detail || "The file was refused.");
  return found;
}

// The first frame of an upload, cut as the model sees it
export async function uploadedFrame(model, name) {
  const response = await fetch(`/api/uploads/${name}/first-frame/${encodeURIComponent(model)}${location.search}`);
  if (!response.ok) throw new Error((await response.json()).detail);
  return await createImageBitmap(await response.blob());
}

export function tell(text) {
  const notice = document.getElementById("notice");
  notice.textContent = text || "";
  notice.hidden = !text;
}

export function announce(text) {
  document.getElementById("status").textContent = text;
}

export function fill(select, values, chosen) {
  select.replaceChildren(...values.map(([value, label]) => new Option(label, value, false, value === chosen)));
}
