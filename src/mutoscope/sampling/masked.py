"""Masked parallel decoding: all tokens at once, the confident ones kept, the others masked again (COMMIT decoding).

arXiv 2212.05199 Algorithm 1 as its released code runs it; arXiv 2202.04200 §3.2 is the case without a condition.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.checks import COUNT, NOT_NEGATIVE, Range, check_fields
from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import condition_region
from mutoscope.layers.token_masking import MASK_TOKEN, select_lowest
from mutoscope.sampling.base import Sampler, TokenEvent, ready
from mutoscope.sampling.categorical import drawable, gumbel, log_probability, sample_categorical
from mutoscope.sampling.guidance import guide
from mutoscope.sampling.schedules import num_masked_after, parse_schedule

CLASS_KNOWN = "class-conditional-frame-prediction"  # the task that frame prediction becomes once its class is drawn


class MaskedTokenModel(Protocol):
    """Methods that the sampler needs of a network."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def logits(
        self, tokens: Tensor, task: str, label: Tensor | None = None, unconditional: bool = False
    ) -> Float[Tensor, "b t h w k"]:
        """Logits over the codes; `tokens` holds codes or MASK_TOKEN; `unconditional` ignores label and condition."""
        ...


class ClassNamingModel(MaskedTokenModel, Protocol):
    """Methods that `draw_class` needs in addition."""

    def class_logits(self, condition_tokens: Tensor) -> Float[Tensor, "b classes"]:
        """Logits over the classes, from the tokens of the context frames."""
        ...


@dataclass(frozen=True)
class MaskedCondition:
    """What the samples of one batch are conditioned on."""

    task: str
    """One of the ten tasks."""
    batch_size: int = 1
    label: Int[Tensor, " b"] | None = None
    """Class of each sample, for class-conditional tasks."""
    tokens: Int[Tensor, "b t h w"] | None = None
    """Tokens of each sample's condition video, for every task but full generation."""
    region: Bool[Tensor, "*b t h w"] | None = None
    """Positions that show their condition token; None: the region of the task on the latent grid."""


