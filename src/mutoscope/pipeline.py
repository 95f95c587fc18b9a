"""`VideoPipeline`: a model folder in, video out. Tokenizer, network and sampler meet here."""

import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.clip_input import ClipLike, video_of
from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError
from mutoscope.families import Call, Request, Steering, family_named
from mutoscope.families.base import BoundFamily, OnStep, Parts, is_listed
from mutoscope.families.first_frames import FirstFrames
from mutoscope.layers.compiled import CapturedCompiler, Compiler, OnCompiled
from mutoscope.layers.cuda_graph import CUDAGraphs
from mutoscope.layers.finite import require_finite
from mutoscope.layers.int8 import quantize_linears
from mutoscope.layers.packed import pack_linears
from mutoscope.layers.recorded import Steps
from mutoscope.models.base import AnyModel
from mutoscope.sampling.base import SampleEvent, last_of
from mutoscope.text import TextEncoder, load_text_encoder
from mutoscope.text.offload import OffloadedTextEncoder
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL
from mutoscope.tokenizers.base import StreamState, VideoTokenizer
from mutoscope.tokenizers.tiling import TilingConfig, encode_decode

Weights = Literal["float", "int8"]


MARGIN = 2  # latent frames after a window is full: one that moves it, and one like all later ones
SHORTEST = 1e-9  # seconds: a clock too coarse for a tiny model must not divide by zero


@dataclass(frozen=True, repr=False)
class Generation:
    """The clips and what they cost. Times start when the call starts and exclude loading and writing."""

    clips: tuple[VideoClip, ...]
    request: Request
    seconds: float
    """Sampling and the tokenizer's decoder."""
    seconds_first_frame: float
    """Until the first frame exists as pixels."""
    seconds_sampling: float
    """Encoding of the context and decoding of tokens."""

    def __repr__(self) -> str:
        request = self.request
        return f"Generation({request.task}, seed {request.seed}, {self.seconds:.3g} s, clips={self.clips})"

    @property
    def num_frames(self) -> int:
        return sum(len(clip.frames) for clip in self.clips)

    @property
    def frames_per_second(self) -> float:
        """Frames of all samples per second of sampling."""
        return self.num_frames / max(self.seconds_sampling, SHORTEST)

    @property
    def frames_per_second_with_decoding(self) -> float:
        return self.num_frames / max(self.seconds, SHORTEST)


@dataclass(frozen=True)
class Bookmark:
    """A place in a stream, between two frames. It holds some latents, no pixels but those not yet delivered."""

    again: Callable[[], Iterator[SampleEvent]]
    decoder: StreamState
    left: float
    ready: tuple[UInt8[np.ndarray, "h w 3"], ...]


Decode = Callable[[Iterator[SampleEvent], StreamState], Iterator[UInt8[np.ndarray, "t h w 3"]]]
"""Turns the events of one sample into frames; what the decoder remembers is in the state."""


