"""Events of a training loop: progress, log lines, contact sheets, and signals that stop it early."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from tqdm import tqdm

from mutoscope.data.media import write_png
from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.errors import UserError
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.batches import Batch
from mutoscope.training.checkpoint import checkpoint_paths
from mutoscope.training.config import LoopConfig
from mutoscope.training.curve import write_curve
from mutoscope.training.distributed import Process, mean_over_ranks
from mutoscope.training.pace import Pace
from mutoscope.training.tracking import LOG, Tracker, announce
from mutoscope.writing import new_folder

EARLY = (1, 10, 30, 100, 300)  # updates after which there are contact sheets before the first regular one
CURVE = "curve.png"


@dataclass(frozen=True)
class TrainEvent:
    """Passed to every callback after the first updates (`EARLY`), each `sample_every` and the last one, on the main
    process.

    network: the weights that would be exported now (`Candidates`), in evaluation mode.
    batch: the clips of the latest update on this rank, on the training device.
    save_image: writes an image below the run's `samples` folder and passes it to the trackers.
    """

    step: int
    num_steps: int
    network: nn.Module
    batch: Batch
    save_image: Callable[[str, UInt8[np.ndarray, "h w 3"]], None]


Callback = Callable[[TrainEvent], None]


class ReconstructionSheet:
    """Contact sheet of a tokenizer: for each clip a row of real frames above a row of decoded ones.

    clips: the same every time, so that sheets of different steps compare; uint8 (b, t, h, w, 3).
    """

    def __init__(self, clips: UInt8[Tensor, "b t h w 3"], every_nth_frame: int = 2):
        self.clips, self.every_nth_frame = clips, every_nth_frame

    def __call__(self, event: TrainEvent) -> None:
        tokenizer = event.network
        if not isinstance(tokenizer, VideoTokenizer):
            raise UserError(f"A reconstruction sheet needs a tokenizer, found {type(tokenizer).__name__}.")
        device = next(tokenizer.parameters()).device
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(tokenizer.from_uint8(self.clips.to(device))))
        frames = tokenizer.to_uint8(decoded).cpu()
        event.save_image("reconstruction", paired_sheet(self.clips, frames, self.every_nth_frame))


def paired_sheet(
    real: UInt8[Tensor, "b t h w 3"],
    decoded: UInt8[Tensor, "b t h w 3"],
    every_nth_frame: int = 1,
    labels: Sequence[tuple[str, str]] | None = None,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """One image: time runs to the right, each real clip is directly above its counterpart.

    labels: texts above the real clip and above its counterpart, for each pair.
    """
    pairs = [clip[::every_nth_frame].numpy() for pair in zip(real, decoded, strict=True) for clip in pair]
    texts = None if labels is None else [text for pair in labels for text in pair]
    return contact_sheet(pairs, columns=len(pairs[0]), labels=texts)


class Recorder:
    """Progress bar, trackers, curve and the `samples` folder of one run; only the main process shows or writes them."""

    def __init__(self, out: Path, loop: LoopConfig, start_step: int, process: Process, trackers: Sequence[Tracker]):
        self.out, self.loop, self.process, self.trackers = out, loop, process, list(trackers)
        self._last_time, self._last_step = time.perf_counter(), start_step - 1
        self._pace, self._estimate = Pace(loop, start_step), dict[str, float]()
        self._validation = ""
        self._bar = tqdm(
            total=loop.num_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file gets a line now and then
            disable=not process.is_main,
        )

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        for tracker in self.trackers:
            tracker.close()

    def record(
        self,
        step: int,
        losses: dict[str, Tensor],
        learning_rate: float,
        grad_norm: Tensor,
        validate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Counts update `step`; on every `log_every`-th one, and the last, reads the numbers off the device and logs.

        validate: measures the figures of a validation that is due after this update, which is logged too.
        Raises UserError when the loss is not finite, also before a checkpoint is due: a good checkpoint must not be
        replaced by one that cannot be continued.
        """
        self._bar.update()
        self._tell_pace(step)
        log_now = step % self.loop.log_every == 0 or step + 1 == self.loop.num_steps or validate is not None
        if not log_now and not due(step, self.loop.checkpoint_every, self.loop.num_steps):
            return
        values = mean_over_ranks(losses | {"grad_norm": grad_norm}, self.process)
        check_finite(step, values, self.out / "checkpoints")
        if not log_now:
            return
        now = time.perf_counter()
        clips_per_second = (step - self._last_step) * self.loop.batch_size / max(now - self._last_time, 1e-9)
        self._last_time, self._last_step = now, step
        values |= {"learning_rate": learning_rate, "clips_per_second": round(clips_per_second, 2)}
        if self.process.is_main:
            if validate is not None:
                values |= self._validate(step, validate)
            shown = f"loss {values['loss']:.4g}{self._validation}, {clips_per_second:.1f} clips/s"
            self._bar.set_postfix_str(shown, refresh=False)
            values, self._estimate = values | self._estimate, {}
            for tracker in self.trackers:
                tracker.log(step, values)

    def _validate(self, step: int, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
        with self._paused():
            figures = validate()
        check_finite(step, figures, self.out / "checkpoints")
        self._validation = f", validation {min(v for k, v in figures.items() if k.startswith('validation_loss')):.4g}"
        return figures

    def _tell_pace(self, step: int) -> None:
        """Prints the estimate of the first minute once; its numbers go into the next line of the log."""
        estimate = self._pace.update(step) if self.process.is_main else None
        if estimate is not None:
            announce(estimate.sentence())
            self._estimate = estimate.values()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What happens inside does not count against the speed of training."""
        started = time.perf_counter()
        yield
        self._last_time += time.perf_counter() - started
        self._pace.pause(time.perf_counter() - started)

    def draw_curve(self) -> None:
        """Draws the whole log, earlier parts of a resumed run included, as an image beside it."""
        if self.process.is_main:
            with self._paused():
                write_curve(self.out / LOG, self.out / CURVE)

    def notify(self, callbacks: Sequence[Callback], steps_done: int, network: nn.Module, batch: Batch) -> None:
        """Calls every callback with `network` in evaluation mode, then puts its mode back."""
        if not self.process.is_main:
            return
        was_training = network.training
        network.eval()
        event = TrainEvent(
            steps_done, self.loop.num_steps, network, batch, lambda name, image: self._save(steps_done, name, image)
        )
        with self._paused():
            for callback in callbacks:
                callback(event)
        network.train(was_training)

    def _save(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        write_png(new_folder(self.out / "samples") / f"{name}-{step:08d}.png", image)
        for tracker in self.trackers:
            tracker.image(step, name, image)


def check_finite(step: int, values: dict[str, float], checkpoints: Path) -> None:
    """Raises UserError naming the first quantity that is infinite or not a number, and the last good checkpoint."""
    for name, value in values.items():
        if not np.isfinite(value):
            saved = checkpoint_paths(checkpoints)
            good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no earlier checkpoint"
            raise UserError(
                f"Training diverged: {name} is {value} at step {step}; {good}. Lower the learning rate, lengthen the "
                "warm-up or clip gradients."
            )


def due(step: int, every: int, num_steps: int) -> bool:
    """True after update `step` for events that occur every `every` updates and after the last one."""
    return (step + 1) % every == 0 or step + 1 == num_steps


def due_early(step: int, every: int, num_steps: int) -> bool:
    """Like `due`, and after the first updates, so that there is something to see from the start."""
    return due(step, every, num_steps) or (step + 1 in EARLY and step + 1 < every)


Handler = Callable[[int, FrameType | None], object] | int | None  # what `signal.signal` takes and returns


class StopSignals:
    """While entered, SIGTERM and the first Ctrl-C ask the loop to finish its update, save and return."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Handler] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
