"""VideoPipeline: a model folder in, video out. The one place where tokenizer, network and sampler meet."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.video_io import Video, VideoClip
from mutoscope.errors import UserError
from mutoscope.json_config import dataclass_from_dict, nearest
from mutoscope.sampling import tasks
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.masked import MaskedSampler, MaskedSamplerConfig
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.tokenizers.tiling import TilingConfig, encode_decode

Frames = UInt8[np.ndarray, "_t _h _w 3"]  # an underscore: sizes of different videos are independent
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Request:
    """One checked call: everything random about it follows from `seed`.

    `video` in [-1, 1] holds what the task is given, one clip for all samples or one for each; the rest of it is not
    looked at.
    `context_frames` counts the given frames of the tasks that start from frames. `batch_size` samples are decoded
    together; more are made in several rounds, which bounds memory. `paste_given` puts the given pixels back over the
    result, which the paper does not do: its figures count the given part as the tokenizer and the model return it.
    """

    task: str
    num_samples: int
    seed: int
    sampler: MaskedSamplerConfig
    labels: Int[Tensor, " b"] | None = None
    video: Float[Tensor, "n 3 t h w"] | None = None
    context_frames: int = 1
    batch_size: int = 16
    paste_given: bool = False

    @property
    def num_rounds(self) -> int:
        return -(-self.num_samples // self.batch_size)


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


class VideoPipeline:
    """A tokenizer, a video model and the sampler that joins them.

    Args of the call, of `generate` and of `stream`:
        class_label: index or name of a class; without one, a class-conditional model draws a class per sample
        context: frames the clip starts with, any size (cropped to the model's shape and resized)
        task, task_video: one of the ten tasks and the clip it completes
        (a list of labels, contexts or videos stands for one sample each)
        context_frames: how many of the first frames are given (default: all of `context`; of `task_video` as
            many as in training)
        num_frames: must be a length the model was trained for (`extension.longer` repeats the prediction)
        paste_given: put the given pixels back over the result
        sampler options: fields of the sampler's configuration, such as num_decoding_steps or guidance_scale
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        model: Any,
        index: hub.ModelIndex,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.index = index
        # The search for the nearest code loses accuracy in half precision, so the tokenizer stays in float32.
        self.tokenizer = tokenizer.to(self.device).eval()
        self.model: Any = None if model is None else model.to(self.device, dtype).eval()
        if self.model is not None:
            self._check_parts_fit()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "VideoPipeline":
        """A bundled model by name, or a model folder. A tokenizer alone can only `reconstruct`."""
        index = hub.load_index(name_or_folder)
        model = None if index.model is None else hub.load_model(name_or_folder)
        return cls(hub.load_tokenizer(name_or_folder), model, index, device, dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write a folder that needs no other one."""
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
        listed = any(is_listed(options.get(name)) for name in ("class_label", "context", "task_video"))
        return clips if listed or len(clips) > 1 else clips[0]

    def generate(self, *, on_step: Callable[[SampleEvent], None] = lambda event: None, **options: Any) -> Generation:
        """Generate and measure. `on_step` receives every event of the sampler."""
        return self.run(self.prepare(**options), on_step)

    def stream(self, **options: Any) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Frames of one sample as they are finished: with MAGVIT all at the end, since it decodes a clip at once."""
        request = self.prepare(**options)
        if request.num_samples != 1:
            raise UserError(f"A stream holds one sample, found num_samples={request.num_samples}.")
        for tokens in self._sample(request, lambda event: None):
            yield from self._paste(self._decode(tokens), request, 0)[0]

    def run(self, request: Request, on_step: Callable[[SampleEvent], None] = lambda event: None) -> Generation:
        """Carry out a checked request."""
        start = time.perf_counter()
        clips: list[VideoClip] = []
        decoding, first = 0.0, 0.0
        for tokens in self._sample(request, on_step):
            self._synchronize()
            decode_start = time.perf_counter()
            decoded = self._paste(self._decode(tokens), request, len(clips))
            clips += [VideoClip(frames, self.index.fps) for frames in decoded]
            now = time.perf_counter()
            decoding += now - decode_start
            first = first or now - start
        seconds = time.perf_counter() - start
        return Generation(tuple(clips), request, seconds, first, seconds - decoding)

    def prepare(
        self,
        *,
        class_label: int | str | Sequence[int | str] | None = None,
        prompt: str | None = None,
        context: Frames | Sequence[Frames] | None = None,
        context_frames: int | None = None,
        task: str | None = None,
        task_video: Frames | Sequence[Frames] | None = None,
        actions: Any = None,
        num_frames: int | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        paste_given: bool = False,
        **sampler_options: Any,
    ) -> Request:
        """Check a call and put its parts into the model's form; raises UserError for whatever does not fit."""
        num_samples = common_length(num_samples, class_label=class_label, context=context, task_video=task_video)
        self._check_capabilities(prompt, actions, num_frames, num_samples, seed)
        task = self._choose_task(task, class_label, context, task_video)
        video, given = self._given_videos(task, context, task_video, context_frames)
        return Request(
            task=task,
            num_samples=num_samples,
            seed=seed,
            sampler=self._sampler_config(sampler_options),
            labels=self._labels(task, class_label, num_samples, seed),
            video=video,
            context_frames=given,
            batch_size=max(batch_size, 1),
            paste_given=paste_given,
        )

    @torch.inference_mode()
    def _sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Int[Tensor, "b lt lh lw"]]:
        """Final tokens, round by round."""
        generator = torch.Generator().manual_seed(request.seed)
        for start in range(0, request.num_samples, request.batch_size):
            count = min(request.batch_size, request.num_samples - start)
            labels = None if request.labels is None else request.labels[start : start + count].to(self.device)
            condition, mask = self._condition(request, start, count)
            tokens = None
            for event in MaskedSampler(request.sampler).sample(
                self.model,
                request.task,
                labels,
                condition,
                generator,
                condition_mask=mask,
                batch_size=count,
            ):
                on_step(event)
                tokens = event.proposal
            assert tokens is not None
            yield tokens

    def _condition(
        self, request: Request, start: int, count: int
    ) -> tuple[Int[Tensor, "b lt lh lw"] | None, Bool[Tensor, "lt lh lw"] | None]:
        """Tokens of some samples' condition videos, and where they are shown (arXiv 2212.05199 §3.2)."""
        if request.video is None:
            return None, None
        given = request.video if len(request.video) == 1 else request.video[start : start + count]
        video = tasks.condition_video(request.task, given.to(self.device), request.context_frames)
        stride = self.tokenizer.spec.temporal_stride
        mask = self.model.config.condition_mask(request.task, request.context_frames, stride)
        return self.tokenizer.encode(video).expand(count, -1, -1, -1), mask

    @torch.inference_mode()
    def _decode(self, tokens: Int[Tensor, "b lt lh lw"]) -> UInt8[np.ndarray, "b t h w 3"]:
        frames = self.tokenizer.to_uint8(self.tokenizer.decode(tokens))
        return frames[:, : self.index.num_frames, : self.index.height, : self.index.width].cpu().numpy()

    def _paste(
        self, clips: UInt8[np.ndarray, "b t h w 3"], request: Request, start: int
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        """The given pixels over the generated ones, if the request asks for it. `start`: number of the first sample."""
        if request.video is None or not request.paste_given:
            return clips
        mask = tasks.pixel_mask(request.task, *clips.shape[1:4], request.context_frames).numpy()
        videos = request.video if len(request.video) == 1 else request.video[start : start + len(clips)]
        given = self.tokenizer.to_uint8(videos).numpy()  # (b or 1, t, h, w, 3)
        return np.where(mask[..., None], given, clips)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -------------------------------------------------------------------------------------------------- checking

    def _check_parts_fit(self) -> None:
        shape = self.tokenizer.spec.latent_shape(self.index.num_frames, self.index.height, self.index.width)
        if shape != tuple(self.model.latent_shape):
            raise UserError(
                f"Tokenizer and model do not fit: {self.index.num_frames} frames of {self.index.height}×"
                f"{self.index.width} are {shape} tokens, the model expects {tuple(self.model.latent_shape)}."
            )
        if self.tokenizer.spec.vocab_size != self.model.config.codebook_size:
            raise UserError(
                f"Tokenizer and model do not fit: {self.tokenizer.spec.vocab_size} codes against "
                f"{self.model.config.codebook_size}."
            )

    def _check_capabilities(
        self, prompt: str | None, actions: Any, num_frames: int | None, num_samples: int, seed: int
    ) -> None:
        if self.model is None:
            raise UserError("This is a tokenizer only; it can reconstruct but not generate.")
        if prompt is not None:
            raise UserError("This model takes no prompt. Say what it should show with a class label or a context.")
        if actions is not None:
            raise UserError("This model takes no actions. Leave them out.")
        if num_frames not in (None, self.index.num_frames):
            raise UserError(
                f"This model makes clips of {self.index.num_frames} frames, found num_frames={num_frames}: "
                f"use {self.index.num_frames}."
            )
        if num_samples < 1:
            raise UserError(f"num_samples must be at least 1, found {num_samples}.")
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed must be between 0 and 2^64 - 1, found {seed}.")

    def _choose_task(self, task: str | None, class_label: Any, context: Any, task_video: Any) -> str:
        """The task named, or the one that what is given implies; it must be one the model was trained for."""
        if task is None:
            if task_video is not None:
                raise UserError(f"A video needs a task: say which of {', '.join(self.index.tasks)}.")
            if context is not None:
                task = "class-conditional-frame-prediction" if class_label is not None else "frame-prediction"
            else:
                task = "class-conditional"
                if task not in self.index.tasks:
                    raise UserError(f"This model needs a context or a video: it can do {', '.join(self.index.tasks)}.")
        tasks.check_task(task, self.index.tasks)
        if class_label is not None and not task.startswith("class-conditional"):
            raise UserError(f"The task {task!r} takes no class label. Leave it out.")
        return task

    def _given_videos(
        self,
        task: str,
        context: Frames | Sequence[Frames] | None,
        task_video: Frames | Sequence[Frames] | None,
        context_frames: int | None,
    ) -> tuple[Float[Tensor, "n 3 t h w"] | None, int]:
        """`_given_video` of one call, or of every sample where lists are given."""
        contexts, videos = as_list(context), as_list(task_video)
        length = max(len(contexts), len(videos))
        contexts, videos = (given * length if len(given) == 1 else given for given in (contexts, videos))
        found = [self._given_video(task, c, v, context_frames) for c, v in zip(contexts, videos, strict=True)]
        counts = {count for _, count in found}
        if len(counts) > 1:
            raise UserError(f"All contexts of one call must have the same length, found {sorted(counts)} frames.")
        clips = [video for video, _ in found if video is not None]
        return (torch.cat(clips) if clips else None), counts.pop()

    def _given_video(
        self, task: str, context: Frames | None, task_video: Frames | None, context_frames: int | None
    ) -> tuple[Float[Tensor, "1 3 t h w"] | None, int]:
        """What the task is given as a clip of the model's size, and the number of given frames at its start."""
        given = task_video if task_video is not None else context
        if not tasks.needs_video(task):
            if given is not None:
                raise UserError(f"The task {task!r} takes no frames. Leave context and video out.")
            return None, 1
        if context is not None and task_video is not None:
            raise UserError("Give a context or a video, not both.")
        if given is None:
            raise UserError(f"The task {task!r} needs a video (or, for frame prediction, a context).")
        predicts = task.endswith("frame-prediction")
        if context is not None and not predicts:
            raise UserError(f"The task {task!r} completes a whole video; give a video instead of a context.")
        needed = self.index.num_frames
        trained = self.model.config.context_frames
        count = context_frames if context_frames is not None else (len(given) if context is not None else trained)
        if not 1 <= count < needed:
            raise UserError(f"The number of context frames must be between 1 and {needed - 1}, found {count}.")
        if len(given) < (count if predicts else needed):
            what = "context frames are" if predicts else "frames of video are"
            raise UserError(f"{count if predicts else needed} {what} needed, found {len(given)}.")
        frames = given[:count] if predicts else given[:needed]
        frames = np.concatenate([frames, np.repeat(frames[-1:], needed - len(frames), axis=0)])
        fitted = fit_frames(frames, self.index.height, self.index.width)
        return self.tokenizer.from_uint8(torch.from_numpy(fitted)[None]), count

    def _labels(
        self, task: str, class_label: int | str | Sequence[int | str] | None, num_samples: int, seed: int
    ) -> Int[Tensor, " b"] | None:
        num_classes = self.model.config.num_classes
        if class_label is not None:
            asked = [class_label] if isinstance(class_label, int | str) else class_label
            found = [find_class(label, self.index.class_names, num_classes) for label in asked]
            return torch.tensor(found if len(found) > 1 else found * num_samples)
        if task.startswith("class-conditional") and num_classes:
            generator = torch.Generator().manual_seed(seed)
            return torch.randint(num_classes, (num_samples,), generator=generator)
        return None

    def _sampler_config(self, options: dict[str, Any]) -> MaskedSamplerConfig:
        chosen = {**self.index.sampling, **{key: value for key, value in options.items() if value is not None}}
        config = dataclass_from_dict(MaskedSamplerConfig, chosen, "Sampler options")
        tokens = prod(self.model.latent_shape)
        if not 1 <= config.num_decoding_steps <= tokens:
            raise UserError(
                f"num_decoding_steps must be between 1 and the {tokens} tokens of a clip, "
                f"found {config.num_decoding_steps}."
            )
        if not 0 <= config.guidance_scale < float("inf") or not 0 <= config.temperature < float("inf"):
            raise UserError("guidance_scale and temperature must be finite and not negative.")
        return config

    # -------------------------------------------------------------------------------------------- reconstructing

    def reconstruct(self, video: Frames | VideoClip | Video, tiling: TilingConfig | None = None) -> VideoClip:
        """Send a clip of any size and length through the tokenizer and back."""
        frames, fps = (video, self.index.fps) if isinstance(video, np.ndarray) else (video.frames, video.fps)
        return VideoClip(encode_decode(self.tokenizer, frames, tiling, self.device), fps)


def is_listed(given: Any) -> bool:
    """Whether something is given for every sample by itself: a list, or an array of clips."""
    single = given is None or isinstance(given, int | str) or (isinstance(given, np.ndarray) and given.ndim == 4)
    return not single


def as_list(given: Frames | Sequence[Frames] | None) -> list[Any]:
    """One clip, or nothing, as a list of one."""
    return list(given) if given is not None and is_listed(given) else [given]


def common_length(num_samples: int | None, **given: Any) -> int:
    """How many samples a call asks for: said outright, or the length of what is listed for one sample each."""
    lengths = {name: len(value) for name, value in given.items() if is_listed(value)}
    asked = set(lengths.values()) | ({num_samples} if num_samples is not None else set())
    if lengths and (len(asked) > 1 or 0 in asked):
        listed = ", ".join(f"{length} for {name}" for name, length in lengths.items())
        raise UserError(f"Lists must have one entry per sample: found {listed}, num_samples {num_samples}.")
    return asked.pop() if asked else 1


def find_class(label: int | str, names: tuple[str, ...] | None, num_classes: int) -> int:
    """Index of a class given by index or by name."""
    if not num_classes:
        raise UserError("This model knows no classes. Leave the class label out.")
    text = str(label).strip()
    if text.lstrip("+-").isdecimal():
        if not 0 <= int(text) < num_classes:
            raise UserError(f"Class labels go from 0 to {num_classes - 1}, found {text}.")
        return int(text)
    lowered = [name.lower() for name in names or ()]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    hint = nearest(text, names) if names else f"give an index from 0 to {num_classes - 1}."
    raise UserError(f"Unknown class label {text!r}: {hint}")


def fit_frames(frames: Frames, height: int, width: int) -> UInt8[np.ndarray, "t height width 3"]:
    """Crop to the middle of the wanted aspect ratio and resize with an anti-aliasing filter."""
    _, h, w, _ = frames.shape
    if (h, w) == (height, width):
        return np.ascontiguousarray(frames)
    crop_h, crop_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    crop_h, crop_w = max(crop_h, 1), max(crop_w, 1)
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    video = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + crop_h, left : left + crop_w]))
    video = F.interpolate(video.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", antialias=True)
    return video.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


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
