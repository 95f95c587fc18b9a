"""The images of docs/magi.md: masks, curves of the comparisons, a long rollout.

python benchmarks/magi_figures.py masks docs/images/magi_masks.png
python benchmarks/magi_figures.py claims benchmarks/results/magi_claims.json docs/images/magi_claims.png
python benchmarks/magi_figures.py rollout MODEL docs/images/magi_rollout.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig, ShapesWorld
from mutoscope.layers.masks import frame_history_mask, frame_slots, visible_frames
from mutoscope.pipeline import VideoPipeline
from mutoscope.studies.claims_magi import CONTEXT


def masks(out: Path, count: int = 4) -> None:
    """Attention masks, rows attend to dark columns: O complete frames, M masked copies."""
    complete = frame_history_mask(*frame_slots(count))
    masked = visible_frames(torch.arange(count), torch.arange(count))
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), width_ratios=[2, 1], layout="constrained")
    names = [f"{role}{i + 1}" for role in "OM" for i in range(count)]
    for axis, mask, labels, title in (
        (axes[0], complete, names, "complete teacher forcing"),
        (axes[1], masked, names[count:], "masked teacher forcing"),
    ):
        axis.imshow(~mask, cmap="gray", vmin=-0.6, vmax=1.2)
        axis.set_xticks(range(len(labels)), labels)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_title(title, fontsize=10)
    figure.savefig(out, dpi=110)


def claims(report: Path, out: Path) -> None:
    """Errors by frame, shapes-FVD and movement by window, for every variant."""
    rows = json.loads(report.read_text())["rows"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    windows = np.arange(0)
    for row in rows:
        error = row["error_by_frame"]
        axes[0].plot(range(CONTEXT + 1, CONTEXT + 1 + len(error)), error, label=row["variant"])
        windows = 16 * np.arange(1, 1 + len(row["shapes_fvd_by_window"]))
        axes[1].plot(windows, row["shapes_fvd_by_window"], marker=".")
        axes[2].plot(windows, row["movement_over_real_by_window"], marker=".")
        axes[3].plot(windows, row["detected_by_window"], marker=".")
    copying = rows[0]["error_of_copying_by_frame"]
    axes[0].plot(range(CONTEXT + 1, CONTEXT + 1 + len(copying)), copying, "k:", label="last context frame")
    axes[3].plot(windows, rows[0]["detected_in_real_by_window"], "k:", label="real clips")
    titles = ("squared error after 4 context frames", "shapes-FVD up to frame", "movement over real", "shapes detected")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("frame")
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(out, dpi=110)


def rollout(model: str, out: Path, count: int = 6, every: int = 8) -> None:
    """Every eighth of 128 frames: the real clip above the clip generated from its first frame and its class."""
    pipeline = VideoPipeline.from_pretrained(model)
    world = ShapesWorld(ShapesConfig(pipeline.index.height, pipeline.index.width, 128), HELD_BACK_SEED)
    clips = [world.clip(i) for i in range(count)]
    real, labels = [clip.frames for clip in clips], [clip.label for clip in clips]
    context = [frames[:1] for frames in real]
    generated = pipeline.generate(context=context, class_label=labels, num_frames=128).clips
    pairs = zip(real, (clip.frames for clip in generated), strict=True)
    rows = [np.concatenate(list(video[::every]), axis=1) for pair in pairs for video in pair]  # (h, frames * w, 3)
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(out)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "rollout":
        rollout(rest[0], Path(rest[1]))
    elif kind == "claims":
        claims(Path(rest[0]), Path(rest[1]))
    else:
        masks(Path(rest[0]))
