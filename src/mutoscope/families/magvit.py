"""MAGVIT: ten tasks, decoded in parallel (arXiv 2212.05199 §3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mutoscope.data.fit import Frames, fit_frames
from mutoscope.errors import UserError
from mutoscope.families.base import Generator, Request, as_list, common_length
from mutoscope.families.blending import blended_and_coded
from mutoscope.families.captured import CapturedMagvit
from mutoscope.json_config import dataclass_from_dict
from mutoscope.layers.cuda_graph import CUDAGraphCall, Record
from mutoscope.sampling import tasks
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.masked import CLASS_TOLD, MaskedSampler, MaskedSamplerConfig


@dataclass(frozen=True)
class MaskedRequest(Request):
    """`video` in [-1, 1] holds what the task is given, one clip for all samples or one for each; the rest of it is not
    looked at. `context_frames` counts the given frames of the tasks that start from frames. The paper's figures count
    the given part as the tokenizer and the model return it. `blend_given` puts it into the result without a seam
    (`generation.blending`), as good as the tokenizer; `paste_given` puts the very pixels over whatever there is.
    """

    video: Float[Tensor, "n 3 t h w"] | None = None
    context_frames: int = 1
    paste_given: bool = False
    blend_given: bool = False


class MaskedGenerator(Generator):
    """Conditions of the ten tasks in, tokens out."""

    def capture(self, record: Record = CUDAGraphCall) -> None:
        self.network = CapturedMagvit(self.model, record)

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
        blend_given: bool | None = None,
        **sampler_options: Any,
    ) -> MaskedRequest:
        num_samples = common_length(num_samples, class_label=class_label, context=context, task_video=task_video)
        self.check_call(num_samples, seed, num_frames, prompt, actions)
        task = self._choose_task(task, class_label, context, task_video)
        video, given = self._given_videos(task, context, task_video, context_frames)
        sampler = self._sampler_config(task, sampler_options)
        return MaskedRequest(
            task=task,
            num_samples=num_samples,
            seed=seed,
            sampler=sampler,
            num_steps=sampler.num_decoding_steps,
            labels=self.class_labels(class_label, num_samples, seed) if task.startswith("class-conditional") else None,
            video=video,
            context_frames=given,
            batch_size=max(batch_size, 1),
            paste_given=paste_given,
            blend_given=self.index.blend_given if blend_given is None else blend_given,
        )

    def sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Iterator[SampleEvent]]:
        assert isinstance(request, MaskedRequest)
        generator = torch.Generator().manual_seed(request.seed)
        for samples in request.rounds():
            yield self._round(request, samples, generator, on_step)

    def _round(
        self, request: MaskedRequest, samples: slice, generator: torch.Generator, on_step: Callable[[SampleEvent], None]
    ) -> Iterator[SampleEvent]:
        count = samples.stop - samples.start
        labels = None if request.labels is None else request.labels[samples].to(self.device)
        condition, mask = self._condition(request, samples)
        sampler = MaskedSampler(request.sampler)
        for event in sampler.sample(
            self.network, request.task, labels, condition, generator, condition_mask=mask, batch_size=count
        ):
            on_step(event)
            yield event

    def _condition(
        self, request: MaskedRequest, samples: slice
    ) -> tuple[Int[Tensor, "b lt lh lw"] | None, Bool[Tensor, "lt lh lw"] | None]:
        """Tokens of some samples' condition videos, and where they are shown (arXiv 2212.05199 §3.2)."""
        if request.video is None:
            return None, None
        given = request.video if len(request.video) == 1 else request.video[samples]
        video = tasks.condition_video(request.task, given.to(self.device), request.context_frames)
        stride = self.tokenizer.spec.temporal_stride
        mask = self.model.config.condition_mask(request.task, request.context_frames, stride)
        return self.tokenizer.encode(video).expand(samples.stop - samples.start, -1, -1, -1), mask

    def finish(
        self, clips: UInt8[np.ndarray, "b t h w 3"], request: Request, start: int
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        """What is given blended or pasted into the clips, as far as the request asks for it."""
        assert isinstance(request, MaskedRequest)
        if request.video is None or not (request.paste_given or request.blend_given):
            return clips
        mask = tasks.pixel_mask(request.task, *clips.shape[1:4], request.context_frames)
        videos = request.video if len(request.video) == 1 else request.video[start : start + len(clips)]
        given = self.tokenizer.to_uint8(videos)  # (b or 1, t, h, w, 3)
        if request.blend_given:
            clips = blended_and_coded(self.tokenizer, torch.from_numpy(clips), given, mask).numpy()
        return np.where(mask[..., None], given.numpy(), clips) if request.paste_given else clips

    # -------------------------------------------------------------------------------------------------- checking

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

    def _sampler_config(self, task: str, options: dict[str, Any]) -> MaskedSamplerConfig:
        defaults = self.index.sampling | self.index.task_sampling.get(task, {})
        chosen = defaults | {key: value for key, value in options.items() if value is not None}
        names_classes = bool(self.model.config.class_loss) and CLASS_TOLD in self.index.tasks
        if options.get("draw_class") and not names_classes:
            raise UserError(
                "This model was not trained to draw a class from what it is given (class_loss is 0, or it lacks the "
                f"task {CLASS_TOLD!r}). Leave draw_class out."
            )
        # A recipe's default must not stop a model that was trained with fewer tasks.
        chosen["draw_class"] = bool(chosen.get("draw_class")) and names_classes
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
