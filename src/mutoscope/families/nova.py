"""NOVA: images and clips of any length from prompts, classes and first frames, one frame after the other.

arXiv 2412.14169.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.families.base import (
    VIDEO_FILE,
    Call,
    Capabilities,
    Clips,
    Family,
    Generator,
    Labels,
    PaperModel,
    Prompts,
    Request,
    as_prompts,
    common_length,
    per_sample,
)
from mutoscope.families.frames import context_clips, latent_frames
from mutoscope.families.transfer import TransferRule, class_rows, word_columns
from mutoscope.models.nova import IMAGE_SIZES, NOVA, Canvas, NOVAConfig, NOVAState
from mutoscope.sampling.base import SampleEvent
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, FrameCondition, set_sizes
from mutoscope.text.base import TextFeatures
from mutoscope.tokenizers.base import checked_latents


@dataclass(frozen=True, kw_only=True)
class NOVACall(Call):
    """One call of a NOVA model: a prompt (or class), and frames to continue."""

    task: str | None = None
    """The model's only task; others are refused."""
    prompt: Prompts = None
    """Text to show."""
    negative_prompt: str = ""
    """Text that guidance leads away from."""
    class_label: Labels = None
    """Index or name of a class, for models without text; None: drawn at random."""
    context: Clips = field(default=None, metadata=VIDEO_FILE)
    """Frames that the clip starts with."""
    context_frames: int | None = None
    """How many of these frames to use; None: all of them."""
    motion: float | None = None
    """How much moves, in pixels of optical flow; None: 5, as the published pipelines."""
    sampling: FrameARSamplerConfig = field(default_factory=FrameARSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class NOVARequest(Request):
    """A checked call."""

    generator: "NOVAGenerator"
    sampler: FrameARSamplerConfig
    num_latent_frames: int = 1
    """Latent frames of the clip, those of the context among them."""
    text: TextFeatures | None = None
    """Features of the distinct prompts, then of the negative prompt."""
    prompts: Int[Tensor, " b"] | None = None
    """The row of every sample's prompt in `text`."""
    motion: float | None = None
    context: UInt8[Tensor, "n t h w 3"] | None = None
    """Frames that the clips start with, for every sample or one for all."""

    def events(self) -> Iterator[Iterator[SampleEvent]]:
        random = torch.Generator().manual_seed(self.seed)
        latents = self.generator.encode_context(self.context, random)
        for samples in self.batches():
            yield self.generator.decode(self, samples, latents, random)


class NOVAGenerator(Generator[NOVACall, NOVA]):
    """Prompts, classes and first frames in, latents out."""

    def fits_length(self, latent_frames: int) -> bool:
        """Positions in time stretch, so any length fits."""
        return True

    def prepare(self, call: NOVACall) -> NOVARequest:
        self.check_call(call)
        if call.task not in (None, *self.index.tasks):
            raise UserError("This model starts from a prompt, a class and first frames. Omit task.")
        if call.class_label is not None and self.model.config.text is not None:
            raise UserError("This model reads prompts and knows no classes. Omit the class label.")
        given = {"prompt": call.prompt, "class_label": call.class_label, "context": call.context}
        num_samples = common_length(call.num_samples, **given)
        sampler, num_tokens = call.sampling, math.prod(self.model.config.grid)
        check_sampler(self.model.config, sampler)
        self._check_motion(call.motion)
        text, rows = self._text(call.prompt, call.negative_prompt, num_samples)
        clips = context_clips(self.tokenizer.spec, self.index, call.context, call.context_frames)
        num_frames = call.num_frames or self.index.num_frames
        frames = self._latent_frames(num_frames)
        left = frames - (0 if clips is None else self._latent_frames(clips.shape[1]))
        if left < 1:
            raise UserError(f"The context is as long as the clip: raise num_frames above {num_frames}.")
        by_text = text is not None
        return NOVARequest(
            generator=self,
            task="continuation" if clips is not None else ("text-conditional" if by_text else "class-conditional"),
            num_samples=num_samples,
            seed=call.seed,
            num_steps=left * num_sets(sampler.num_decoding_steps, num_tokens),
            num_frames=num_frames,
            sampling=vars(sampler),
            sampler=sampler,
            labels=None if by_text else self.class_labels(call.class_label, num_samples, call.seed),
            batch_size=max(call.batch_size, 1),
            warnings=() if call.prompt is None else self._warnings(call.prompt, call.negative_prompt),
            num_latent_frames=frames,
            text=text,
            prompts=rows,
            motion=call.motion,
            context=clips,
        )

    def _warnings(self, prompt: Prompts, negative: str) -> tuple[str, ...]:
        return self.prompt_warnings(*as_prompts(prompt), negative)

    def _check_motion(self, motion: float | None) -> None:
        if motion is None:
            return
        if not self.model.config.is_video:
            raise UserError("This model generates images and reads no motion. Omit motion.")
        if not 0 <= motion < math.inf:
            raise UserError(f"motion must be finite and not negative, found {motion}.")

    def _text(
        self, prompt: Prompts, negative: str, num_samples: int
    ) -> tuple[TextFeatures | None, Int[Tensor, " b"] | None]:
        """Features of each distinct prompt and of the negative one, and the row of every sample's prompt."""
        if self.model.config.text is None:
            if prompt is not None:
                raise UserError("This model takes no prompt. Say what it should show with a class label.")
            return None, None
        if prompt is None:
            raise UserError('This model needs a prompt, such as prompt="a red circle bounces to the right".')
        prompts = per_sample(prompt, num_samples)
        distinct = list(dict.fromkeys(prompts))
        text = self.encode_text([*distinct, negative])
        return text, torch.tensor([distinct.index(p) for p in prompts])

    def _latent_frames(self, num_frames: int) -> int:
        return latent_frames(self.tokenizer.spec, self.index, num_frames)

    # ------------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def encode_context(
        self, context: UInt8[Tensor, "n t h w 3"] | None, random: torch.Generator
    ) -> Float[Tensor, "n c k h2 w2"] | None:
        """Latents of the context frames, drawn from their distribution as the published pipelines do."""
        if context is None:
            return None
        latents = self.tokenizer.draw_latents(self.tokenizer.from_uint8(context.to(self.device)), random)
        return checked_latents(latents, self.tokenizer)

    def decode(
        self,
        request: NOVARequest,
        samples: slice,
        context: Float[Tensor, "n c k h w"] | None,
        random: torch.Generator,
    ) -> Iterator[SampleEvent]:
        """The sampler's events of one batch."""
        condition = self._condition(request, samples)
        if context is not None:
            count = condition.num_samples
            context = context.expand(count, -1, -1, -1, -1) if len(context) == 1 else context[samples]
            context = context.to(condition.prefix)
        full = FrameCondition(
            condition.prefix,
            condition.rows,
            condition.num_passes,
            condition.blind,
            request.num_latent_frames,
            context,
        )
        return FrameARSampler[NOVAState, Canvas](request.sampler, self.steps).sample(self.model, full, random)

    @torch.no_grad()
    def _condition(self, request: NOVARequest, samples: slice) -> FrameCondition:
        """Prefixes of every distinct prompt or class of the batch, then of the pass that guidance compares with."""
        named = request.prompts if request.text is not None else request.labels
        assert named is not None
        distinct, rows = _distinct(named[samples])
        count, num_passes = len(distinct), request.sampler.num_passes
        prefix = torch.cat([self._prefix(request, distinct), self._negative(request)])
        flow = None if request.motion is None else prefix.new_full((len(prefix),), request.motion)
        prefix = self.model.with_motion(prefix, flow)
        rows, nothing = rows.to(self.device), torch.full((len(rows),), count, device=self.device)
        if num_passes == 1:
            return FrameCondition(prefix[:count], rows, 1)
        if num_passes == 2:
            return FrameCondition(prefix, torch.cat([rows, nothing]), 2)
        blind = torch.arange(count + 2, device=self.device) == count
        return FrameCondition(torch.cat([prefix, prefix[-1:]]), torch.cat([rows, nothing, nothing + 1]), 3, blind)

    def _prefix(self, request: NOVARequest, distinct: Int[Tensor, " u"]) -> Float[Tensor, "u l d"]:
        if request.text is None:
            return self.model.class_prefix(distinct.to(self.device))
        features, mask = (part[distinct.to(part.device)].to(self.device) for part in request.text)
        return self.model.text_prefix(features, mask)

    def _negative(self, request: NOVARequest) -> Float[Tensor, "1 l d"]:
        if request.text is None:
            return self.model.null_prefix(1)
        features, mask = (part[-1:].to(self.device) for part in request.text)
        return self.model.text_prefix(features, mask)