class VideoStream(Iterator[UInt8[np.ndarray, "h w 3"]]):
    """Frames of one sample as they are finished. The conditions of a stream of a steerable model can change on the way,
    and it can be rewound to a bookmark and go on from there once more."""

    def __init__(
        self,
        events: Iterator[SampleEvent],
        decode: Decode,
        num_frames: int | None = None,
        steering: Steering | None = None,
        can_rewind: bool = False,
    ) -> None:
        """`steering`: the steering handle, or None if the family cannot be steered. `can_rewind`: whether `decode`
        remembers nothing but its state."""
        self._decode, self._steering, self._can_rewind = decode, steering, can_rewind
        self._left = math.inf if num_frames is None else num_frames
        self.seconds_sampling, self.seconds_decoding = 0.0, 0.0  # spent on frames so far
        self._begin(events, StreamState(), ())

    def _begin(
        self,
        events: Iterator[SampleEvent],
        decoder: StreamState,
        ready: tuple[UInt8[np.ndarray, "h w 3"], ...],
    ) -> None:
        self._decoder, self._ready = decoder, deque(ready)
        self._again: Callable[[], Iterator[SampleEvent]] | None = None
        self._ahead: Callable[[], None] | None = None
        self._parts = self._decode(self._noted(events), decoder)

    def _noted(self, events: Iterator[SampleEvent]) -> Iterator[SampleEvent]:
        begin = time.perf_counter()
        for event in events:
            self.seconds_sampling += time.perf_counter() - begin
            self._again = event.again or self._again
            self._ahead = event.ahead
            yield event
            begin = time.perf_counter()

    def __next__(self) -> UInt8[np.ndarray, "h w 3"]:
        if self._left <= 0:
            raise StopIteration
        while not self._ready:
            begin = time.perf_counter() - self.seconds_sampling
            with torch.inference_mode():  # around each part, because a generator must not change the caller's mode
                self._ready.extend(next(self._parts))
            self.seconds_decoding += time.perf_counter() - begin - self.seconds_sampling
        self._left -= 1
        return self._ready.popleft()

    def change(self, **conditions: object) -> None:
        """Change conditions from the next frame on; omitted ones stay. See the family's change, as `MAGIChange`."""
        if self._steering is None:
            raise UserError("The conditions of this stream cannot change on the way: its family cannot be steered.")
        self._steering.change(**conditions)

    def work_ahead(self) -> None:
        """Do the part of the next frame that its conditions do not change, such as reading the frame before.

        Called between two frames, it shortens the time from a changed condition to the frame that follows it. Without
        a call, or in families without such work, all of it is done with the next frame; the frames are the same.
        """
        if self._ahead is not None and self._left > 0:
            begin = time.perf_counter()
            with torch.inference_mode():
                self._ahead()
            self.seconds_sampling += time.perf_counter() - begin

    def bookmark(self) -> Bookmark:
        """The place after the last frame, for `rewind`. Raises UserError before the first frame, and for models whose
        streams cannot be rewound."""
        if self._again is None or not self._can_rewind:
            raise UserError(
                "There is no bookmark to take: no frame is finished yet, or streams of this model cannot be rewound."
            )
        return Bookmark(self._again, self._decoder.copy(), self._left, tuple(self._ready))

    def rewind(self, bookmark: Bookmark) -> None:
        """Go on from a bookmark of this stream: with the same draws, and with the conditions of now."""
        self._left = bookmark.left
        self._begin(bookmark.again(), bookmark.decoder.copy(), bookmark.ready)
        self._again = bookmark.again


