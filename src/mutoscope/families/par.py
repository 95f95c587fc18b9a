"""PAR and LlamaGen: images and clips from class labels, prompts or captions' features, n tokens per step.

arXiv 2412.15119 and 2406.06525.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.families.base import (
    PYTHON_ONLY,
    Batch,
    Call,
    Capabilities,
    Family,
    Generator,
    Labels,
    PaperModel,
    Parts,
    PrepareBatch,
    Prompts,
    Request,
    as_prompts,
    common_length,
)
from mutoscope.families.recorded import RecordedPAR
from mutoscope.families.transfer import TransferRule, class_rows, word_columns
from mutoscope.layers.recorded import Steps
from mutoscope.models.par import PAR, PARConfig, PARState
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.parallel_ar import (
    ParallelARSampler,
    ParallelARSamplerConfig,
    ParallelTokenModel,
    PrefillMemo,
    PrefixCondition,
    group_starts,
)
from mutoscope.text.base import TextFeatures, left_padded
from mutoscope.text.cleaning import clean_prompt


@dataclass(frozen=True, kw_only=True)
class PARCall(Call):
    """One call of a PAR or LlamaGen model: a class, or a prompt for models of text."""

    task: str | None = None
    """The model's only task; others are refused."""
    class_label: Labels = None
    """Index or name of a class; None: drawn at random."""
    prompt: Prompts = None
    """Text to show, for models trained with text."""
    caption: Float[Tensor, "n p c"] | None = field(default=None, metadata=PYTHON_ONLY)
    """Text features in place of a prompt, padded on the left, for one sample or all."""
    caption_mask: Bool[Tensor, "n p"] | None = field(default=None, metadata=PYTHON_ONLY)
    """False on padded rows of `caption`."""
    num_decoding_steps: int | None = None
    """The number that follows from the tokens per step; others are refused."""
    sampling: ParallelARSamplerConfig = field(default_factory=ParallelARSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class PARRequest(Request):
    """A checked call."""

    generator: "PARGenerator"
    sampler: ParallelARSamplerConfig
    caption: Float[Tensor, "n p c"] | None = None
    """Text features of every sample, or of one for all."""
    caption_mask: Bool[Tensor, "n p"] | None = None
    """False on padded rows."""

    def events(self) -> Iterator[Iterator[SampleEvent]]:
        random = torch.Generator().manual_seed(self.seed)
        for samples in self.batches():
            yield self.generator.decode(self, samples, random)


class PARGenerator(Generator[PARCall, PAR]):
    """Labels, prompts or text features in, tokens out. A class prefix is read once and remembered."""

    def __init__(self, parts: Parts[PAR]) -> None:
        super().__init__(parts)
        self.memo = PrefillMemo()
        self.network: ParallelTokenModel[PARState] = self.model

    def record_steps(self, steps: Steps) -> None:
        super().record_steps(steps)
        self.network = RecordedPAR(self.model, steps)

    def prepare(self, call: PARCall) -> PARRequest:
        self.check_call(call)
        self.check_trained_length(call)
        if call.task not in (None, *self.index.tasks):
            raise UserError(f"This model does {', '.join(self.index.tasks)} alone. Omit task.")
        self._check_condition(call)
        listed = {"caption": list(call.caption)} if call.caption is not None and len(call.caption) > 1 else {}
        num_samples = common_length(call.num_samples, class_label=call.class_label, prompt=call.prompt, **listed)
        cleaned = self._cleaned(call.prompt)
        caption, mask = (call.caption, call.caption_mask) if not cleaned else self._encode(cleaned)
        by_class = caption is None
        return PARRequest(
            generator=self,
            task="class-conditional" if by_class else "text-conditional",
            num_samples=num_samples,
            seed=call.seed,
            num_steps=self._num_steps(call.num_decoding_steps),
            num_frames=self.index.num_frames,
            sampling=vars(call.sampling),
            sampler=call.sampling,
            labels=self.class_labels(call.class_label, num_samples, call.seed) if by_class else None,
            caption=caption,
            caption_mask=mask,
            batch_size=max(call.batch_size, 1),
            warnings=() if call.prompt is None else self._warnings(call.prompt, cleaned),
        )

    def _num_steps(self, requested: int | None) -> int:
        steps = len(group_starts(self.model.latent_shape, self.model.num_parallel, self.model.num_start))
        if requested not in (None, steps):
            raise UserError(
                f"This model decodes {self.model.num_parallel} tokens per step, which gives {steps} steps; "
                f"num_decoding_steps {requested} cannot be chosen."
            )
        return steps

    def _cleaned(self, prompt: Prompts) -> list[str]:
        return [clean_prompt(text) for text in as_prompts(prompt)]

    def _warnings(self, prompt: Prompts, cleaned: Sequence[str]) -> tuple[str, ...]:
        """About words that the text encoder does not know, or never sees because cleaning removes them."""
        prompts = as_prompts(prompt)
        empty = [text for text, rest in zip(prompts, cleaned, strict=True) if text.strip() and not rest]
        message = "Cleaning, as in LlamaGen's training, leaves nothing of the prompt {!r}: it counts as empty."
        return (*(message.format(text) for text in empty), *self.prompt_warnings(*prompts))

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Cleaned prompts as LlamaGen was trained with them: padded on the left."""
        return left_padded(self.encode_text(prompts))

    def _check_condition(self, call: PARCall) -> None:
        if self.model.config.text is None:
            if call.prompt is not None:
                raise UserError("This model takes no prompt. Say what it should show with a class label.")
            if call.caption is not None:
                raise UserError("This model reads class labels, not captions.")
            return
        if call.class_label is not None:
            raise UserError("This model knows no classes. Omit the class label.")
        if (call.prompt is None) == (call.caption is None):
            raise UserError("This model needs a prompt, or the text features of a caption: give one of them.")

    def decode(self, request: PARRequest, samples: slice, random: torch.Generator) -> Iterator[SampleEvent]:
        """The sampler's events of one batch."""
        sampler = ParallelARSampler[PARState](request.sampler)
        static = self.network is not self.model
        return sampler.sample(self.network, self._condition(request, samples), random, memo=self.memo, static=static)

    @torch.no_grad()
    def _condition(self, request: PARRequest, samples: slice) -> PrefixCondition:
        count = samples.stop - samples.start
        guided = request.sampler.guidance_scale != 1.0
        if request.caption is not None:
            one = len(request.caption) == 1
            caption = request.caption.expand(count, -1, -1) if one else request.caption[samples]  # (b, p, c)
            mask = request.caption_mask
            mask = None if mask is None else (mask.expand(count, -1) if len(mask) == 1 else mask[samples])
            nothing = self.model.caption_prefix(None, count) if guided else None
            # Padded rows are zero features, as in training.
            caption = caption if mask is None else caption * mask[..., None]
            return PrefixCondition(self.model.caption_prefix(caption, count), nothing, mask)
        assert request.labels is not None
        labels = request.labels[samples]
        nothing = self.model.class_prefix(None, count) if guided else None
        no_class = self.model.config.num_classes or 0  # the row after the last class
        keys = (*(int(label) for label in labels), *[no_class] * (count if guided else 0))
        return PrefixCondition(self.model.class_prefix(labels, count), nothing, labels=keys)


# ------------------------------------------------------------------------------------------------------------- training


def pad_captions_left(config: PARConfig, task_weights: Mapping[str, float]) -> PrepareBatch:
    """LlamaGen's captions have their real rows last; caches keep them first."""

    def prepare(batch: Batch, step: int) -> Batch:
        kept: dict[str, object] = {name: value for name, value in batch.items() if name != "conditions"}
        if config.text is not None:
            features, mask = kept["caption"], kept["caption_mask"]
            assert isinstance(features, Tensor) and isinstance(mask, Tensor)
            kept["caption"], kept["caption_mask"] = left_padded(TextFeatures(features, mask))
        return kept

    return prepare


# ---------------------------------------------------------------------------------------------------------- declaration


def planned_steps(config: PARConfig, sampler: ParallelARSamplerConfig) -> int:
    """Forward passes of the paper's order; no option of the sampler changes them."""
    return len(group_starts(config.latent_shape, config.num_parallel, config.num_start))


def paper_models() -> Iterator[PaperModel]:
    """LlamaGen and PAR in the published sizes on images of 384 pixels."""
    for size in ("B", "L", "XL", "XXL", "3B"):
        for n in (1, 4, 16):
            config = PARConfig.paper(size, num_parallel=n)
            name = f"llamagen-{size}" if n == 1 else f"par-{size}-{n}x"
            yield PaperModel(
                name, config, (1, 384, 384), planned_steps(config, ParallelARSamplerConfig()), ("class-conditional",)
            )


TRANSFER_RULES = (
    TransferRule("condition.weight", class_rows(), optional=True),
    TransferRule("condition.fc1.weight", word_columns, optional=True),
    TransferRule("condition.unconditional", word_columns, optional=True),
    TransferRule("condition.fc2.weight", optional=True),
)


def check_transfer(old: PARConfig, new: PARConfig) -> None:
    """Positions are rotations, which any grid has, but clips rotate other channels by row and column than images."""
    if old.rope_pairs != new.rope_pairs:
        frames = "images" if old.latent_shape[0] == 1 else "clips"
        raise UserError(
            f"These weights know {frames}: PAR rotates other channels by row and column in clips than in images, so "
            f"they would start from nothing. Fine-tune on {frames} (--data.num-frames 1 for images), or train anew."
        )


PAR_FAMILY = Family(
    name="par",
    title="PAR",
    paper="2412.15119",
    config=PARConfig,
    network=PAR,
    sampler=ParallelARSamplerConfig,
    call=PARCall,
    generator=PARGenerator,
    capabilities=Capabilities(captures=True, packs=True),
    planned_steps=planned_steps,
    papers=paper_models,
    transfer_rules=TRANSFER_RULES,
    check_transfer=check_transfer,
    lora_modules=("attention.qkv", "attention.output", "mlp_gate", "mlp_in", "mlp_out"),
    prepare_batch=pad_captions_left,
    clean_caption=clean_prompt,
)