def _distinct(numbers: Int[Tensor, " b"]) -> tuple[Int[Tensor, " u"], Int[Tensor, " b"]]:
    """The distinct numbers in order, and the position of each number among them."""
    distinct, rows = numbers.unique(return_inverse=True)  # pyright: ignore  (torch ships no type for it)
    return distinct, rows  # pyright: ignore


# ---------------------------------------------------------------------------------------------------------- declaration


def num_sets(num_decoding_steps: int, num_tokens: int) -> int:
    """Sets of a frame that decide anything."""
    return sum(size > 0 for size in set_sizes(num_decoding_steps, num_tokens))


def check_sampler(config: NOVAConfig, sampler: FrameARSamplerConfig) -> None:
    """Raises UserError for more sets than tokens of a frame."""
    num_tokens = math.prod(config.grid)
    if sampler.num_decoding_steps > num_tokens:
        raise UserError(
            f"A frame has {num_tokens} tokens: num_decoding_steps can be at most that, found "
            f"{sampler.num_decoding_steps}."
        )


def planned_steps(config: NOVAConfig, sampler: FrameARSamplerConfig) -> int:
    """Sets of tokens of all frames of a training clip."""
    return num_sets(sampler.num_decoding_steps, math.prod(config.grid)) * config.latent_shape[0]