class VideoPipeline:
    """A tokenizer, a video model and the sampler that joins them.

    `__call__`, `generate`, `stream` and `prepare` take either the family's typed `Call` (such as
    `families.magvit.MagvitCall`) or its fields and those of its sampler as keyword options: class_label, context,
    num_frames, seed, num_decoding_steps, guidance_scale ... `mutoscope generate MODEL --help` lists them. A list of
    labels, prompts or clips stands for one sample each. A clip is anything that `data.clip_input` reads: uint8 frames,
    one frame, an image, a tensor, a `VideoClip`, or the path of a video or image.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        model: AnyModel | None,
        index: hub.ModelIndex,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: Callable[[], TextEncoder] | None = None,
        weights: Weights = "float",
        capture: bool = False,
        folder: Path | None = None,
        compile: bool = False,
        on_compiled: OnCompiled = lambda seconds: None,
    ) -> None:
        """`model`: None for a tokenizer alone. `text_encoder` loads the text encoder; called at the first prompt.

        `folder`: of the first frames that `index` names.

        `weights` "int8" rounds the linear layers to 8 bits on the CPU (see `layers.int8`), and `capture` records the
        decoding steps as CUDA graphs (see `families.recorded`), both for families that declare it. `compile` compiles
        the steps of sampling (see `layers.compiled`), each at its first call; `on_compiled` receives the seconds that
        took. The tokenizer's decoder stays as it is: its convolutions are no faster compiled (measured).
        """
        self.device = torch.device(device)
        self.index, self.weights, self.folder = index, weights, folder
        # The search for the nearest code loses accuracy in half precision, so `dtype` leaves the tokenizer as it is.
        self.tokenizer = tokenizer.to(self.device).eval()
        compiler = Compiler(on_compiled) if compile else None
        self.model = None if model is None else model.to(self.device, dtype).eval()
        self._family: BoundFamily | None = None
        if self.model is None:
            if weights == "int8":
                raise UserError("8-bit weights are for models; this is a tokenizer only. Omit weights.")
            return
        family = family_named(index.family)
        if weights == "int8":
            if not family.capabilities.packs:
                raise UserError(f"Models of {family.title} have no 8-bit weights. Omit weights.")
            quantize_linears(self.model)
        elif family.capabilities.packs:
            pack_linears(self.model)
        self._family = family.bind(Parts(self.tokenizer, self.model, index, self.device, text_encoder, folder))
        if capture:
            self._check_capture(self._family)
            self._family.record_steps(Steps(CUDAGraphs() if compiler is None else CapturedCompiler(compiler)))
        elif compiler is not None:
            self._family.record_steps(Steps(compiler))

    def __repr__(self) -> str:
        index, kind = self.index, "a tokenizer" if self._family is None else self._family.title
        clips = f"{index.num_frames} frames of {index.height}×{index.width}, {index.fps:g} fps"
        return f"VideoPipeline({kind}, {clips}, {self.device})"

    def _check_capture(self, family: BoundFamily) -> None:
        if not family.capabilities.captures:
            raise UserError(f"Steps of {family.title} models cannot be captured. Omit capture.")
        if self.device.type != "cuda":
            raise UserError(f"Steps are captured on a CUDA GPU, this is {self.device}. Omit capture.")

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str] | hub.ModelFolder,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Weights = "float",
        *,
        text_encoder_offload: bool = False,
        text_encoder_dtype: torch.dtype | None = None,
        tokenizer_dtype: torch.dtype = torch.float32,
        tokenizer_window: int | None = None,
        capture: bool = False,
        compile: bool = False,
        on_compiled: OnCompiled = lambda seconds: None,
    ) -> "VideoPipeline":
        """A bundled model by name, a model folder, or an opened `ModelFolder`. A tokenizer can only `reconstruct`.

        text_encoder_offload: drop the text encoder from memory as soon as the prompts of a call are encoded. A prompt
            that is no longer cached loads it again; see `text.offload`.
        text_encoder_dtype: dtype of the text encoder's weights (default: `dtype`)
        tokenizer_dtype, tokenizer_window: of a published autoencoder, to save memory: dtype of its weights, and pixels
            along the side of the windows in which frames are encoded and decoded; see `TileOptions`
        capture: on a CUDA GPU, record the decoding steps at their first call and replay them
        compile: compile the steps of sampling at their first call, which takes minutes once and is kept on disk for the
            next process; results are equal up to rounding
        on_compiled: called after each compiled step with the seconds that it took
        """
        folder = name_or_folder if isinstance(name_or_folder, hub.ModelFolder) else hub.open_folder(name_or_folder)
        index, encoder, load = folder.index, folder.text_encoder_path, None
        model = None if index.model is None else folder.load_model()
        if encoder is not None:
            index = replace(index, text_encoder=str(encoder))  # absolute, so that the model can be saved anywhere
            kind = OffloadedTextEncoder if text_encoder_offload else load_text_encoder
            load = partial(kind, encoder, torch.device(device), text_encoder_dtype or dtype)
        elif text_encoder_offload or text_encoder_dtype is not None:
            raise UserError("This model has no text encoder. Omit the options of the text encoder.")
        tokenizer = _in_less_memory(folder.load_tokenizer(), tokenizer_dtype, tokenizer_window)
        return cls(tokenizer, model, index, device, dtype, load, weights, capture, folder.path, compile, on_compiled)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write a folder that needs no other one; only a text encoder stays where it is."""
        if self.weights != "float":
            raise UserError("8-bit weights exist in memory only and cannot be saved: save a model with float weights.")
        index = replace(self.index, tokenizer="./tokenizer", model=None if self.model is None else "./model")
        frames = FirstFrames(self.folder, index.first_frames)
        images = {file: frames.read(name)[0].numpy() for name, file in frames.files.items()}
        return hub.save_pretrained(folder, index, self.tokenizer, self.model, first_frames=images)

    # ------------------------------------------------------------------------------------------------ generating

    @property
    def family(self) -> BoundFamily:
        """The model's family. Raises UserError for a tokenizer alone."""
        if self._family is None:
            raise UserError("This is a tokenizer only; it can reconstruct but not generate.")
        return self._family

    @overload
    def __call__(
        self, call: Call | None = None, /, *, num_samples: Literal[1] | None = None, **options: object
    ) -> VideoClip: ...

    @overload
    def __call__(
        self, call: Call | None = None, /, *, num_samples: int, **options: object
    ) -> VideoClip | list[VideoClip]: ...

    def __call__(
        self, call: Call | None = None, /, *, num_samples: int | None = None, **options: object
    ) -> VideoClip | list[VideoClip]:
        """Generate; a list if several samples are requested or lists are given."""
        options |= {} if num_samples is None else {"num_samples": num_samples}
        call = self._call(call, options)
        clips = list(self.generate(call).clips)
        return clips if any(map(is_listed, conditions_of(call))) or len(clips) > 1 else clips[0]

    def generate(
        self, call: Call | None = None, /, *, on_step: OnStep = lambda event: None, **options: object
    ) -> Generation:
        """Generate and measure. `on_step` receives every event of the sampler. Warns of options without effect."""
        return self.run(_warned(self.prepare(call, **options)), on_step)

    def stream(self, call: Call | None = None, /, **options: object) -> VideoStream:
        """Frames of one sample as they are finished.

        num_frames=None goes on until the caller stops, for families that can. Frames come at the end of the clip if
        the family decodes a clip at once, or if the tokenizer looks ahead in time.
        """
        unlimited = self.family.capabilities.endless and "num_frames" in options and options["num_frames"] is None
        request = _warned(self.prepare(call, **options, **({"endless": True} if unlimited else {})))
        if request.num_samples != 1:
            raise UserError(f"A stream holds one sample, found num_samples={request.num_samples}.")
        batches, steering = request.steered()
        if self.tokenizer.spec.decodes_in_order:
            can_rewind = self.tokenizer.can_rewind
            return VideoStream(next(batches), self._decoded_in_order, request.num_frames, steering, can_rewind)
        if request.num_frames is None:
            raise UserError("This tokenizer decodes a clip as a whole: give num_frames.")
        return VideoStream(next(batches), partial(self._decoded_whole, request), request.num_frames, steering)

    def _decoded_in_order(
        self, events: Iterator[SampleEvent], state: StreamState
    ) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        finished = (event.finished for event in events if event.frames is not None)
        for part in self.tokenizer.stream_decode(finished, state):
            yield self.to_frames(part)[0]

    def _decoded_whole(
        self, request: Request, events: Iterator[SampleEvent], state: StreamState
    ) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        yield request.finish(self.decoded(last_of(events).proposal, request), 0)[0]

    def stream_batch(
        self, call: Call | None = None, /, **options: object
    ) -> Iterator[UInt8[np.ndarray, "b t2 h2 w2 3"]]:
        """Frames of several samples side by side as they are finished, the context first, until the caller stops.

        For families without an end whose tokenizer decodes in order. A batch costs less than its samples one by one.
        Raises UserError for more samples than `batch_size`.
        """
        if not (self.family.capabilities.endless and self.tokenizer.spec.decodes_in_order):
            raise UserError("This model does not generate streams without an end.")
        request = _warned(self.prepare(call, **options, **({} if call else {"endless": True})))
        if request.num_batches > 1:
            raise UserError(f"A batch of streams holds {request.batch_size} samples, found {request.num_samples}.")
        return self._streamed(next(iter(request.events())), request.num_frames)

    def _streamed(
        self, events: Iterator[SampleEvent], num_frames: int | None
    ) -> Iterator[UInt8[np.ndarray, "b t2 h2 w2 3"]]:
        """Pixels of one batch, one part after another, `num_frames` in all."""
        left = math.inf if num_frames is None else num_frames
        parts = self.tokenizer.stream_decode(event.finished for event in events if event.frames is not None)
        while left > 0:
            with torch.inference_mode():  # around each part, because a generator must not change the caller's mode
                frames = self.to_frames(next(parts))  # (b, t, h, w, 3)
            frames = frames[:, : int(min(left, frames.shape[1]))]
            left -= frames.shape[1]
            yield frames

    def warm_up(self) -> None:
        """Let a model that streams without an end fill its window once, so that all steps of a stream are recorded and
        none of its later frames waits for a compiler. Does nothing for other models."""
        if not (self.family.capabilities.endless and self.tokenizer.spec.decodes_in_order and self.model is not None):
            return
        stream = self.stream(num_frames=None)
        for _ in range(self.tokenizer.spec.num_frames(self.model.config.latent_shape[0] + MARGIN)):
            next(stream)

    def prepare(self, call: Call | None = None, /, **options: object) -> Request:
        """Check a call and bring its parts into the model's form. Raises UserError for whatever does not fit."""
        return self.family.prepare(self._call(call, options))

    def _call(self, call: Call | None, options: dict[str, object]) -> Call:
        if call is None:
            return self.family.build_call(options)
        if options:
            raise UserError(f"Give a call or options, not both; found {', '.join(options)} beside a call.")
        return call

    def run(self, request: Request, on_step: OnStep = lambda event: None) -> Generation:
        """Carry out a checked request."""
        start = time.perf_counter()
        clips: list[VideoClip] = []
        decoding, first = 0.0, 0.0
        for tokens in self._sample(request, on_step):
            self._synchronize()
            decode_start = time.perf_counter()
            decoded = request.finish(self.decoded(tokens, request), len(clips))
            clips += [VideoClip(frames, self.index.fps) for frames in decoded]
            now = time.perf_counter()
            decoding += now - decode_start
            first = first or now - start
        seconds = time.perf_counter() - start
        return Generation(tuple(clips), request, seconds, first, seconds - decoding)

    @torch.inference_mode()
    def _sample(self, request: Request, on_step: OnStep) -> Iterator[Tensor]:
        """Final tokens or latents, batch by batch."""
        for events in request.events():
            yield last_of(_observed(events, on_step)).proposal

    @torch.inference_mode()
    def decoded(
        self, tokens: Int[Tensor, "b lt lh lw"] | Float[Tensor, "b d lt lh lw"], request: Request
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        """Frames of complete clips. Raises UserError for latents that are not finite."""
        require_finite(tokens, "The model's latents", tokens.dtype)
        tokens = tokens.float() if tokens.is_floating_point() else tokens
        return self.to_frames(self.tokenizer.decode(tokens))[:, : request.num_frames]

    def to_frames(self, video: Float[Tensor, "b 3 t h w"]) -> UInt8[np.ndarray, "b t2 h2 w2 3"]:
        """Pixels without the padding that filled the last tokens."""
        return self.tokenizer.to_uint8(video)[:, :, : self.index.height, : self.index.width].cpu().numpy()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -------------------------------------------------------------------------------------------- reconstructing

    def reconstruct(self, video: ClipLike, tiling: TilingConfig | None = None) -> VideoClip:
        """Encode and decode a clip of any size and length: frames, an image, a VideoClip, or the path of a file.

        The result has the rate of the clip or file, or that of the model's clips where there is none.
        """
        clip = video_of(video, self.index.fps)
        return VideoClip(encode_decode(self.tokenizer, clip.frames, tiling, self.device), clip.fps)


def conditions_of(call: Call) -> list[object]:
    """The values of a call that may be one for each sample."""
    return [getattr(call, f.name) for f in fields(call) if f.name in ("class_label", "prompt", "context", "task_video")]


def _observed(events: Iterator[SampleEvent], on_step: OnStep) -> Iterator[SampleEvent]:
    for event in events:
        on_step(event)
        yield event


def _warned(request: Request) -> Request:
    for sentence in request.warnings:
        warnings.warn(sentence, stacklevel=3)
    return request


def _in_less_memory(tokenizer: VideoTokenizer, dtype: torch.dtype, window: int | None) -> VideoTokenizer:
    """The tokenizer in another dtype and cut into windows. Raises UserError for one that has neither."""
    if dtype == torch.float32 and window is None:
        return tokenizer
    if not isinstance(tokenizer, AutoencoderKL):
        raise UserError(
            "A tokenizer's dtype and windows can be chosen for published autoencoders only, this is "
            f"{type(tokenizer).__name__}. Omit them."
        )
    tokenizer.tiles = replace(tokenizer.tiles, spatial=window)
    return tokenizer.to(dtype)


def reset_peak_memory(device: torch.device | str) -> None:
    """Start a new measurement of `peak_memory_bytes`, where the system allows it."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak then counts from the start of the process


def peak_memory_bytes(device: torch.device | str) -> int:
    """Largest memory in use so far: allocated on the GPU, or resident in the whole process for the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux kilobytes
