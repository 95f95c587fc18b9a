"""Frame after frame by flow matching: FAR's decoding (arXiv 2503.19325).

A frame starts as noise and is denoised by Euler steps, given what the network remembers of all finished frames. A
finished frame is read once, when the next one begins. A network with coarse frames keeps two levels of memory: once
there are more frames than it reads in fine patches, each new frame makes an old one coarse, and the fine ones are read
again, since what they see has changed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, Protocol, Self, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mutoscope.checks import COUNT, NOT_NEGATIVE, POSITIVE, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.diffusion import EulerPlan, FlowMatching
from mutoscope.layers.draws import Draws, copied, randn
from mutoscope.layers.finite import require_finite
from mutoscope.sampling.base import Latents, SampleEvent, Sampler
from mutoscope.sampling.guidance import guide

MAX_READ = 32  # frames read in a single pass: bounds memory, and does not change the result


class FlowSizes(Protocol):
    """Sizes of a frame, and its noise levels."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def token_grid(self) -> tuple[int, int]: ...
    @property
    def num_fine_frames(self) -> int | None: ...  # the one in progress among them; None: no frame is ever coarse
    @property
    def is_conditional(self) -> bool: ...
    @property
    def diffusion(self) -> FlowMatching: ...


class ConditionRows(Protocol):
    """What one frame is conditioned on, for the rows of all guidance passes, conditional ones first.

    The sampler passes it on to the network and never looks inside.
    """

    @classmethod
    def grouped(cls, frames: Sequence[Self]) -> list[tuple[int, Self]]:
        """Runs of frames that can be read together, joined into one value each: (count, conditions)."""
        ...

    def equals(self, other: Self) -> bool:
        """Whether both are the same tensors."""
        ...


class FlowCache(Protocol):
    """What a network remembers of finished frames, coarse ones first."""

    length: int

    def truncate(self, length: int) -> None: ...


class StepModulations(Protocol):
    """What the time of each step changes in the network."""

    def at(self, step: int) -> list[Tensor]: ...


Conditions = TypeVar("Conditions", bound=ConditionRows)
ReadConditions = TypeVar("ReadConditions", bound=ConditionRows, contravariant=True)
Cache = TypeVar("Cache", bound=FlowCache)


class FlowModel(Protocol[ReadConditions, Cache]):
    """Methods that the sampler needs of a network."""

    @property
    def config(self) -> FlowSizes: ...

    @property
    def device(self) -> torch.device: ...

    def reserve(self, batch_size: int, num_frames: int) -> Cache:
        """Memory for that many frames, the one in progress among them."""
        ...

    def read(
        self,
        cache: Cache,
        latents: Float[Tensor, "b c f h w"],
        conditions: ReadConditions,
        first: int,
        is_coarse: bool = False,
    ) -> None:
        """Read finished frames into the cache; `first` is the number of the first one."""
        ...

    def modulations(self, times: Float[Tensor, " steps"], conditions: ReadConditions, rows: int) -> StepModulations:
        """Everything about the steps that is the same for all tokens of the frame in progress."""
        ...

    def velocity(
        self, cache: Cache, latents: Float[Tensor, "b c 1 h w"], modulations: list[Tensor], number: int
    ) -> Float[Tensor, "b c 1 h w"]:
        """Noise minus clean latents of the frame in progress. The cache is left as it was."""
        ...


@dataclass(frozen=True)
class FlowCondition(Generic[Conditions]):
    """What the samples of one batch are conditioned on, frame by frame."""

    at: Callable[[int], Conditions]
    """Conditions of a 0-based latent frame: called when it begins, and once more when it is finished and the next one
    begins, by which time its action may be another."""
    num_samples: int
    num_frames: int | None = None
    """Latent frames of the clip, those of the context among them; None: until the caller stops."""
    context: Float[Tensor, "b c k h w"] | None = None
    """Latents of the frames that the clip starts with."""

    @property
    def num_context(self) -> int:
        """Latent frames of the context."""
        return 0 if self.context is None else self.context.shape[2]


RANGES = {
    "num_decoding_steps": COUNT,
    "guidance_scale": NOT_NEGATIVE,
    "flow_shift": POSITIVE,
    "window": COUNT,
}


