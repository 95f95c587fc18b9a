"""Logs of a run: a JSONL file always, TensorBoard or Weights & Biases on request."""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mutoscope.errors import UserError, printable
from mutoscope.json_config import parse_json
from mutoscope.writing import new_folder, write_whole, writing

LOG = "log.jsonl"
JOURNAL = "run.log"


class Tracker(Protocol):
    """Receives the numbers and images of a training loop, and its end."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Named numbers of one update; steps count from 0."""

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A contact sheet of samples drawn after `step` updates."""

    def close(self) -> None:
        """Writes or sends everything that is still buffered."""


def announce(line: str) -> None:
    """Shows a line above the progress bar; standard output stays free for reports."""
    tqdm.write(printable(line), file=sys.stderr)


class Journal:
    """Events of a run as lines of text with their time, in `run.log`."""

    def __init__(self, path: Path | None):
        """None: nothing is written, as on all processes but the main one."""
        self.path = path

    def write(self, line: str) -> None:
        """Appends a line. A disk that is full does not end a run: whatever it cannot do without will say so."""
        if self.path is not None:
            with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n")


class JsonlTracker:
    """One JSON object per line: step and values. The file stays valid whenever the process dies."""

    def __init__(self, path: str | Path, start_step: int = 0):
        """Continues the file at `path`, dropping lines of an interrupted run at or after `start_step`."""
        self.path = Path(path)
        new_folder(self.path.parent)
        kept = [line for line in read_log(self.path) if line["step"] < start_step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(self.path):
            self._file = self.path.open("ab", buffering=0)

    def log(self, step: int, values: dict[str, float]) -> None:
        line = (json.dumps({"step": step} | values) + "\n").encode()
        with writing(self.path, len(line)):
            end = self._file.tell()
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                os.ftruncate(self._file.fileno(), end)  # lines stay whole on a full disk
                raise

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Sheets are image files beside the log; a line-per-object file does not hold them."""

    def close(self) -> None:
        self._file.close()


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The lines of a JSONL log; everything after a line that a crash damaged is ignored, a missing file is empty."""
    lines = []
    for line in Path(path).read_text(errors="replace").splitlines() if Path(path).exists() else []:
        try:
            values = parse_json(line)
        except ValueError:
            break
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            break
        lines.append(cast(dict[str, float], values))
    return lines


class TensorBoardTracker:
    """Scalars and images for `tensorboard --logdir FOLDER`; needs the `tracking` extra."""

    def __init__(self, folder: str | Path, start_step: int = 0):
        """Continues the logs in `folder`, hiding events of an interrupted run at or after `start_step`."""
        check_trackers(["tensorboard"])
        from torch.utils.tensorboard import SummaryWriter

        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=start_step or None)

    def log(self, step: int, values: dict[str, float]) -> None:
        with writing(self._writer.log_dir):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        with writing(self._writer.log_dir, image.size):
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Scalars and images in a Weights & Biases run; needs the `tracking` extra and its own login."""

    def __init__(self, project: str, name: str, config: Mapping[str, object] | None = None):
        check_trackers(["wandb"])
        import wandb

        settings = None if config is None else dict(config)
        self._wandb, self._run = wandb, wandb.init(project=project, name=name, config=settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


# name in `LoopConfig.report_to` -> what the error calls it
TRACKERS = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
WANDB_PROJECT = "mutoscope"


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{TRACKERS[name]} is not installed; install mutoscope[tracking].")


def open_trackers(
    names: Sequence[str], out: Path, name: str, config: Mapping[str, object], start_step: int = 0
) -> list[Tracker]:
    """The trackers of a run that writes into `out`. Raises UserError for one that is not installed."""
    check_trackers(names)
    found: list[Tracker] = []
    if "tensorboard" in names:
        found.append(TensorBoardTracker(out / "tensorboard", start_step))
    if "wandb" in names:
        found.append(WandbTracker(WANDB_PROJECT, name, config))
    return found
