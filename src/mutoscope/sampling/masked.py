"""Masked parallel decoding: all tokens at once, the confident ones kept, the others masked again (COMMIT decoding).

arXiv 2212.05199 Algorithm 1 as its released code runs it; arXiv 2202.04200 §3.2 is the case without a condition.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import condition_region
from mutoscope.layers.token_masking import MASK_TOKEN, select_lowest
from mutoscope.sampling.base import TokenEvent
from mutoscope.sampling.categorical import gumbel, log_probability, sample_categorical
from mutoscope.sampling.guidance import guide
from mutoscope.sampling.schedules import num_masked_after, parse_schedule

CLASS_TOLD = "class-conditional-frame-prediction"  # what frame prediction becomes once its class is drawn


class MaskedTokenModel(Protocol):
    """All the sampler asks of a network."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def logits(
        self, tokens: Tensor, task: str, label: Tensor | None = None, unconditional: bool = False
    ) -> Float[Tensor, "b t h w k"]:
        """Logits over the codes; `tokens` holds codes or MASK_TOKEN; `unconditional` ignores label and condition."""
        ...


@runtime_checkable
class ClassNamingModel(MaskedTokenModel, Protocol):
    """What `draw_class` asks of it in addition."""

    def class_logits(self, condition_tokens: Tensor) -> Float[Tensor, "b classes"]:
        """Logits over the classes, from what frame prediction is given."""
        ...


