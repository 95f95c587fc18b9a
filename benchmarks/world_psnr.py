"""PSNR of an imagined world to its recording, from one first frame under the recorded actions.

    python benchmarks/world_psnr.py magi-doom RECORDING OUT.json [--episodes 24]

RECORDING: episodes that the model has not seen, such as `mutoscope record doom RECORDING --episodes 24 --max-frames
180 --height 96 --width 128 --endless --seed 900000`. Each segment starts at frame 20 of its episode. Beside the model:
the first frame repeated, and the model under the actions of the next episode of the same class. An episode's caption is
its class, where the model has several.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from mutoscope import VideoPipeline, open_recordings
from mutoscope.data.sources.recordings import Episode
from mutoscope.errors import UserError
from timing import write_report

START, FRAMES = 20, (1, 4, 8, 16, 39, 64)
LAST = START + FRAMES[-1]

Rows = dict[str, list[list[float]]]


def psnr(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def actions_of(episode: Episode) -> Float32[np.ndarray, "t a"]:
    if episode.actions is None:
        raise UserError(f"{episode.name} has no actions; record the environment with `mutoscope record`.")
    return episode.actions[START:LAST]


def segment_rows(pipeline: VideoPipeline, episodes: Sequence[Episode], label: str | None) -> Rows:
    """PSNR in dB of every segment at `FRAMES`, by what is compared with the recording."""
    rows: Rows = defaultdict(list)
    for number, episode in enumerate(episodes):
        real = episode.read(START, LAST + 1)
        actions = {"model": actions_of(episode), "other_actions": actions_of(episodes[(number + 1) % len(episodes)])}
        for name, keys in actions.items():
            clip = pipeline(context=real[:1], actions=keys, class_label=label, num_frames=len(real), seed=0).frames
            rows[name].append([psnr(clip[frame], real[frame]) for frame in FRAMES])
        rows["first_frame_repeated"].append([psnr(real[0], real[frame]) for frame in FRAMES])
    return rows


def averages(rows: Rows) -> dict[str, list[float]]:
    return {f"psnr_db_{name}": np.mean(values, axis=0).round(2).tolist() for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recording")
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=16)
    arguments = parser.parse_args()
    pipeline, recordings = VideoPipeline.from_pretrained(arguments.model), open_recordings(arguments.recording)
    classes: dict[str | None, list[Episode]] = defaultdict(list)
    for number in range(arguments.episodes):
        several = len(pipeline.index.class_names or ()) > 1
        classes[recordings[number].caption if several else None].append(recordings[number])
    rows = {label: segment_rows(pipeline, episodes, label) for label, episodes in classes.items()}
    together = {name: [row for part in rows.values() for row in part[name]] for name in next(iter(rows.values()))}
    report: dict[str, object] = {"model": arguments.model, "episodes": arguments.episodes, "frames": list(FRAMES)}
    report |= averages(together) | {label: averages(part) for label, part in rows.items() if label is not None}
    write_report(arguments.out, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
