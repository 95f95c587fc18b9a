"""MAGVIT: ten tasks, decoded in parallel (arXiv 2212.05199 §3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mutoscope.data.fit import Frames, fit_frames
from mutoscope.errors import UserError
from mutoscope.families.base import (
    RECTANGLE,
    VIDEO_FILE,
    Batch,
    Call,
    Capabilities,
    Clips,
    Family,
    Generator,
    Labels,
    PaperModel,
    PrepareBatch,
    Request,
    as_list,
    common_length,
)
from mutoscope.families.blending import blended_and_coded
from mutoscope.families.recorded import RecordedMagvit
from mutoscope.families.transfer import TransferRule, class_rows, position_table
from mutoscope.layers.condition_regions import Rectangle, check_rectangular
from mutoscope.layers.recorded import Steps
from mutoscope.model_index import ModelIndex
from mutoscope.models.base import ModelConfig
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.sampling import tasks
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.masked import CLASS_KNOWN, MaskedCondition, MaskedSampler, MaskedSamplerConfig, MaskedTokenModel

TASK_ORDER_SEED = 0  # of the training mix: all runs see the tasks in one order


@dataclass(frozen=True, kw_only=True)
class MagvitCall(Call):
    """One call of a MAGVIT model: a class, first frames to continue, or a video to complete."""

    task: str | None = None
    """What to do with the context or video; None: what the other options imply."""
    class_label: Labels = None
    """Index or name of a class; None: drawn at random."""
    context: Clips = field(default=None, metadata=VIDEO_FILE)
    """Frames that the clip starts with."""
    context_frames: int | None = None
    """How many of these frames to use; None: all of context, as many as in training of a video."""
    task_video: Clips = field(default=None, metadata={**VIDEO_FILE, "flag": "video"})
    """Clip that the task completes."""
    region: tuple[float, float, float, float] | None = field(default=None, metadata=RECTANGLE)
    """Left, top, right and bottom of what outpainting shows or inpainting fills, as fractions of the frame; None: the
    paper's central half. The dynamic tasks move it from left to right."""
    paste_given: bool = False
    """Put the pixels of the context back over the result."""
    blend_given: bool | None = None
    """Blend the context into the result without a seam; None: as the model's folder says."""
    sampling: MaskedSamplerConfig = field(default_factory=MaskedSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class MagvitRequest(Request):
    """A checked call. The paper's figures take the conditioning region as the tokenizer and the model return it."""

    generator: "MagvitGenerator"
    sampler: MaskedSamplerConfig
    video: Float[Tensor, "n 3 t h w"] | None = None
    """Clips in [-1, 1] that hold what the task shows, one for all samples or one for each."""
    context_frames: int = 1
    """Frames shown at the start, for tasks that start from frames."""
    rectangle: Rectangle | None = None
    """What outpainting shows and inpainting hides; None: the paper's central half."""
    paste_given: bool = False
    blend_given: bool = False

    def events(self) -> Iterator[Iterator[SampleEvent]]:
        random = torch.Generator().manual_seed(self.seed)
        for samples in self.batches():
            yield self.generator.decode(self, samples, random)

    def repeated_options(self) -> dict[str, object]:
        """Segments choose their own task: options of the sampler that depend on it are those of the first clip."""
        kept = ("num_decoding_steps", "guidance_scale", "temperature", "draw_class")
        return {name: self.sampling[name] for name in kept} | {"blend_given": self.blend_given}

    def finish(self, clips: UInt8[np.ndarray, "b t h w 3"], start: int) -> UInt8[np.ndarray, "b t h w 3"]:
        """Blend and paste the conditioning region, as requested."""
        if self.video is None or not (self.paste_given or self.blend_given):
            return clips
        tokenizer = self.generator.tokenizer
        frames, height, width = clips.shape[1:4]
        mask = tasks.pixel_mask(self.task, frames, height, width, self.context_frames, self.rectangle)
        videos = self.video if len(self.video) == 1 else self.video[start : start + len(clips)]
        context = tokenizer.to_uint8(videos)  # (b or 1, t, h, w, 3)
        if self.blend_given:
            clips = blended_and_coded(tokenizer, torch.as_tensor(clips), context, mask).numpy()
        return np.where(mask[..., None].numpy(), context.numpy(), clips) if self.paste_given else clips


class MagvitGenerator(Generator[MagvitCall, Magvit]):
    """Conditions of the ten tasks in, tokens out."""

    network: MaskedTokenModel
    """The model as the sampler sees it: with its steps recorded, if they are."""

    def check_parts_fit(self) -> None:
        super().check_parts_fit()
        self.network = self.model

    def record_steps(self, steps: Steps) -> None:
        super().record_steps(steps)
        self.network = RecordedMagvit(self.model, steps)

    def prepare(self, call: MagvitCall) -> MagvitRequest:
        self.check_call(call)
        self.check_trained_length(call)
        given = {"class_label": call.class_label, "context": call.context, "task_video": call.task_video}
        num_samples = common_length(call.num_samples, **given)
        task = self._check_task(call)
        video, count = self._condition_videos(task, call)
        sampler = self._sampler(task, call.sampling)
        takes_class = task.startswith("class-conditional")
        return MagvitRequest(
            generator=self,
            task=task,
            num_samples=num_samples,
            seed=call.seed,
            num_steps=sampler.num_decoding_steps,
            num_frames=self.index.num_frames,
            sampling=vars(sampler),
            sampler=sampler,
            labels=self.class_labels(call.class_label, num_samples, call.seed) if takes_class else None,
            video=video,
            context_frames=count,
            rectangle=_rectangle(task, call.region),
            batch_size=max(call.batch_size, 1),
            paste_given=call.paste_given,
            blend_given=self.index.blend_given if call.blend_given is None else call.blend_given,
        )

    def decode(self, request: MagvitRequest, samples: slice, random: torch.Generator) -> Iterator[SampleEvent]:
        """The sampler's events of one batch."""
        tokens, region = self._condition(request, samples)
        condition = MaskedCondition(
            request.task,
            samples.stop - samples.start,
            None if request.labels is None else request.labels[samples].to(self.device),
            tokens,
            region,
        )
        return MaskedSampler(request.sampler).sample(self.network, condition, random)

    def _condition(
        self, request: MagvitRequest, samples: slice
    ) -> tuple[Int[Tensor, "b lt lh lw"] | None, Bool[Tensor, "lt lh lw"] | None]:
        """Tokens of some samples' condition videos, and the positions that show them (arXiv 2212.05199 §3.2)."""
        if request.video is None:
            return None, None
        videos = request.video if len(request.video) == 1 else request.video[samples]
        video = tasks.condition_video(request.task, videos.to(self.device), request.context_frames, request.rectangle)
        stride = self.tokenizer.spec.temporal_stride
        region = self.model.config.condition_mask(request.task, request.context_frames, stride, request.rectangle)
        return self.tokenizer.encode(video).expand(samples.stop - samples.start, -1, -1, -1), region

    # -------------------------------------------------------------------------------------------------- checking

    def _check_task(self, call: MagvitCall) -> str:
        task = call.task or implied_task(self.index, vars(call))
        tasks.check_task(task, self.index.tasks)
        if call.class_label is not None and not task.startswith("class-conditional"):
            raise UserError(f"The task {task!r} takes no class label. Omit it.")
        return task

    def _condition_videos(self, task: str, call: MagvitCall) -> tuple[Float[Tensor, "n 3 t h w"] | None, int]:
        """`_condition_video` of one call, or of every sample where lists are given."""
        contexts = as_list(call.context, "context", call.context_frames or self.model.config.context_frames)
        videos = as_list(call.task_video, "task_video", self.index.num_frames)
        length = max(len(contexts), len(videos))
        contexts, videos = (clips * length if len(clips) == 1 else clips for clips in (contexts, videos))
        found = [
            self._condition_video(task, context, video, call.context_frames)
            for context, video in zip(contexts, videos, strict=True)
        ]
        counts = {count for _, count in found}
        if len(counts) > 1:
            raise UserError(f"All contexts of one call must have the same length, found {sorted(counts)} frames.")
        clips = [video for video, _ in found if video is not None]
        return (torch.cat(clips) if clips else None), counts.pop()

    def _condition_video(
        self, task: str, context: Frames | None, task_video: Frames | None, context_frames: int | None
    ) -> tuple[Float[Tensor, "1 3 t h w"] | None, int]:
        """The frames of the task as a clip of the model's size, and the number of context frames at its start."""
        frames = task_video if task_video is not None else context
        if not tasks.needs_video(task):
            if frames is not None:
                raise UserError(f"The task {task!r} takes no frames. Omit context and video.")
            return None, 1
        if context is not None and task_video is not None:
            raise UserError("Give a context or a video, not both.")
        if frames is None:
            raise UserError(f"The task {task!r} needs a video (or, for frame prediction, a context).")
        predicts = task.endswith("frame-prediction")
        if context is not None and not predicts:
            raise UserError(f"The task {task!r} completes a whole video; give a video instead of a context.")
        needed, trained = self.index.num_frames, self.model.config.context_frames
        count = context_frames if context_frames is not None else (len(frames) if context is not None else trained)
        if not 1 <= count < needed:
            raise UserError(f"The number of context frames must be between 1 and {needed - 1}, found {count}.")
        if len(frames) < (count if predicts else needed):
            what = "context frames are" if predicts else "frames of video are"
            raise UserError(f"{count if predicts else needed} {what} needed, found {len(frames)}.")
        frames = frames[:count] if predicts else frames[:needed]
        frames = np.concatenate([frames, np.repeat(frames[-1:], needed - len(frames), axis=0)])
        fitted = fit_frames(frames, self.index.height, self.index.width)
        return self.tokenizer.from_uint8(torch.as_tensor(fitted)[None]), count

    def _sampler(self, task: str, config: MaskedSamplerConfig) -> MaskedSamplerConfig:
        names_classes = bool(self.model.config.class_loss) and CLASS_KNOWN in self.index.tasks
        if config.draw_class and not names_classes:
            if not self.index.sampling_for(task).get("draw_class"):
                raise UserError(
                    "This model was not trained to draw a class from its context (class_loss is 0, or it lacks the "
                    f"task {CLASS_KNOWN!r}). Omit draw_class."
                )
            # A default of the folder must not stop a model that was trained with fewer tasks.
            config = replace(config, draw_class=False)
        check_sampler(self.model.config, config)
        return config


def _rectangle(task: str, region: object) -> Rectangle | None:
    if region is None:
        return None
    check_rectangular(task)
    return Rectangle.of(region)


def implied_task(index: ModelIndex, options: Mapping[str, object]) -> str:
    """The task of a call: the one it names, or the one that its other options imply."""
    if (task := options.get("task")) is not None:
        return str(task)
    if options.get("task_video") is not None:
        raise UserError(f"A video needs a task: say which of {', '.join(index.tasks)}.")
    if options.get("context") is not None:
        return "frame-prediction" if options.get("class_label") is None else CLASS_KNOWN
    if "class-conditional" not in index.tasks:
        raise UserError(f"This model needs a context or a video: it can do {', '.join(index.tasks)}.")
    return "class-conditional"


# ------------------------------------------------------------------------------------------------------------- training


class TaskMix:
    """One task for each whole batch, exactly balanced: update s takes entry s mod length of a fixed order.

    The order is `balanced_task_order`; the batch gains "task" and that task's "condition_tokens".
    """

    def __init__(self, task_weights: Mapping[str, float]) -> None:
        self.order = tasks.balanced_task_order(dict(task_weights), torch.Generator().manual_seed(TASK_ORDER_SEED))

    def __call__(self, batch: Batch, step: int) -> Batch:
        task = self.order[step % len(self.order)]
        prepared: dict[str, object] = {name: value for name, value in batch.items() if name != "conditions"} | {
            "task": task
        }
        if tasks.needs_video(task):
            conditions = batch["conditions"]
            assert isinstance(conditions, dict)
            prepared["condition_tokens"] = conditions[tasks.condition_key(task)]
        return prepared


def mix_tasks(config: MagvitConfig, task_weights: Mapping[str, float]) -> PrepareBatch:
    """See `TaskMix`."""
    return TaskMix(task_weights)


# ---------------------------------------------------------------------------------------------------------- declaration

PAPER_DECODING_STEPS = 12  # K, appendix B.3
SELF_SUPERVISED = tuple(task for task in tasks.TASKS if not task.startswith("class-conditional"))
MULTI_TASK = {"num_special_tokens": 16, "task_token": True}


def check_sampler(config: MagvitConfig, sampler: MaskedSamplerConfig) -> None:
    """Raises UserError for more steps than tokens."""
    if sampler.num_decoding_steps > config.num_tokens:
        raise UserError(
            f"num_decoding_steps must be between 1 and the {config.num_tokens} tokens of a clip, "
            f"found {sampler.num_decoding_steps}."
        )


def planned_steps(config: MagvitConfig, sampler: MaskedSamplerConfig) -> int:
    """K, whatever the size of the clip."""
    return sampler.num_decoding_steps


def paper_models() -> Iterator[PaperModel]:
    """Transformers B, L and H in the published settings (arXiv 2212.05199, appendix B)."""
    settings: dict[str, tuple[int, int, dict[str, object], tuple[str, ...]]] = {
        "ucf101": (128, 101, {}, ("class-conditional",)),
        "bair": (64, 0, {}, ("frame-prediction",)),
        "bair-mt8": (64, 0, dict(MULTI_TASK), SELF_SUPERVISED),
        "ssv2-mt10": (128, 174, dict(MULTI_TASK), tasks.TASKS),
    }
    for setting, (side, num_classes, fields, names) in settings.items():
        for size in ("B", "L", "H"):
            config = MagvitConfig.paper(size, tasks=names, num_classes=num_classes, **fields)
            yield PaperModel(f"magvit-{size}-{setting}", config, (16, side, side), PAPER_DECODING_STEPS, names)


def first_class(config: ModelConfig) -> int:
    """Rows of the vocabulary before those of the classes."""
    return config.codebook_size or 0


TRANSFER_RULES = (
    TransferRule("token_embedding.weight", class_rows(first_class)),
    TransferRule("head.bias", class_rows(first_class)),
    TransferRule("position_embedding.weight", position_table(0, across_frames=True)),
)

MAGVIT_FAMILY = Family(
    name="magvit",
    title="MAGVIT",
    paper="2212.05199",
    config=MagvitConfig,
    network=Magvit,
    sampler=MaskedSamplerConfig,
    call=MagvitCall,
    generator=MagvitGenerator,
    capabilities=Capabilities(extends=True, captures=True),
    planned_steps=planned_steps,
    check_sampler=check_sampler,
    papers=paper_models,
    transfer_rules=TRANSFER_RULES,
    lora_modules=("attention.qkv", "attention.output", "mlp_in", "mlp_out"),
    prepare_batch=mix_tasks,
    resolve_task=implied_task,
)