class DecodingNoise(Protocol):
    """Gumbel noise for step after step; a test may supply recorded noise."""

    def sampling(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """Noise that draws the tokens, (b, t, h, w, k); before step 0 that of the classes, (b, classes), if asked."""
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


@dataclass(frozen=True)
class MaskedSamplerConfig:
    """Defaults are those of the paper for UCF-101, SSv2 and multi-task BAIR (appendix B.3).

    `choice_temperature` scales the noise on the confidences, `temperature`, `top_k` and `top_p` shape the draw of the
    tokens. `keep_given` holds the given tokens fixed instead of refining them: what a completion needs when the given
    tokens are those of the true video rather than of a padded condition video. `draw_class` (not in the paper) makes
    frame prediction draw the class of the clip first, from what is given, and go on with the class told, so that all
    tokens agree on one motion; for networks trained with a class loss.
    """

    num_decoding_steps: int = 12
    schedule: str = "cosine"
    choice_temperature: float = 4.5
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    keep_given: bool = False
    draw_class: bool = False

    def __post_init__(self) -> None:
        parse_schedule(self.schedule)
        if self.num_decoding_steps < 1:
            raise UserError(f"num_decoding_steps is {self.num_decoding_steps}; it must be at least 1.")
        if self.temperature < 0 or self.choice_temperature < 0:
            raise UserError("temperature and choice_temperature must not be negative.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or left out.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie in (0, 1], or be left out.")


class MaskedSampler:
    """Yields one TokenEvent per decoding step."""

    def __init__(self, config: MaskedSamplerConfig = MaskedSamplerConfig()):
        self.config = config

    def sample(
        self,
        model: MaskedTokenModel,
        task: str,
        label: Int[Tensor, " b"] | None = None,
        condition_tokens: Int[Tensor, "b t h w"] | None = None,
        generator: torch.Generator | None = None,
        *,
        condition_mask: Bool[Tensor, "*b t h w"] | None = None,
        batch_size: int | None = None,
        noise: DecodingNoise | None = None,
    ) -> Iterator[TokenEvent]:
        """Decode a batch. The last event's `proposal` is the result.

        The batch size is that of `condition_tokens` or `label`; without either, `batch_size` (default 1). Where the
        condition is shown follows from the task unless `condition_mask` says otherwise. `generator` is required unless
        `noise` is given. Put the model in eval mode first.
        """
        start, num_steps = time.perf_counter(), self.config.num_decoding_steps
        noise = noise or self._noise(model, generator)
        known = next((len(x) for x in (condition_tokens, label) if x is not None), batch_size or 1)
        shape = (known, *model.latent_shape)
        tokens, unknown = self._start(model, task, condition_tokens, condition_mask, shape)
        shown = tokens  # what an undecided position shows: its condition token, or [MASK]
        if self.config.draw_class and task == "frame-prediction" and condition_tokens is not None:
            task, label = CLASS_TOLD, self._draw_class(model, condition_tokens, noise)
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
            # Only where it may be the end: looking at the tokens stalls an accelerator.
            is_last = step == num_steps - 1 or (left == 0 and not bool(still_unknown.any()))
            yield TokenEvent(
                step=step,
                num_steps=num_steps,
                decided=unknown & ~still_unknown,
                proposal=proposal,
                frames=slice(0, shape[1]) if is_last else None,
                seconds=time.perf_counter() - start,
                tokens=tokens,
                confidence=confidence,
            )
            if is_last:
                return
            unknown = still_unknown

    @staticmethod
    def _noise(model: MaskedTokenModel, generator: torch.Generator | None) -> DecodingNoise:
        if generator is None:
            raise ValueError("sample() needs a torch.Generator (or recorded noise)")
        return GeneratorNoise(generator, model.device)

    def _start(
        self,
        model: MaskedTokenModel,
        task: str,
        condition_tokens: Tensor | None,
        condition_mask: Tensor | None,
        shape: tuple[int, int, int, int],
    ) -> tuple[Int[Tensor, "b t h w"], Bool[Tensor, "b t h w"]]:
        """Condition tokens inside the condition region, [MASK] elsewhere; and which positions are undecided.

        Whether a position is undecided cannot be read off the tokens, because an undecided position of the condition
        region shows its condition token. Unless `keep_given`, every position starts undecided.
        """
        tokens = torch.full(shape, MASK_TOKEN, device=model.device)
        given = condition_region(task, shape[1:]) if condition_mask is None else condition_mask
        if tuple(given.shape[-3:]) != shape[1:] or given.ndim > 4:
            raise UserError(f"The condition mask must have the latent shape {shape[1:]}, found {tuple(given.shape)}.")
        if condition_tokens is not None and tuple(condition_tokens.shape) != shape:
            found = tuple(condition_tokens.shape[1:])
            raise UserError(f"The condition tokens must have the latent shape {shape[1:]}, found {found}.")
        given = given.to(model.device).expand(shape)
        if condition_tokens is None:
            if bool(given.any()):
                raise UserError(f"The task {task!r} needs condition tokens (a context or a video).")
            return tokens, torch.ones_like(given)
        tokens = torch.where(given, condition_tokens.to(model.device), tokens)
        return tokens, ~given if self.config.keep_given else torch.ones_like(given)

    # Gradients are turned off around each call of the network: a generator must not change the caller's grad mode.
    @torch.no_grad()
    def _draw_class(self, model: MaskedTokenModel, condition_tokens: Tensor, noise: DecodingNoise) -> Int[Tensor, " b"]:
        if not isinstance(model, ClassNamingModel):
            raise ValueError("draw_class needs a network with class_logits()")
        logits = model.class_logits(condition_tokens).float()  # (b, classes)
        return sample_categorical(logits, noise.sampling(0, tuple(logits.shape)), self.config.temperature)

    @torch.no_grad()
    def _logits(
        self, model: MaskedTokenModel, tokens: Tensor, unknown: Tensor, task: str, label: Tensor | None
    ) -> Float[Tensor, "b t h w k"]:
        logits = model.logits(tokens, task, label).float()
        if self.config.guidance_scale == 1.0:
            return logits
        # The unconditional pass sees [MASK] where the other one still sees a condition token.
        hidden = tokens.masked_fill(unknown, MASK_TOKEN)
        return guide(logits, model.logits(hidden, task, label, unconditional=True).float(), self.config.guidance_scale)

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