IMAGE_SETS, VIDEO_SETS = 64, 128  # per frame, the defaults of the published pipelines


def paper_models() -> Iterator[PaperModel]:
    """The published sizes: images of 1024 pixels and clips of 33 frames; steps are sets of tokens."""
    for size in IMAGE_SIZES:
        config = NOVAConfig.paper(size)
        steps = planned_steps(config, FrameARSamplerConfig(num_decoding_steps=IMAGE_SETS))
        yield PaperModel(f"nova-{size}-1024", config, (1, 1024, 1024), steps, config.tasks)
    video = NOVAConfig()
    steps = planned_steps(video, FrameARSamplerConfig(num_decoding_steps=VIDEO_SETS))
    yield PaperModel("nova-0.6B-video", video, (33, 480, 768), steps, video.tasks)


TRANSFER_RULES = (
    TransferRule("text.projection.weight", word_columns, optional=True),
    TransferRule("text.table", word_columns, optional=True),
    TransferRule("text.*", optional=True),
    TransferRule("classes.weight", class_rows(), optional=True),
    TransferRule("class_norm.*", optional=True),
    TransferRule("head.length_projector.*", optional=True),
    # Images to video: the published order of training.
    TransferRule("mixer.*", optional=True),
    TransferRule("flow_embedding.*", optional=True),
    TransferRule("fps_embedding.*", optional=True),
)

NOVA_FAMILY = Family(
    name="nova",
    title="NOVA",
    paper="2412.14169",
    config=NOVAConfig,
    network=NOVA,
    sampler=FrameARSamplerConfig,
    call=NOVACall,
    generator=NOVAGenerator,
    capabilities=Capabilities(any_length=True),
    planned_steps=planned_steps,
    check_sampler=check_sampler,
    papers=paper_models,
    transfer_rules=TRANSFER_RULES,
    lora_modules=("attention.qkv", "attention.output", "mlp_in", "mlp_out", "head.blocks.*"),
)
