"""PAR and LlamaGen: images and clips from class labels, prompts or captions' features, n tokens per step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.families.base import Generator, Request, common_length
from mutoscope.families.captured import CapturedPAR
from mutoscope.json_config import dataclass_from_dict
from mutoscope.layers.cuda_graph import CUDAGraphCall, Record
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.parallel_ar import (
    Condition,
    ParallelARSampler,
    ParallelARSamplerConfig,
    PrefillMemo,
    group_starts,
)
from mutoscope.text.base import TextFeatures, left_padded
from mutoscope.text.cleaning import clean_prompt


@dataclass(frozen=True)
class ParallelARRequest(Request):
    """`caption` holds text features of every sample, or of one for all, and `caption_mask` which of them are real."""

    caption: Float[Tensor, "n p c"] | None = None
    caption_mask: Bool[Tensor, "n p"] | None = None


class ParallelARGenerator(Generator):
    """Labels, prompts or text features in, tokens out. Class prefixes are read once per label and remembered."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.memo = PrefillMemo()

    def capture(self, record: Record = CUDAGraphCall) -> None:
        self.network = CapturedPAR(self.model, record)

    def prepare(
        self,
        *,
        class_label: int | str | Sequence[int | str] | None = None,
        prompt: str | Sequence[str] | None = None,
        caption: Float[Tensor, "n p c"] | None = None,
        caption_mask: Bool[Tensor, "n p"] | None = None,
        context: Any = None,
        context_frames: int | None = None,
        task: str | None = None,
        task_video: Any = None,
        actions: Any = None,
        num_frames: int | None = None,
        num_samples: int | None = None,
        num_decoding_steps: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        paste_given: bool = False,
        **sampler_options: Any,
    ) -> ParallelARRequest:
        listed = {"caption": list(caption)} if caption is not None and len(caption) > 1 else {}
        num_samples = common_length(num_samples, class_label=class_label, prompt=prompt, **listed)
        reads_text = self.model.config.caption_size is not None
        self.check_call(num_samples, seed, num_frames, None if reads_text else prompt, actions)
        if context is not None or task_video is not None or task not in (None, *self.index.tasks) or paste_given:
            raise UserError("This model generates from a class label or a caption alone. Leave frames and task out.")
        self._check_condition(class_label, prompt, caption)
        starts = group_starts(self.model.latent_shape, self.model.num_parallel, self.model.num_start)
        if num_decoding_steps not in (None, len(starts)):
            raise UserError(
                f"This model decodes {self.model.num_parallel} tokens per step, which makes {len(starts)} steps; "
                f"num_decoding_steps {num_decoding_steps} cannot be chosen."
            )
        chosen = {**self.index.sampling, **{key: value for key, value in sampler_options.items() if value is not None}}
        sampler = dataclass_from_dict(ParallelARSamplerConfig, chosen, "Sampler options")
        cleaned = [clean_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt or ())]
        if prompt is not None:
            caption, caption_mask = self._encode(cleaned)
        return ParallelARRequest(
            task="class-conditional" if caption is None else "text-conditional",
            num_samples=num_samples,
            seed=seed,
            sampler=sampler,
            num_steps=len(starts),
            labels=None if caption is not None else self.class_labels(class_label, num_samples, seed),
            caption=caption,
            caption_mask=caption_mask,
            batch_size=max(batch_size, 1),
            warnings=() if prompt is None else self.prompt_warnings(cleaned),
        )

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Cleaned prompts as LlamaGen was trained with them: padded on the left."""
        config = self.model.config
        found = left_padded(self.text_encoder.encode(prompts, config.caption_length))
        if found.features.shape[2] != config.caption_size:
            raise UserError(
                f"The text encoder {str(self.text_encoder.folder)!r} gives {found.features.shape[2]} channels, this "
                f"model reads {config.caption_size}: name the encoder it was trained with."
            )
        return found

    def _check_condition(self, class_label: Any, prompt: Any, caption: Any) -> None:
        reads_captions = self.model.config.caption_size is not None
        if reads_captions and class_label is not None:
            raise UserError("This model knows no classes. Leave the class label out.")
        if reads_captions and (prompt is None) == (caption is None):
            raise UserError("This model needs a prompt, or the text features of a caption: give one of them.")
        if caption is not None and not reads_captions:
            raise UserError("This model reads class labels, not captions.")

    def sample(self, request: Request, on_step: Callable[[SampleEvent], None]) -> Iterator[Iterator[SampleEvent]]:
        assert isinstance(request, ParallelARRequest)
        generator = torch.Generator().manual_seed(request.seed)
        for samples in request.rounds():
            yield self._round(request, samples, generator, on_step)

    @torch.no_grad()
    def _condition(self, request: ParallelARRequest, samples: slice) -> Condition:
        count = samples.stop - samples.start
        guided = request.sampler.guidance_scale != 1.0
        if request.caption is not None:
            one = len(request.caption) == 1
            caption = request.caption.expand(count, -1, -1) if one else request.caption[samples]
            mask = request.caption_mask
            mask = None if mask is None else (mask.expand(count, -1) if len(mask) == 1 else mask[samples])
            nothing = self.model.caption_prefix(None, count) if guided else None
            # What is padded counts as zero features.
            caption = caption if mask is None else caption * mask[..., None]
            return Condition(self.model.caption_prefix(caption, count), nothing, mask)
        assert request.labels is not None
        labels = request.labels[samples]
        nothing = self.model.class_prefix(None, count) if guided else None
        names = (*labels.tolist(), *[self.model.config.num_classes] * (count if guided else 0))
        return Condition(self.model.class_prefix(labels, count), nothing, labels=names)

    def _round(
        self,
        request: ParallelARRequest,
        samples: slice,
        generator: torch.Generator,
        on_step: Callable[[SampleEvent], None],
    ) -> Iterator[SampleEvent]:
        condition, static = self._condition(request, samples), self.network is not self.model
        sampler = ParallelARSampler(request.sampler)
        for event in sampler.sample(self.network, condition, generator, memo=self.memo, static=static):
            on_step(event)
            yield event
