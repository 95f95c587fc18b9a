"""Sample contact sheets: they need a sampler, which `training` may not import; the caller passes them as callbacks."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from mutoscope import hub
from mutoscope.data.base import ClipBatch
from mutoscope.families.actions import ActionRows
from mutoscope.models.base import VideoModel
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.tasks import needs_video
from mutoscope.text import TextEncoder
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.callbacks import TrainEvent, paired_sheet

MOST_STEPS = {"num_decoding_steps": 6, "num_diffusion_steps": 8}  # of a contact sheet: whether training works shows


def with_few_steps(index: hub.ModelIndex) -> hub.ModelIndex:
    """The model with at most MOST_STEPS in its sampler's defaults, for all tasks."""

    def few(sampling: Mapping[str, object]) -> dict[str, object]:
        most = {name: value for name, value in MOST_STEPS.items() if sampling.get(name) is not None}
        return {**sampling, **{name: min(cast(int, sampling[name]), value) for name, value in most.items()}}

    tasks = {task: few(options) for task, options in index.task_sampling.items()}
    return replace(index, sampling=few(index.sampling), task_sampling=tasks)


class GenerationSheet:
    """One contact sheet per task: every real clip directly above the clip generated from its label or condition.

    Clips are generated in fewer steps than the model's own (MOST_STEPS), since a sheet interrupts training.
    The condition is written above the real clip where it is a class or a caption. Clips, labels and the sampler's seed
    are the same at every step, so that contact sheets compare.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        index: hub.ModelIndex,
        examples: ClipBatch,
        text_encoder: TextEncoder | None = None,
        seed: int = 0,
    ):
        """`examples`: a batch of clips, "video" and "label", maybe "caption" and "actions"."""
        self.tokenizer, self.index, self.seed = tokenizer, with_few_steps(index), seed
        self.examples, self.clips, self.text_encoder = examples, examples["video"], text_encoder

    def __call__(self, event: TrainEvent) -> None:
        for task in self.index.tasks:
            generated, texts = self.generate(event.network, task), self.labels(task)
            event.save_image(task, paired_sheet(self.clips, generated, every_nth_frame=2, labels=texts))

    def labels(self, task: str) -> list[tuple[str, str]]:
        """The texts above each real clip and above the clip generated for `task`."""
        return [(f"real: {text}" if text else "real", "generated") for text in self._conditions(task)]

    def _conditions(self, task: str) -> list[str]:
        """The condition of each clip in words, "" where it has none that can be written."""
        if task == "text-conditional":
            return list(self.examples["caption"])
        if task.startswith("class-conditional") and (names := self.index.class_names):
            return [names[label] if label >= 0 else "" for label in self.examples["label"].tolist()]
        return [""] * len(self.clips)

    def generate(self, model: nn.Module, task: str) -> UInt8[Tensor, "b t h w 3"]:
        """Clips for `task` from `model`, decoded."""
        assert isinstance(model, VideoModel)
        if model.device.type == "cpu":
            model = copy.deepcopy(model)  # the pipeline packs a CPU network's layers in place, and this one is training
        text_encoder = self.text_encoder
        load = None if text_encoder is None else lambda: text_encoder
        pipeline = VideoPipeline(self.tokenizer, model, self.index, model.device, text_encoder=load)
        conditions: dict[str, object] = {"task_video": list(self.clips.numpy())} if needs_video(task) else {}
        if task == "text-conditional":
            conditions["prompt"] = self.examples["caption"]
        if task == "action-conditional" and "actions" in self.examples:
            conditions["context"] = list(self.clips[:, :1].numpy())
            # Rows of a recording, unchecked as in training. The last one leads to a frame after the clip.
            conditions["actions"] = ActionRows(tuple(self.examples["actions"].numpy()), is_listed=True)
            conditions["num_frames"] = self.index.num_frames
        if task.startswith("class-conditional"):
            conditions |= {"class_label": self.examples["label"].tolist()}
        if not conditions:
            conditions["num_samples"] = len(self.clips)
        call = pipeline.family.build_call({**conditions, "task": task, "seed": self.seed})
        clips = pipeline.generate(call).clips
        return torch.from_numpy(np.stack([clip.frames for clip in clips]))