class DecodingNoise(Protocol):
    """Gumbel noise for step after step; a test may supply recorded noise."""

    def sampling(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """Noise that draws the tokens, (b, t, h, w, k); with `draw_class`, before step 0 that of the classes."""
        ...

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """Noise that is added to the confidence, (b, t, h, w)."""
        ...


@dataclass(frozen=True)
class GeneratorNoise:
    """Fresh Gumbel noise from one generator."""

    generator: torch.Generator
    device: torch.device

    def sampling(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return gumbel(shape, self.generator, self.device)

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return gumbel(shape, self.generator, self.device)


RANGES = {
    "num_decoding_steps": COUNT,
    "choice_temperature": NOT_NEGATIVE,
    "temperature": NOT_NEGATIVE,
    "top_k": COUNT,
    "top_p": Range(above=0, high=1),
    "guidance_scale": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class MaskedSamplerConfig:
    """Defaults are those of the paper for UCF-101, SSv2 and multi-task BAIR (arXiv 2212.05199, appendix B.3)."""

    num_decoding_steps: int = 12
    """Passes of the network per clip."""
    schedule: str = "cosine"
    """Share of tokens still masked: uniform, cosine, exp, log, powP or poly:c0,...,ck."""
    choice_temperature: float = 4.5
    """Scale of the noise on the confidences, which falls to 0 at the last step."""
    temperature: float = 1.0
    """Of the token distribution; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw among the k most probable tokens only."""
    top_p: float | None = None
    """Draw among the most probable tokens that hold this share of the probability."""
    guidance_scale: float = 1.0
    """u + s (c - u); 1 is off."""
    keep_given: bool = False
    """Hold the condition tokens fixed instead of refining them, for conditions that are the true video's own tokens."""
    draw_class: bool = False
    """Draw the class from the context first, so that all tokens follow one motion (not in the paper)."""

    def __post_init__(self) -> None:
        parse_schedule(self.schedule)
        check_fields(self, RANGES)


class MaskedSampler(Sampler[MaskedTokenModel, MaskedCondition, TokenEvent]):
    """COMMIT decoding (arXiv 2212.05199, Algorithm 1); one event per decoding step."""

    def __init__(self, config: MaskedSamplerConfig = MaskedSamplerConfig()):
        self.config = config

    def sample(
        self,
        model: MaskedTokenModel,
        condition: MaskedCondition,
        generator: torch.Generator,
        *,
        noise: DecodingNoise | None = None,
    ) -> Iterator[TokenEvent]:
        """Decode a batch. The last event's `proposal` is the result.

        `noise` replaces the draws from `generator` by recorded ones. Raises UserError for a condition that does not
        fit the task or the latent grid.
        """
        start, num_steps = time.perf_counter(), self.config.num_decoding_steps
        noise = noise or GeneratorNoise(generator, model.device)
        task, label = condition.task, condition.label
        shape = (condition.batch_size, *model.latent_shape)
        tokens, unknown = self._start(model, condition, shape)
        shown = tokens  # what an undecided position shows: its condition token, or [MASK]
        if self.config.draw_class and task == "frame-prediction" and condition.tokens is not None:
            task, label = CLASS_KNOWN, self._draw_class(model, condition.tokens, noise)
        maskable = unknown.flatten(1).sum(-1)  # (b,)
        most = maskable.max().cpu()[None]  # (1,)
        left = int(most)  # undecided tokens of the emptiest sample, at least
        for step in range(num_steps):
            logits = self._logits(model, tokens, unknown, task, label)  # (b, t, h, w, k)
            proposal = sample_categorical(
                logits,
                noise.sampling(step, logits.shape),
                self.config.temperature,
                self.config.top_k,
                self.config.top_p,
            )
            proposal = torch.where(unknown, proposal, tokens)
            confidence = self._confidence(logits, proposal, unknown, step, noise)
            still_unknown = self._mask_again(confidence, unknown, maskable, step)
            tokens = torch.where(still_unknown, shown, proposal)
            left = max(min(int(num_masked_after(self.config.schedule, step, num_steps, most)), left - 1), 0)
            # The tokens are looked at only where this may be the end: reading them stalls an accelerator.
            is_last = step == num_steps - 1 or (left == 0 and not bool(still_unknown.any()))
            yield TokenEvent(
                step=step,
                num_steps=num_steps,
                decided=unknown & ~still_unknown,
                frames=slice(0, shape[1]) if is_last else None,
                seconds=time.perf_counter() - start,
                draft=ready(proposal),
                tokens=tokens,
                confidence=confidence,
            )
            if is_last:
                return
            unknown = still_unknown

    def _start(
        self, model: MaskedTokenModel, condition: MaskedCondition, shape: tuple[int, int, int, int]
    ) -> tuple[Int[Tensor, "b t h w"], Bool[Tensor, "b t h w"]]:
        """Condition tokens inside the condition region, [MASK] elsewhere; and which positions are undecided.

        Whether a position is undecided cannot be read off the tokens, because an undecided position of the condition
        region shows its condition token. Unless `keep_given`, every position starts undecided.
        """
        hidden = torch.full(shape, MASK_TOKEN, device=model.device)
        region = condition_region(condition.task, shape[1:]) if condition.region is None else condition.region
        if tuple(region.shape[-3:]) != shape[1:] or region.ndim > 4:
            raise UserError(f"The condition mask must have the latent shape {shape[1:]}, found {tuple(region.shape)}.")
        if condition.tokens is not None and tuple(condition.tokens.shape) != shape:
            found = tuple(condition.tokens.shape)
            raise UserError(f"The condition tokens must have the shape {shape}, found {found}.")
        region = region.to(model.device).expand(shape)
        if condition.tokens is None:
            if bool(region.any()):
                raise UserError(f"The task {condition.task!r} needs condition tokens (a context or a video).")
            return hidden, torch.ones_like(region)
        tokens = torch.where(region, condition.tokens.to(model.device), hidden)
        return tokens, ~region if self.config.keep_given else torch.ones_like(region)

    # Gradients are turned off around each call of the network: a generator must not change the caller's grad mode.
    @torch.no_grad()
    def _draw_class(self, model: MaskedTokenModel, condition_tokens: Tensor, noise: DecodingNoise) -> Int[Tensor, " b"]:
        # Only MAGVIT's own networks name classes; a family turns `draw_class` on for no other.
        logits = cast(ClassNamingModel, model).class_logits(condition_tokens)  # (b, classes)
        logits = drawable(logits.float(), logits.dtype, "The model's logits of the classes")
        return sample_categorical(logits, noise.sampling(0, tuple(logits.shape)), self.config.temperature)

    @torch.no_grad()
    def _logits(
        self, model: MaskedTokenModel, tokens: Tensor, unknown: Tensor, task: str, label: Tensor | None
    ) -> Float[Tensor, "b t h w k"]:
        logits = model.logits(tokens, task, label)
        dtype, logits = logits.dtype, logits.float()
        if self.config.guidance_scale != 1.0:
            # The unconditional pass sees [MASK] where the other one still sees a condition token.
            hidden = tokens.masked_fill(unknown, MASK_TOKEN)
            unguided = model.logits(hidden, task, label, unconditional=True).float()
            logits = guide(logits, unguided, self.config.guidance_scale)
        return drawable(logits, dtype)

    def _confidence(
        self, logits: Tensor, proposal: Tensor, unknown: Tensor, step: int, noise: DecodingNoise
    ) -> Float[Tensor, "b t h w"]:
        """Log-probability plus Gumbel noise whose scale falls linearly to zero in the last step."""
        progress = (step + 1) / self.config.num_decoding_steps
        scale = self.config.choice_temperature * (1 - progress)
        # Decided positions may hold any token and are overwritten; MASK_TOKEN never occurs in a proposal.
        confidence = log_probability(logits, proposal) + scale * noise.choice(step, proposal.shape)
        return confidence.masked_fill(~unknown, math.inf)

    def _mask_again(
        self, confidence: Tensor, unknown: Tensor, maskable: Int[Tensor, " b"], step: int
    ) -> Bool[Tensor, "b t h w"]:
        """The least confident positions, as many as the schedule says, at least one fewer than before; none at the end.

        With one position left before the last step, "at least 1" and "one fewer" contradict each other: it is decided.
        """
        if step == self.config.num_decoding_steps - 1:
            return torch.zeros_like(unknown)
        count = num_masked_after(self.config.schedule, step, self.config.num_decoding_steps, maskable)
        count = count.minimum(unknown.flatten(1).sum(-1) - 1).clamp(min=0)  # (b,)
        # Exact ties may select more than `count`, but never a position decided earlier (its confidence is +inf).
        return select_lowest(confidence.flatten(1), count).view_as(unknown) & unknown
