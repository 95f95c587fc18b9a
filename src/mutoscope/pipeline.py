"""VideoPipeline: a model folder in, video out. The one place where tokenizer, network and sampler meet."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.fit import Frames
from mutoscope.data.video.read import Video, VideoClip
from mutoscope.errors import UserError
from mutoscope.families import Generator, Request, generator_of, is_listed
from mutoscope.layers.int8 import quantize_linears
from mutoscope.layers.packed import pack_linears
from mutoscope.sampling.base import SampleEvent, last_of
from mutoscope.text import TextEncoder, load_text_encoder
from mutoscope.text.offload import OffloadedTextEncoder
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.tokenizers.tiling import TilingConfig, encode_decode

Weights = Literal["float", "int8"]


@dataclass(frozen=True)
class Generation:
    """The clips and what they cost. Times start when the call starts and exclude loading and writing.

    `seconds_first_frame`: until the first frame exists as pixels. `seconds_sampling`: encoding of what is given and
    decoding of tokens; `seconds`: the same with the tokenizer's decoder. Frames per second count all samples.
    """

    clips: tuple[VideoClip, ...]
    request: Request
    seconds: float
    seconds_first_frame: float
    seconds_sampling: float

    @property
    def num_frames(self) -> int:
        return sum(len(clip.frames) for clip in self.clips)

    @property
    def frames_per_second(self) -> float:
        return self.num_frames / max(self.seconds_sampling, 1e-9)

    @property
    def frames_per_second_with_decoding(self) -> float:
        return self.num_frames / max(self.seconds, 1e-9)


class FrameStream(Iterator[UInt8[np.ndarray, "h w 3"]]):
    """Frames as they are finished. `change` tells a MAGI model something else from the next frame on."""

    def __init__(self, frames: Iterator[UInt8[np.ndarray, "h w 3"]], steering: Any = None) -> None:
        self._frames, self._steering = frames, steering

    def __next__(self) -> UInt8[np.ndarray, "h w 3"]:
        return next(self._frames)

    def change(self, **conditions: Any) -> None:
        """class_label, prompt, interval (1 to 25) or action, which is held; what is left out stays."""
        if self._steering is None:
            raise UserError("Only streams of MAGI models can be changed on the way.")
        self._steering.change(**conditions)


class VideoPipeline:
    """A tokenizer, a video model and the sampler that joins them.

    Args of the call, of `generate` and of `stream`:
        class_label: index or name of a class; without one, a class-conditional model draws a class per sample
        context: frames the clip starts with, any size (cropped to the model's shape and resized)
        prompt: text to show, for models trained with text; the text encoder that model_index.json names is loaded at
            the first prompt
        task, task_video: one of the ten tasks and the clip it completes
        (a list of labels, prompts, contexts or videos stands for one sample each)
        context_frames: how many of the first frames are given (default: all of `context`; of `task_video` as
            many as in training)
        actions, interval: what is done in every frame, (t, numbers), and how far frames lie apart, for MAGI
        num_frames: NOVA and MAGI make any length that the tokenizer can; others the one they were trained for
            (`extension.longer` repeats the prediction)
        paste_given: put the given pixels back over the result
        blend_given: put what is given into the result without a seam (default: what model_index.json says)
        sampler options: fields of the sampler's configuration, such as num_decoding_steps or guidance_scale
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        model: Any,
        index: hub.ModelIndex,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: Callable[[], TextEncoder] | None = None,
        weights: Weights = "float",
        capture: bool = False,
    ) -> None:
        """`text_encoder` loads the encoder of prompts; it is called when the first prompt comes.

        `weights` "int8" rounds the linear layers of PAR and LlamaGen models to 8 bits (see `layers.int8`), on the CPU.
        `capture` records the steps of MAGVIT, PAR and LlamaGen models as CUDA graphs (see `sampling.captured`).
        """
        self.device = torch.device(device)
        self.index = index
        # The search for the nearest code loses accuracy in half precision, so `dtype` leaves the tokenizer as it is.
        self.tokenizer = tokenizer.to(self.device).eval()
        self.model: Any = None if model is None else model.to(self.device, dtype).eval()
        self.weights = weights
        if weights == "int8":
            if index.family != "par" or self.model is None:
                raise UserError(f"8-bit weights are for PAR and LlamaGen models, found the family {index.family!r}.")
            quantize_linears(self.model)
        elif index.family == "par" and self.model is not None:
            pack_linears(self.model)  # its steps are many and small
        self._generator: Generator | None = None
        if self.model is not None:
            family = generator_of(index.family)
            self._generator = family(self.tokenizer, self.model, index, self.device, text_encoder)
            self._generator.check_parts_fit()
            if capture:
                self._capture(self._generator)

    def _capture(self, generator: Generator) -> None:
        if self.device.type != "cuda":
            raise UserError(f"Steps are captured on a CUDA GPU, this is {self.device}. Leave capture out.")
        generator.capture()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Weights = "float",
        *,
        text_encoder_offload: bool = False,
        text_encoder_dtype: torch.dtype | None = None,
        tokenizer_dtype: torch.dtype = torch.float32,
        tokenizer_window: int | None = None,
        capture: bool = False,
    ) -> "VideoPipeline":
        """A bundled model by name, or a model folder. A tokenizer alone can only `reconstruct`.

        text_encoder_offload: drop the text encoder from memory as soon as the prompts of a call are encoded. A prompt
            that was not read lately loads it again; see `text.offload`.
        text_encoder_dtype: number format of the text encoder's weights (default: `dtype`)
        tokenizer_dtype, tokenizer_window: of a published autoencoder (NOVA's), to save memory: number format of its
            weights, and pixels along the side of the windows in which frames are encoded and decoded; see `TileOptions`
        capture: on a CUDA GPU, record the steps of a MAGVIT, PAR or LlamaGen model at their first call and replay them
        """
        index = hub.load_index(name_or_folder)
        model = None if index.model is None else hub.load_model(name_or_folder)
        encoder, load = hub.text_encoder_folder(name_or_folder), None
        if encoder is not None:
            index = replace(index, text_encoder=str(encoder))  # stays right wherever the model is saved
            kind = OffloadedTextEncoder if text_encoder_offload else load_text_encoder
            load = partial(kind, encoder, torch.device(device), text_encoder_dtype or dtype)
        elif text_encoder_offload or text_encoder_dtype is not None:
            raise UserError("This model has no text encoder. Leave what should be done with one out.")
        tokenizer = _in_less_memory(hub.load_tokenizer(name_or_folder), tokenizer_dtype, tokenizer_window)
        return cls(tokenizer, model, index, device, dtype, load, weights, capture)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write a folder that needs no other one but the text encoder's, if there is one: it stays where it is."""
        if self.weights != "float":
            raise UserError("8-bit weights are made when a model is loaded and not saved: save one with float weights.")
        index = replace(self.index, tokenizer="./tokenizer", model=None if self.model is None else "./model")
        return hub.save_pretrained(folder, index, self.tokenizer, self.model)

    # ------------------------------------------------------------------------------------------------ generating

    @overload
    def __call__(self, *, num_samples: Literal[1] | None = None, **options: Any) -> VideoClip: ...

    @overload
    def __call__(self, *, num_samples: int, **options: Any) -> VideoClip | list[VideoClip]: ...

    def __call__(self, *, num_samples: int | None = None, **options: Any) -> VideoClip | list[VideoClip]:
        """Generate; a list if several samples are asked for or lists are given."""
        clips = list(self.generate(num_samples=num_samples, **options).clips)
        listed = any(is_listed(options.get(name)) for name in ("class_label", "prompt", "context", "task_video"))
        return clips if listed or len(clips) > 1 else clips[0]

    def generate(self, *, on_step: Callable[[SampleEvent], None] = lambda event: None, **options: Any) -> Generation:
        """Generate and measure. `on_step` receives every event of the sampler. Warns of what will not be honoured."""
        return self.run(_told(self.prepare(**options)), on_step)

    def stream(self, **options: Any) -> "FrameStream":
        """Frames of one sample as they are finished. MAGI with num_frames=None goes on until the caller stops.

        With MAGVIT they all come at the end, since it decodes a clip at once, and so they do with any tokenizer that
        looks ahead in time.
        """
        endless = "num_frames" in options and options["num_frames"] is None and self.index.family == "magi"
        request = _told(self.prepare(**options, **({"endless": True} if endless else {})))
        if request.num_samples != 1:
            raise UserError(f"A stream holds one sample, found num_samples={request.num_samples}.")
        if not self.tokenizer.spec.decodes_in_order:
            if endless:
                raise UserError("This tokenizer decodes a clip as a whole: give num_frames.")
            return FrameStream(frame for clip in self.run(request).clips for frame in clip.frames)
        rounds, steering = self.generator.steered(request)
        num_frames = math.inf if endless else request.num_frames or self.index.num_frames
        return FrameStream(self._stream(rounds, num_frames), steering)

    def _stream(
        self, rounds: Iterator[Iterator[SampleEvent]], num_frames: float
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        for events in rounds:
            latents = (event.finished for event in events if event.frames is not None)
            parts, made = self.tokenizer.stream_decode(latents), 0
            while made < num_frames:
                with torch.inference_mode():  # around each part, because a generator must not change the caller's mode
                    frames = self._frames(next(parts))[0]
                frames = frames[: int(min(num_frames - made, len(frames)))]
                made += len(frames)
                yield from frames

    def run(self, request: Request, on_step: Callable[[SampleEvent], None] = lambda event: None) -> Generation:
        """Carry out a checked request."""
        start = time.perf_counter()
        clips: list[VideoClip] = []
        decoding, first = 0.0, 0.0
        for tokens in self._sample(request, on_step):
            self._synchronize()
            decode_start = time.perf_counter()
            decoded = self.generator.finish(self._decode(tokens, request), request, len(clips))
            clips += [VideoClip(frames, self.index.fps) for frames in decoded]
            now = time.perf_counter()
            decoding += now - decode_start
            first = first or now - start
        seconds = time.perf_counter() - start
        return Generation(tuple(clips), request, seconds, first, seconds - decoding)

    def prepare(self, **options: Any) -> Request:
        """Check a call and put its parts into the model's form; raises UserError for whatever does not fit."""
        return self.generator.prepare(**options)

    @property
    def generator(self) -> Generator:
        """The model's family. Raises UserError for a tokenizer alone."""
        if self._generator is None:
            raise UserError("This is a tokenizer only; it can reconstruct but not generate.")
        return self._generator

    @torch.inference_mode()
    def _sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Tensor]:
        """Final tokens or latents, round by round."""
        for events in self.generator.sample(request, on_step):
            yield last_of(events).proposal

    @torch.inference_mode()
    def _decode(
        self, tokens: Int[Tensor, "b lt lh lw"] | Float[Tensor, "b d lt lh lw"], request: Request
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        tokens = tokens.float() if tokens.is_floating_point() else tokens
        return self._frames(self.tokenizer.decode(tokens))[:, : request.num_frames or self.index.num_frames]

    def _frames(self, video: Float[Tensor, "b 3 t h w"]) -> UInt8[np.ndarray, "b t2 h2 w2 3"]:
        """Without what was added to fill the last tokens."""
        return self.tokenizer.to_uint8(video)[:, :, : self.index.height, : self.index.width].cpu().numpy()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -------------------------------------------------------------------------------------------- reconstructing

    def reconstruct(self, video: Frames | VideoClip | Video, tiling: TilingConfig | None = None) -> VideoClip:
        """Send a clip of any size and length through the tokenizer and back."""
        frames, fps = (video, self.index.fps) if isinstance(video, np.ndarray) else (video.frames, video.fps)
        return VideoClip(encode_decode(self.tokenizer, frames, tiling, self.device), fps)


def _told(request: Request) -> Request:
    for sentence in request.warnings:
        warnings.warn(sentence, stacklevel=3)
    return request


def _in_less_memory(tokenizer: VideoTokenizer, dtype: torch.dtype, window: int | None) -> VideoTokenizer:
    """The tokenizer in another number format and cut into windows, where it is one that allows it."""
    if dtype == torch.float32 and window is None:
        return tokenizer
    if not isinstance(tokenizer, AutoencoderKL):
        raise UserError(
            "A tokenizer's number format and windows can be chosen for NOVA's published autoencoders only, this is "
            f"{type(tokenizer).__name__}. Leave them out."
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
