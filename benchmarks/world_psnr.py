"""PSNR of an imagined world to its recording, from one first frame under the recorded actions.

    python benchmarks/world_psnr.py magi-doom RECORDING OUT.json [--episodes 16]

RECORDING: episodes that the model has not seen, such as `mutoscope record doom-basic RECORDING --episodes 16
--max-frames 180 --height 72 --width 96 --endless --seed 900000`. Each segment starts at frame 20 of its episode.
Beside the model: the first frame repeated, and the model under the actions of the next episode.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mutoscope import VideoPipeline, open_recordings
from timing import write_report

START, FRAMES = 20, (1, 4, 8, 16, 39, 64)


def psnr(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recording")
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=16)
    arguments = parser.parse_args()
    pipeline, recordings = VideoPipeline.from_pretrained(arguments.model), open_recordings(arguments.recording)
    rows: dict[str, list[list[float]]] = {"model": [], "first_frame_repeated": [], "other_actions": []}
    last = START + FRAMES[-1]
    for number in range(arguments.episodes):
        real = recordings[number].read(START, last + 1)
        own, other = (recordings[at % arguments.episodes].actions[START:last] for at in (number, number + 1))
        for name, actions in (("model", own), ("other_actions", other)):
            clip = pipeline(context=real[:1], actions=actions, num_frames=len(real), seed=0).frames
            rows[name].append([psnr(clip[frame], real[frame]) for frame in FRAMES])
        rows["first_frame_repeated"].append([psnr(real[0], real[frame]) for frame in FRAMES])
    report: dict[str, object] = {"model": arguments.model, "episodes": arguments.episodes, "frames": list(FRAMES)}
    report |= {f"psnr_db_{name}": np.mean(values, axis=0).round(2).tolist() for name, values in rows.items()}
    write_report(arguments.out, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