@dataclass(frozen=True)
class FrameFlowSamplerConfig:
    """How a frame is denoised and guided, and how many frames it sees."""

    num_decoding_steps: int = 50
    """Euler steps per frame."""
    guidance_scale: float = 1.0
    """u + s (c - u); 1 is off, 0 reads no conditions at all."""
    flow_shift: float | None = None
    """More of the steps at high noise for values above 1; None: as in training."""
    window: int | None = None
    """Latent frames that see each other, the one in progress among them; None: all of a clip, and in a stream without
    an end as many as in training."""
    window_mode: Literal["sliding", "chunked"] = "sliding"
    """A full window drops its first frame (sliding) or half its length (chunked), and the rest is read anew."""
    use_cache: bool = True
    """False reads all frames anew in every step, with the same result, for comparison."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    def num_passes(self, is_conditional: bool) -> int:
        """Rows of conditions that each sample needs: 1, with guidance of a conditional network 2."""
        return 2 if is_conditional and self.guidance_scale not in (0.0, 1.0) else 1


class FrameFlowSampler(
    Sampler[FlowModel[Conditions, Cache], FlowCondition[Conditions], SampleEvent], Generic[Conditions, Cache]
):
    """One event per Euler step; without an end, events show the window instead of the whole clip.

    Draws the noise of every frame from `generator` when the frame begins.
    """

    def __init__(self, config: FrameFlowSamplerConfig) -> None:
        self.config = config

    def noise(self, shape: tuple[int, int, int, int, int], frame: int, generator: Draws) -> Float[Tensor, "b c 1 h w"]:
        """Noise that the latent frame `frame` starts from."""
        return randn(generator, *shape)

    @torch.no_grad()
    def sample(
        self,
        model: FlowModel[Conditions, Cache],
        condition: FlowCondition[Conditions],
        generator: Draws,
    ) -> Iterator[SampleEvent]:
        """`condition.num_frames` latent frames, those of the context among them; None: until the caller stops."""
        stream = _Stream(self, model, condition, generator)
        stream.accept_context()
        yield from self._continued(stream, condition.num_context)

    def _resumed(
        self, model: FlowModel[Conditions, Cache], condition: FlowCondition[Conditions], memory: "_Memory[Conditions]"
    ) -> Iterator[SampleEvent]:
        stream = _Stream(self, model, condition, copied(memory.random))
        stream.recall(memory)
        yield from self._continued(stream, memory.frame)

    @torch.no_grad()
    def _continued(self, stream: "_Stream[Conditions, Cache]", frame: int) -> Iterator[SampleEvent]:
        """The frames from the 0-based latent frame `frame` on."""
        begin, condition, steps = time.perf_counter(), stream.condition, len(stream.plan)
        num_frames, num_context = condition.num_frames, condition.num_context
        total = 0 if num_frames is None else (num_frames - num_context) * steps
        while num_frames is None or frame < num_frames:
            stream.begin_frame(frame)
            for k in range(steps):
                stream.step(k)
                is_finished = k == steps - 1
                shown = len(stream.shown) + 1
                # The first finished frame brings those of the context with it.
                first = 0 if frame == num_context else shown - 1
                memory = stream.memory(frame + 1) if is_finished else None
                yield SampleEvent(
                    step=(frame - num_context) * steps + k,
                    num_steps=total,
                    decided=stream.decided(is_finished),
                    frames=slice(first, shown) if is_finished else None,
                    seconds=time.perf_counter() - begin,
                    draft=stream.draft(),
                    cut=stream.draft_of(first),
                    again=None if memory is None else partial(self._resumed, stream.model, condition, memory),
                    ahead=stream.work_ahead if is_finished and frame + 1 != num_frames else None,
                )
            stream.finish_frame()
            frame += 1


@dataclass
class _Frame(Generic[Conditions]):
    """A finished frame; its conditions are known once the next frame begins."""

    number: int
    latents: Float[Tensor, "b c 1 h w"]
    conditions: Conditions | None = None


@dataclass(frozen=True)
class _Memory(Generic[Conditions]):
    """Everything that a stream needs to go on from the end of a frame."""

    frame: int
    """Number of the next frame."""
    history: tuple[_Frame[Conditions], ...]
    shown: tuple[Tensor, ...]
    random: Draws


class _Stream(Generic[Conditions, Cache]):
    """The frames so far, what the network remembers of them, and the frame in progress."""

    x: Float[Tensor, "b c 1 h w"]
    """Latents of the frame in progress."""
    guess: Float[Tensor, "b c 1 h w"]
    """Its predicted end, for previews."""
    is_finished = False
    """Whether the frame in progress is in the history already."""

    def __init__(
        self,
        sampler: FrameFlowSampler[Conditions, Cache],
        model: FlowModel[Conditions, Cache],
        condition: FlowCondition[Conditions],
        generator: Draws,
    ) -> None:
        self.sampler, self.config, self.model = sampler, sampler.config, model
        self.condition, self.generator = condition, generator
        self.plan: EulerPlan = model.config.diffusion.plan(self.config.num_decoding_steps, self.config.flow_shift)
        self.passes = self.config.num_passes(model.config.is_conditional)
        is_endless = condition.num_frames is None
        self.window = self.config.window or (model.config.latent_shape[0] if is_endless else None)
        self._check_window()
        self.cache = model.reserve(self.passes * condition.num_samples, self._capacity())
        self.history: list[_Frame[Conditions]] = []  # frames of the window
        self.shown: tuple[Tensor, ...] = ()  # frames of the clip; without an end, of the window
        self.num_coarse, self.coarse_length = 0, 0  # coarse frames in the cache, and its length after them
        self.num_read = 0  # frames in the cache
        self.known: tuple[Conditions, StepModulations] | None = None

    def _check_window(self) -> None:
        known, total = self.condition.num_context, self.condition.num_frames
        if total is not None and known >= total:
            raise UserError(f"The context has {known} latent frames and the clip {total}: nothing is left to generate.")
        if self.window is not None and known >= self.window:
            raise UserError(
                f"The context has {known} latent frames, but a window of {self.window} holds {self.window - 1} beside "
                "the one in progress: give fewer frames, or a larger window."
            )

    def _capacity(self) -> int:
        """Frames that the cache must hold."""
        sizes = [size for size in (self.window, self.condition.num_frames) if size is not None]
        return min(sizes)

    # --------------------------------------------------------------------------------------------------- history

    def accept_context(self) -> None:
        """Take over the frames that the clip starts with."""
        for frame in range(self.condition.num_context):
            assert self.condition.context is not None
            self._accept(frame, self.condition.context[:, :, frame : frame + 1].float())

    def _accept(self, frame: int, latents: Float[Tensor, "b c 1 h w"]) -> None:
        self.history.append(_Frame(frame, latents))
        self.shown = (*self.shown, latents)
        if self.condition.num_frames is None and self.window is not None:
            self.shown = self.shown[-self.window :]

    def memory(self, frame: int) -> _Memory[Conditions]:
        """What is to be remembered once the frame in progress, before `frame`, is finished."""
        history = (*self.history, _Frame[Conditions](frame - 1, self.x))
        return _Memory(frame, history, (*self.shown, self.x), copied(self.generator))

    def recall(self, memory: _Memory[Conditions]) -> None:
        """Go on from the end of a frame."""
        self.history = [_Frame(frame.number, frame.latents, frame.conditions) for frame in memory.history]
        self.shown = memory.shown
        if self.condition.num_frames is None and self.window is not None:
            self.shown = self.shown[-self.window :]

    def _make_room(self) -> None:
        """Move a full window on. Its frames are numbered from 0 again, since only distances matter."""
        if self.window is None or len(self.history) < self.window:
            return
        keep = self.window // 2 if self.config.window_mode == "chunked" else self.window - 1
        self.history = self.history[len(self.history) - keep :]
        self._forget()

    def _forget(self) -> None:
        self.cache.truncate(0)
        self.num_coarse, self.coarse_length, self.num_read = 0, 0, 0

    def _read_history(self, last: int) -> None:
        """Bring the cache up to date for a frame after all of the history; only its first `last` frames are read."""
        fine = self.model.config.num_fine_frames
        num_coarse = 0 if fine is None else max(0, len(self.history) + 1 - fine)
        if num_coarse > self.num_coarse and num_coarse <= last:  # what fine frames see has changed
            self.cache.truncate(self.coarse_length)
            self._read(self.num_coarse, num_coarse, is_coarse=True)
            self.num_coarse = self.num_read = num_coarse
            self.coarse_length = self.cache.length
        self._read(self.num_read, last, is_coarse=False)
        self.num_read = max(self.num_read, last)

    def _read(self, first: int, last: int, is_coarse: bool) -> None:
        while first < last:
            frames = self.history[first : min(last, first + MAX_READ)]
            for count, shared in type(self._conditions_of(frames[0])).grouped([*map(self._conditions_of, frames)]):
                latents = torch.cat([frame.latents for frame in self.history[first : first + count]], dim=2)
                self.model.read(self.cache, self._rows(latents), shared, first, is_coarse)
                first += count

    def _conditions_of(self, frame: _Frame[Conditions]) -> Conditions:
        if frame.conditions is None:
            frame.conditions = self.condition.at(frame.number)
        return frame.conditions

    def _rows(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "rows c f h w"]:
        """Latents for the rows of all guidance passes."""
        return latents.repeat(self.passes, 1, 1, 1, 1)

    # --------------------------------------------------------------------------------------- the frame in progress

    def begin_frame(self, frame: int) -> None:
        """Start the 0-based latent frame `frame` from noise."""
        self._make_room()
        if self.config.use_cache:
            self._read_history(len(self.history))
        self.is_finished = False
        config, b = self.model.config, self.condition.num_samples
        shape = (b, config.latent_channels, 1, *config.latent_shape[1:])
        self.frame, self.x = frame, self.sampler.noise(shape, frame, self.generator).to(self.model.device)
        self.guess = self.x
        conditions = self.condition.at(frame)
        if self.known is None or not self.known[0].equals(conditions):
            times = self.plan.times.float()
            self.known = conditions, self.model.modulations(times, conditions, self.passes * b)

    def step(self, k: int) -> None:
        """One Euler step."""
        assert self.known is not None
        if not self.config.use_cache:
            self._forget()
            self._read_history(len(self.history))
        modulations = self.known[1].at(k)
        velocity = self.model.velocity(self.cache, self._rows(self.x), modulations, len(self.history)).float()
        if self.passes == 2:
            conditional, unconditional = velocity.chunk(2)
            velocity = guide(conditional, unconditional, self.config.guidance_scale)
        self.guess = self.x - self.plan.sigmas[k].item() * velocity
        self.x = self.plan.step(k, self.x, velocity)
        require_finite(self.x, f"The latents of frame {self.frame}", modulations[0].dtype)

    def finish_frame(self) -> None:
        """Move the frame in progress to the history; it is read when the next one begins.

        A second call for one frame does nothing.
        """
        if not self.is_finished:
            self.is_finished = True
            self._accept(self.frame, self.x)

    @torch.no_grad()
    def work_ahead(self) -> None:
        """Read all frames whose conditions are known already: all but the last one, whose action may change yet."""
        self.finish_frame()
        self._make_room()
        if self.config.use_cache:
            self._read_history(sum(frame.conditions is not None for frame in self.history))

    # ------------------------------------------------------------------------------------------------------ events

    def decided(self, is_finished: bool) -> Bool[Tensor, "b t h w"]:
        """Positions fixed in this step: none, or in the last step all of the frame in progress."""
        end = len(self.shown) + 1
        shape = self.condition.num_samples, self.condition.num_frames or end, *self.model.config.token_grid
        positions = torch.zeros(shape, dtype=torch.bool)
        positions[:, end - 1] = is_finished
        return positions

    def draft(self) -> Callable[[], Latents]:
        """Builds the clip as it is now, with the predicted end of the frame in progress; without an end, the window."""
        frames = (*self.shown, self.guess)
        return partial(_layout, frames, self.condition.num_frames or len(frames))

    def draft_of(self, first: int) -> Callable[[], Latents]:
        """Builds the shown frames from `first` to the one in progress."""
        frames = (*self.shown, self.guess)[first:]
        return partial(_layout, frames, len(frames))


def _layout(frames: tuple[Float[Tensor, "b c 1 h w"], ...], num_frames: int) -> Float[Tensor, "b c f h w"]:
    """Frames as one clip, with zeros up to `num_frames`."""
    clip = torch.cat(frames, dim=2)
    missing = torch.zeros_like(clip[:, :, :1]).repeat_interleave(num_frames - len(frames), dim=2)
    return torch.cat([clip, missing], dim=2)
