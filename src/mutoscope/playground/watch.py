"""Generation to watch: one clip, step by step, with the positions that every step decides.

Synchronous, one step per turn; `WatchSession` gives it turns and sends what happens.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.base import SampleEvent
from mutoscope.tokenizers.base import StreamState

PREVIEW_SECONDS = 0.25  # between two decoded guesses of a clip that is decoded as a whole
MAX_FRAMES = 256
LEVELS = 255  # of confidence


@dataclass(frozen=True)
class WatchStep:
    """What one step did."""

    step: int
    num_steps: int
    seconds: float
    grid: tuple[int, int, int]
    """latent frames, rows and columns"""
    decided: list[int]
    """positions in raster order, latent frame by latent frame"""
    confidence: list[int] | None
    """of these positions, 0 to 255, for families that rank by it"""
    frames: UInt8[np.ndarray, "t h w 3"] | None
    """new frames, or a preview of all"""
    first: int
    """number of the first of `frames`"""
    is_preview: bool
    is_last: bool


class Watch:
    """One checked call on its way."""

    def __init__(self, pipeline: VideoPipeline, options: Mapping[str, object], previews: bool = True) -> None:
        """previews: also decode guesses of clips that are decoded as a whole.

        Raises UserError for options that do not fit, several samples, and clips longer than `MAX_FRAMES`.
        """
        self.pipeline, self.request = pipeline, pipeline.prepare(**options)
        if self.request.num_samples != 1 or (self.request.num_frames or 1) > MAX_FRAMES:
            raise UserError(f"The page shows one clip of at most {MAX_FRAMES} frames at a time.")
        self.begin = time.perf_counter()
        self._last_preview, self._previews = 0.0, previews
        self._in_order = pipeline.tokenizer.spec.decodes_in_order and pipeline.tokenizer.can_rewind
        self._waiting: deque[Tensor] = deque()
        self._parts = pipeline.tokenizer.stream_decode(self._handed_over(), StreamState()) if self._in_order else None
        self._frames: list[UInt8[np.ndarray, "t h w 3"]] = []

    def _handed_over(self) -> Iterator[Tensor]:
        while self._waiting:
            yield self._waiting.popleft()

    def steps(self) -> Iterator[WatchStep]:
        """One item per step of the sampler."""
        [*batches] = [next(iter(self.request.events()))]
        for event in batches[0]:
            yield self._step(event)

    @torch.inference_mode()
    def _step(self, event: SampleEvent) -> WatchStep:
        first = sum(map(len, self._frames))
        frames = self._new_frames(event, first)
        preview = self._previews and frames is None and not self._in_order and self._is_preview_due()
        if preview:
            frames, first = self._whole(event.proposal), 0
        decided = event.decided[0].flatten().nonzero()[:, 0]
        return WatchStep(
            step=event.step,
            num_steps=event.num_steps,
            seconds=time.perf_counter() - self.begin,
            grid=(event.decided.shape[1], event.decided.shape[2], event.decided.shape[3]),
            decided=decided.tolist(),
            confidence=_levels(event, decided),
            frames=frames,
            first=first,
            is_preview=preview,
            is_last=event.is_last,
        )

    def _new_frames(self, event: SampleEvent, first: int) -> UInt8[np.ndarray, "t h w 3"] | None:
        """Frames that this step finished."""
        if event.frames is None or (self._parts is None and not event.is_last):
            return None
        if self._parts is None:
            frames = self.request.finish(self.pipeline.decoded(event.proposal, self.request), 0)[0]
        else:
            self._waiting.append(event.finished)
            frames = self.pipeline.to_frames(next(self._parts))[0]
            left = (self.request.num_frames or MAX_FRAMES) - first
            frames = frames[:left]
        self._frames.append(frames)
        return frames

    def _is_preview_due(self) -> bool:
        now = time.perf_counter()
        if now - self._last_preview < PREVIEW_SECONDS:
            return False
        self._last_preview = now
        return True

    def _whole(self, tokens: Tensor) -> UInt8[np.ndarray, "t h w 3"]:
        return self.pipeline.decoded(tokens, self.request)[0]

    def clip(self) -> VideoClip:
        """All finished frames."""
        return VideoClip(np.concatenate(self._frames), self.pipeline.index.fps)


def _levels(event: SampleEvent, decided: Tensor) -> list[int] | None:
    """Confidence of the decided positions relative to that of all positions ranked in this step."""
    if event.confidence is None:
        return None
    values = event.confidence[0].flatten()[decided].float()
    values = values.nan_to_num(posinf=0.0, neginf=-30.0).exp().clamp(0, 1)
    return (values * LEVELS).round().int().tolist()
