"""One token after the other, in (time, row, column) order: the baseline of parallel decoding (2212.05199 §4.3)."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.checks import COUNT, NOT_NEGATIVE, Range, check_fields
from mutoscope.layers.kv_cache import KVCache
from mutoscope.sampling.base import Sampler, TokenEvent, ready
from mutoscope.sampling.categorical import drawable, gumbel, log_probability, sample_categorical


class NextTokenModel(Protocol):
    """Methods that the sampler needs of a network."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch_size: int) -> KVCache: ...

    def prefix(self, label: Tensor | None, condition_tokens: Tensor | None, batch_size: int) -> Int[Tensor, "b p"]: ...

    def code_logits(self, ids: Int[Tensor, "b n"], cache: KVCache | None = None) -> Float[Tensor, "b k"]: ...


@dataclass(frozen=True)
class TokenCondition:
    """What the samples of one batch are conditioned on."""

    batch_size: int
    label: Int[Tensor, " b"] | None = None
    """Class of each sample; None for no class."""
    tokens: Int[Tensor, "b t h w"] | None = None
    """Tokens of each sample's condition video; None for a model without a condition."""


@dataclass(frozen=True)
class AutoregressiveSamplerConfig:
    """How tokens are drawn; see `sample_categorical`."""

    temperature: float = 1.0
    """Of the token distribution; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw among the k most probable tokens only."""
    top_p: float | None = None
    """Draw among the most probable tokens that hold this share of the probability."""

    def __post_init__(self) -> None:
        check_fields(self, {"temperature": NOT_NEGATIVE, "top_k": COUNT, "top_p": Range(above=0, high=1)})


class AutoregressiveSampler(Sampler[NextTokenModel, TokenCondition, TokenEvent]):
    """Draws a clip in as many steps as it has tokens; keys and values of earlier tokens are kept in a cache."""

    def __init__(self, config: AutoregressiveSamplerConfig | None = None) -> None:
        self.config = config or AutoregressiveSamplerConfig()

    def sample(
        self,
        model: NextTokenModel,
        condition: TokenCondition,
        generator: torch.Generator,
    ) -> Iterator[TokenEvent]:
        """One event per latent frame, when its last token is drawn; see `Sampler.sample`."""
        begin, size = time.perf_counter(), condition.batch_size
        shape = (size, *model.latent_shape)
        frames, per_frame = shape[1], shape[2] * shape[3]
        tokens = torch.zeros(shape, dtype=torch.int64, device=model.device)
        confidence = torch.full(shape, -math.inf, device=model.device)
        flat, flat_confidence = tokens.view(size, -1), confidence.view(size, -1)  # (b, thw)
        cache = model.new_cache(size)
        ids = model.prefix(condition.label, condition.tokens, size)  # (b, p)
        for position in range(frames * per_frame):
            flat[:, position], flat_confidence[:, position] = self._draw(model, ids, cache, generator)
            ids = flat[:, position : position + 1]
            if (position + 1) % per_frame == 0:
                frame = position // per_frame
                decided = torch.zeros(shape, dtype=torch.bool, device=model.device)
                decided[:, frame] = True
                drawn = tokens.clone()  # the loop goes on writing into `tokens`
                yield TokenEvent(
                    step=frame,
                    num_steps=frames,
                    decided=decided,
                    frames=slice(frame, frame + 1),
                    seconds=time.perf_counter() - begin,
                    draft=ready(drawn),
                    tokens=drawn,
                    confidence=confidence.clone(),
                )

    @torch.no_grad()  # on the only call of the network, because a generator must not change the caller's grad mode
    def _draw(
        self, model: NextTokenModel, ids: Tensor, cache: KVCache, generator: torch.Generator
    ) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """The next token and its log-probability."""
        logits = model.code_logits(ids, cache)
        logits = drawable(logits.float(), logits.dtype)
        noise = gumbel(tuple(logits.shape), generator, model.device)
        token = sample_categorical(logits, noise, self.config.temperature, self.config.top_k, self.config.top_p)
        return token, log_probability(logits, token)
