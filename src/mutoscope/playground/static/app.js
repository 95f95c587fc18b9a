// The page: which view is shown, and what the server offers.

import { Play } from "./play.js";
import { Watch } from "./watch.js";
import { listModels, tell } from "./wire.js";

const views = ["play", "watch"];

function show(view) {
  for (const name of views) {
    document.getElementById(name).hidden = name !== view;
    document.getElementById(`tab-${name}`).setAttribute("aria-pressed", String(name === view));
  }
}

async function begin() {
  let models, play;
  for (const view of views) {
    document.getElementById(`tab-${view}`).onclick = () => {
      if (view === "watch") play?.pause();
      show(view);
    };
  }
  try {
    models = await listModels();
  } catch (error) {
    tell(error.message || "The server does not answer.");
    return;
  }
  document.body.classList.toggle("alone", models.some((model) => model.alone));
  play = new Play(models);
  const watch = new Watch(models);
  const shared = new URLSearchParams(location.hash.slice(1));
  if (shared.get("view") === "watch") {
    show("watch");
    watch.restore(shared);
  } else if (models.some((model) => model.streams)) {
    if (!document.getElementById("play").hidden) play.begin();
  } else {
    show("watch");
  }
}

begin();
