"""What the protocol "world" generates and measures: clips, next frames, streams, windows, and turns there and back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.alive import STATISTICS, WINDOW, Windows
from mutoscope.evaluation.metrics.control import action_sums
from mutoscope.evaluation.metrics.temporal import frame_curves, motion
from mutoscope.evaluation.networks.inverse_dynamics import AFTER, BEFORE, InverseDynamics
from mutoscope.evaluation.rows import Rows
from mutoscope.evaluation.sources.action_streams import Starts, StreamModel, as_tensor
from mutoscope.evaluation.sources.episodes import Episodes, Segment, resampled_actions
from mutoscope.evaluation.sources.model_clips import call_seed

CONTEXT_FRAMES = 8  # frames that a clip begins with, or as many as the model sees beside the next one
HORIZONS = (1, 4, 16, 64)  # frames after the context
LEAST_HORIZON = 4
NEXT_POSITIONS = 4  # of a clip, whose next frame is predicted
WINDOW_STARTS = (16, 128, 1024)  # frames of a stream
SHEET_FRAMES = (10, 100, 1000, 5000)
# Two equal frames have an infinite PSNR. Above 60 dB the error is a quarter of a grey level, less than rounding.
LARGEST_PSNR = 60.0
DESCRIBED = ("features", "statistics", "motion", "actions")
CLIPS, NEXT, STREAMS, RETURNS, NOISE = range(5)  # parts of the protocol, whose calls have seeds of their own
CALLS_OF_PART = 100_000
Clips = UInt8[Tensor, "n t h w 3"]


@dataclass(frozen=True)
class Layout:
    """Lengths in frames.

    context: that a clip begins with. horizons: after it, the last one being its end. history: real frames before a
    predicted one. windows: first frames of windows of a stream. lifetimes: frames after which a stream is examined,
    by their name. there, back: rows of opposite actions, or None.
    """

    context: int
    horizons: tuple[int, ...]
    history: int
    windows: tuple[int, ...]
    lifetimes: tuple[tuple[str, int], ...]
    there: Float[np.ndarray, "n a"] | None = None
    back: Float[np.ndarray, "m a"] | None = None

    @property
    def length(self) -> int:
        """Of a clip."""
        return self.context + self.horizons[-1]

    @property
    def total(self) -> int:
        """Of a stream, after its context."""
        return max(frames for _, frames in self.lifetimes)

    @property
    def window_starts(self) -> tuple[int, ...]:
        """First frames of all windows of a stream that are described: `windows`, and before ends of lifetimes."""
        return tuple(sorted({*self.windows, *(frames - WINDOW for _, frames in self.lifetimes)}))

    @property
    def sheet(self) -> tuple[int, ...]:
        """Frames of a stream, counted from 1, that its contact sheet shows."""
        return tuple(frame for frame in SHEET_FRAMES if frame <= self.total)


@dataclass(frozen=True)
class Measures:
    """Rows of every part of the protocol. network: trains or reads the inverse-dynamics network, once."""

    model: StreamModel
    evaluation: Episodes
    layout: Layout
    open_network: Callable[[], InverseDynamics]
    seed: int

    @cached_property
    def network(self) -> InverseDynamics:
        return self.open_network()

    def call_seed(self, part: int, number: int) -> int:
        return call_seed(self.seed, part * CALLS_OF_PART + number)

    def starts(self, segments: Sequence[Segment], context: int) -> tuple[Starts, Clips]:
        """Conditions of some segments under their own actions, and their real frames."""
        frames = np.stack([self.evaluation.frames(segment) for segment in segments])
        actions = np.stack([self.evaluation.actions(segment) for segment in segments])
        labels = tuple(self.evaluation.label(segment.episode) for segment in segments)
        captions = tuple(self.evaluation.caption(segment.episode) for segment in segments)
        return Starts(frames[:, :context], actions, labels, captions), as_tensor(frames)

    # ------------------------------------------------------------------------------------------- clips and next frames

    def clip_rows(self, segments: Sequence[Segment], numbers: range) -> Rows:
        """Clips under recorded actions, and under those of other episodes, beside the real ones and simple guesses."""
        chosen, layout = [segments[i] for i in numbers], self.layout
        starts, real = self.starts(chosen, layout.context)
        others = np.stack([self.evaluation.actions(other_segment(segments, i)) for i in numbers])
        swapped = np.concatenate([starts.actions[:, : layout.context - 1], others], axis=1)[:, : layout.length]
        astray = Starts(starts.context, swapped, starts.labels, starts.captions)
        seed = self.call_seed(CLIPS, numbers.start)
        clips = {
            "model": as_tensor(self.model.clips(starts, layout.length, seed)),
            "other_actions": as_tensor(self.model.clips(astray, layout.length, seed)),
            "ceiling": as_tensor(self.model.reconstructed(real.numpy())),
            **guesses(real, layout.context),
        }
        shown = [layout.context - 1 + horizon for horizon in layout.horizons]
        rows = {f"error_{name}": squared_error(real[:, shown], clip[:, shown]) for name, clip in clips.items()}
        true = torch.from_numpy(starts.actions)
        rows["sums"] = self.recognised(clips["model"], true)
        rows["sums_real"] = self.recognised(real, true)
        return Rows(rows)

    def recognised(self, clips: Clips, true: Float[Tensor, "n t a"]) -> Float[Tensor, "n a 4"]:
        """Sums of the actions that the network reads in the frames after the context."""
        first = max(self.layout.context - 1, BEFORE)
        found = self.network.actions(clips[:, first - BEFORE :])
        return action_sums(found, true[:, first : clips.shape[1] - AFTER], self.network.is_button)

    def next_rows(self, segments: Sequence[Segment], numbers: range) -> Rows:
        """Single frames predicted from real past frames, averaged over positions of a clip."""
        starts, real = self.starts([segments[i] for i in numbers], self.layout.length)
        found: list[dict[str, Tensor]] = []
        for position in next_positions(self.layout):
            past = slice(position - self.layout.history, position)
            part = Starts(starts.context[:, past], starts.actions[:, past], starts.labels, starts.captions)
            seed = self.call_seed(NEXT, numbers.start * NEXT_POSITIONS + len(found))
            frame = as_tensor(self.model.clips(part, self.layout.history + 1, seed)[:, -1])
            decoded = as_tensor(self.model.reconstructed(real[:, past.start : position + 1].numpy())[:, -1])
            guesses = {"model": frame, "last_frame": real[:, position - 1], "ceiling": decoded}
            found.append(self._next_row(real[:, position], guesses))
        return Rows({name: torch.stack([row[name] for row in found]).mean(dim=0) for name in found[0]})

    def _next_row(self, real: UInt8[Tensor, "n h w 3"], guesses: dict[str, Tensor]) -> dict[str, Tensor]:
        errors = {name: squared_error(real[:, None], guess[:, None])[:, 0] for name, guess in guesses.items()}
        rows = {f"error_{name}": error for name, error in errors.items()}
        rows |= {f"psnr_{name}": (-10 * error.log10()).clamp(max=LARGEST_PSNR) for name, error in errors.items()}
        return rows | {f"distance_{name}": self.network.distance(real, guess) for name, guess in guesses.items()}

    # -------------------------------------------------------------------------------------------------------- windows

    def described(self, clips: Clips, actions: Float[np.ndarray, "n rows a"]) -> dict[str, Tensor]:
        """What the rule and the Fréchet distance read of windows."""
        scaled = torch.from_numpy(self.model.spec.scaled(actions)).double()
        known = torch.cat([scaled.nanmean(dim=1), scaled.abs().nanmean(dim=1)], dim=1).nan_to_num()
        curves = [frame_curves(clip) for clip in clips.split(1)]  # one at a time: copied several times in float64
        levels = [torch.stack([curve[name].mean() for name in STATISTICS]) for curve in curves]
        moved = torch.cat([motion(clip) for clip in clips.split(1)])
        return {
            "features": self.network.features(clips),
            "statistics": torch.stack(levels),
            "motion": moved,
            "actions": known,
        }

    def window_rows(self, episodes: Episodes, segments: Sequence[Segment], numbers: range) -> Rows:
        """Real windows."""
        clips, actions = real_windows(episodes, [segments[i] for i in numbers])
        return Rows(self.described(clips, actions) | {"episode": torch.tensor([segments[i].episode for i in numbers])})

    def control_rows(self, segments: Sequence[Segment], numbers: range) -> Rows:
        """Real windows of the evaluated episodes, and the same ones reconstructed, frozen and replaced by noise."""
        clips, actions = real_windows(self.evaluation, [segments[i] for i in numbers])
        generator = torch.Generator().manual_seed(self.call_seed(NOISE, numbers.start))
        variants = {
            "": clips,
            "_reconstructed": as_tensor(self.model.reconstructed(clips.numpy())),
            "_frozen": clips[:, :1].expand_as(clips),
            "_noise": torch.randint(256, clips.shape, dtype=torch.uint8, generator=generator),
        }
        rows = {"episode": torch.tensor([segments[i].episode for i in numbers])}
        for suffix, variant in variants.items():
            rows |= {f"{name}{suffix}": value for name, value in self.described(variant, actions).items()}
        return Rows(rows)

    # -------------------------------------------------------------------------------------------------------- streams

    def stream_rows(self, segments: Sequence[Segment], numbers: range) -> Rows:
        """Streams side by side under resampled recorded actions: their windows, and frames for a contact sheet."""
        starts, _ = self.starts([segments[i] for i in numbers], self.layout.context)
        draws = [torch.Generator().manual_seed(self.call_seed(STREAMS, i)) for i in numbers]
        labels = starts.labels
        rows = [
            resampled_actions(self.evaluation, label, self.layout.total, draw)
            for label, draw in zip(labels, draws, strict=True)
        ]
        before = np.nan_to_num(starts.actions[:, : self.layout.context - 1])
        actions = np.concatenate([before, np.stack(rows)], axis=1)
        starts = Starts(starts.context, actions, labels, starts.captions)
        frames = tolerated(self.model.stream(starts, self.call_seed(STREAMS, numbers.start)), self.layout.total)
        described, sheet = self._watched(frames, actions)
        return Rows(described | {"sheet": sheet})

    def _watched(
        self, frames: Iterator[UInt8[np.ndarray, "n h w 3"]], actions: Float[np.ndarray, "n rows a"]
    ) -> tuple[dict[str, Tensor], UInt8[Tensor, "n s h w 3"]]:
        """Windows of a batch of streams by their first frame, and the frames of the contact sheet."""
        ends = {start + WINDOW: start for start in self.layout.window_starts}
        kept: list[np.ndarray] = []
        found: dict[str, Tensor] = {}
        shown: list[np.ndarray] = []
        for number, frame in enumerate(tqdm(frames, "stream", self.layout.total, disable=None, leave=False), start=1):
            kept = [*kept, frame][-WINDOW:]
            shown += [frame] if number in self.layout.sheet else []
            if number in ends:
                first = self.layout.context + ends[number]
                window = as_tensor(np.stack(kept, axis=1))
                values = self.described(window, actions[:, first : first + WINDOW - 1])
                found |= {f"{name}_{ends[number]}": value for name, value in values.items()}
        shown = shown or [frame]  # a stream shorter than the first frame of a contact sheet: its last frame
        return found, as_tensor(np.stack(shown, axis=1))

    def return_rows(self, segments: Sequence[Segment], numbers: range) -> Rows:
        """Clips that turn there and back: the frame before beside the one after, the farthest one, and random pairs."""
        layout = self.layout
        assert layout.there is not None and layout.back is not None
        starts, _ = self.starts([segments[i] for i in numbers], layout.context)
        script = np.concatenate([layout.there, layout.back])
        turn = np.broadcast_to(script, (len(starts), *script.shape))
        actions = np.concatenate([np.nan_to_num(starts.actions[:, : layout.context - 1]), turn], axis=1)
        starts = Starts(starts.context, actions.astype(np.float32), starts.labels, starts.captions)
        count, away = layout.context + len(script), layout.context - 1 + len(layout.there)
        clips = as_tensor(self.model.clips(starts, count, self.call_seed(RETURNS, numbers.start)))
        generator = torch.Generator().manual_seed(self.call_seed(RETURNS, numbers.start))
        first, second = (layout.context - 1 + torch.randperm(len(script) + 1, generator=generator)[:2]).tolist()
        pairs = {"": (layout.context - 1, count - 1), "_away": (layout.context - 1, away), "_random": (first, second)}
        rows = {f"error{name}": squared_error(clips[:, [i]], clips[:, [j]])[:, 0] for name, (i, j) in pairs.items()}
        return Rows(rows)


def squared_error(real: Clips, fake: Clips) -> Float[Tensor, "n t"]:
    """Mean squared error of every frame, for data in [0, 1]."""
    return ((real.double() - fake.double()) / 255).square().mean(dim=(2, 3, 4))


def guesses(real: Clips, context: int) -> dict[str, Clips]:
    """Clips that need no model: the first frame, the last one of the context, and the context played again."""
    length = real.shape[1]
    again = torch.arange(length) % context
    return {
        "first_frame": real[:, :1].expand_as(real),
        "last_frame": real[:, context - 1 : context].expand_as(real),
        "context_again": real[:, again],
    }


def next_positions(layout: Layout) -> list[int]:
    """Frames of a clip that are predicted from real ones, at equal distances."""
    room = layout.length - 1 - layout.history
    return [layout.history + round(i * room / (NEXT_POSITIONS - 1)) for i in range(NEXT_POSITIONS)]


def other_segment(segments: Sequence[Segment], number: int) -> Segment:
    """The next segment of another episode; of another part where there is one episode only."""
    following = [segments[(number + i) % len(segments)] for i in range(1, len(segments))]
    own = segments[number]
    return next((segment for segment in following if segment.episode != own.episode), (following or [own])[0])


def real_windows(episodes: Episodes, segments: Sequence[Segment]) -> tuple[Clips, Float[np.ndarray, "n rows a"]]:
    """Frames of windows, and the actions that lead from one frame of them to the next."""
    frames = as_tensor(np.stack([episodes.frames(segment) for segment in segments]))
    return frames, np.stack([episodes.actions(segment)[:-1] for segment in segments])


def tolerated(frames: Iterator[UInt8[np.ndarray, "n h w 3"]], total: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """The first `total` frames; after numbers that are not finite, black ones, so that a stream that ends is dead."""
    last: np.ndarray | None = None
    for number in range(total):
        try:
            last = next(frames)
        except UserError:
            if last is None:
                raise  # nothing was generated: the options are wrong, not the stream
            yield from [np.zeros_like(last)] * (total - number)
            return
        yield last


def windows_of(rows: Rows, suffix: str = "") -> Windows:
    """Windows of one kind of rows, for the rule."""
    features, statistics, moved, actions = (rows[f"{name}{suffix}"] for name in DESCRIBED)
    return Windows(features, statistics, moved, actions)
