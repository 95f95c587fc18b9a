"""Events of a training loop: progress, log lines, contact sheets."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from tqdm import tqdm

from mutoscope.data.media import write_png
from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.errors import UserError
from mutoscope.terminal import message_notice
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.batches import Batch
from mutoscope.training.config import LoopConfig
from mutoscope.training.curve import write_curve
from mutoscope.training.distributed import Process, barrier, mean_over_ranks
from mutoscope.training.pace import Pace, Share, TimeShares
from mutoscope.training.tracking import JOURNAL, LOG, Journal, Tracker, announce
from mutoscope.training.utilisation import Utilisation
from mutoscope.writing import new_folder

EARLY = (1, 10, 30, 100, 300)  # updates after which there are contact sheets before the first regular one
CURVE = "curve.png"
FREE_SHEET_SECONDS = 5.0  # short runs have their early contact sheets, whatever share of the time these take


@dataclass(frozen=True)
class TrainEvent:
    """Passed to every callback after the first updates (`EARLY`), each `sample_every` and the last one, on the main
    process; later, where `sheet_share` of the time is used up.

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

    def __init__(
        self,
        out: Path,
        loop: LoopConfig,
        start_step: int,
        process: Process,
        trackers: Sequence[Tracker],
        after_divergence: Callable[[], str],
        use: Utilisation,
    ):
        """after_divergence: names the checkpoint to continue from when a loss is not finite."""
        self.out, self.loop, self.process, self.trackers = out, loop, process, list(trackers)
        self.after_divergence = after_divergence
        self.shares, self.use, self._waited = TimeShares(), use, 0.0
        self._journal, self._notice = Journal(out / JOURNAL if process.is_main else None), ""
        self._sheets_due = False
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._bar.close()
        if kind is not None:  # the reader of the last message may be gone
            said = " ".join(str(error).split())
            self._journal.write(f"The run ends: {said or kind.__name__}")
        self._journal.write(f"{self.shares.sentence()} {self.use.sentence()}".rstrip())
        for tracker in self.trackers:
            tracker.close()

    def record(
        self,
        step: int,
        losses: dict[str, Tensor],
        learning_rate: float,
        grad_norm: Tensor,
        validate: Callable[[], dict[str, float]] | None = None,
        saving: bool = False,
    ) -> None:
        """Counts update `step`; on every `log_every`-th one, and the last, reads the numbers off the device and logs.

        saving: a checkpoint follows, on all ranks. validate: measures the figures of a validation that is due after
        this update, which is logged too.
        Raises UserError when the loss is not finite, also before a checkpoint is due: a good checkpoint must not be
        replaced by one that cannot be continued.
        """
        self._bar.update()
        self._tell_pace(step)
        log_now = step % self.loop.log_every == 0 or step + 1 == self.loop.num_steps or validate is not None
        if not log_now and not saving:
            return
        values = mean_over_ranks(losses | {"grad_norm": grad_norm}, self.process)
        self._check_finite(step, values)
        if not log_now:
            return
        now, waited = time.perf_counter(), self.shares.seconds["data"]
        speed = self.use.values(step - self._last_step, now - self._last_time, waited - self._waited)
        self._last_time, self._last_step, self._waited = now, step, waited
        values |= {"learning_rate": learning_rate} | speed
        if self.process.is_main:
            if validate is not None:
                values |= self._validate(step, validate)
            shown = f"loss {values['loss']:.4g}{self._validation}, {speed['clips_per_second']:.1f} clips/s"
            self._bar.set_postfix_str(shown, refresh=False)
            values, self._estimate = values | self._estimate, {}
            self._note_lost_output()
            for tracker in self.trackers:
                tracker.log(step, values)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        """Ends the run on all ranks, which have the same values; only the main one renames checkpoints and speaks."""
        if all(map(np.isfinite, values.values())):
            return
        try:
            if self.process.is_main:
                check_finite(step, values, self.after_divergence)
        finally:
            barrier(self.process)  # a rank that ends sooner would have the others ended before they have spoken
        raise UserError

    def _validate(self, step: int, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
        with self._paused("validation"):
            figures = validate()
        check_finite(step, figures, self.after_divergence)
        self._validation = f", validation {min(v for k, v in figures.items() if k.startswith('validation_loss')):.4g}"
        return figures

    def _tell_pace(self, step: int) -> None:
        """Prints the estimate of the first minute once; its numbers go into the next line of the log."""
        estimate = self._pace.update(step) if self.process.is_main else None
        if estimate is not None:
            self.say(estimate.sentence())
            self._estimate = estimate.values()

    def say(self, line: str) -> None:
        """Shows a line above the progress bar, and keeps it in the run's log."""
        if self.process.is_main:
            announce(line)
            self._journal.write(line)

    def _note_lost_output(self) -> None:
        """Says once in the run's log that nobody reads the progress any more."""
        notice = message_notice() or ""
        if notice and not self._notice:
            self._journal.write(f"{notice} Training goes on.")
        self._notice = notice

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time in which a checkpoint is written; then the shares of the time so far go into the run's log."""
        with self._paused("checkpoints"):
            yield
        self._journal.write(f"{self.shares.sentence()} {self.use.sentence()}".rstrip())

    @contextmanager
    def _paused(self, name: Share) -> Iterator[None]:
        """The time inside does not count against the speed of training; it counts as `name`, see `TimeShares`."""
        started = time.perf_counter()
        with self.shares.spent(name):
            yield
        self._last_time += time.perf_counter() - started
        self._pace.pause(time.perf_counter() - started)

    def draw_curve(self) -> None:
        """Draws the whole log, earlier parts of a resumed run included, as an image beside it."""
        if self.process.is_main:
            with self._paused("checkpoints"):
                write_curve(self.out / LOG, self.out / CURVE)

    def sheets_due(self, step: int, scheduled: bool) -> bool:
        """Whether contact sheets are drawn after update `step`: those scheduled now, or earlier and postponed.

        Those of the last update are always drawn, all others only where sheets then have taken at most their share of
        the time.
        """
        self._sheets_due |= scheduled
        if not self._sheets_due or not self.process.is_main:
            return False
        is_last = step + 1 == self.loop.num_steps
        if not is_last and self.shares.would_exceed("sheets", self.loop.sheet_share, FREE_SHEET_SECONDS):
            return False
        self._sheets_due = False
        return True

    def notify(self, callbacks: Sequence[Callback], steps_done: int, network: nn.Module, batch: Batch) -> None:
        """Calls every callback with `network` in evaluation mode, then puts its mode back."""
        was_training = network.training
        network.eval()
        event = TrainEvent(
            steps_done, self.loop.num_steps, network, batch, lambda name, image: self._save(steps_done, name, image)
        )
        with self._paused("sheets"):
            for callback in callbacks:
                callback(event)
        network.train(was_training)

    def _save(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        write_png(new_folder(self.out / "samples") / f"{name}-{step:08d}.png", image)
        for tracker in self.trackers:
            tracker.image(step, name, image)


def check_finite(step: int, values: dict[str, float], after_divergence: Callable[[], str]) -> None:
    """Raises UserError naming the first quantity that is infinite or not a number, and the last good checkpoint."""
    for name, value in values.items():
        if not np.isfinite(value):
            raise UserError(
                f"Training diverged: {name} is {value} at step {step}; {after_divergence()}. Lower the learning "
                "rate, lengthen the warm-up or clip gradients."
            )


def due(step: int, every: int, num_steps: int) -> bool:
    """True after update `step` for events that occur every `every` updates and after the last one."""
    return (step + 1) % every == 0 or step + 1 == num_steps


def due_early(step: int, every: int, num_steps: int) -> bool:
    """Like `due`, and after the first updates, so that there is something to see from the start."""
    return due(step, every, num_steps) or (step + 1 in EARLY and step + 1 < every)
