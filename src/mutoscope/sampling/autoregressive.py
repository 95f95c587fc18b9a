"""One token after the other, in (time, row, column) order: what parallel decoding is compared with."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.kv_cache import KVCache
from mutoscope.sampling.base import TokenEvent
from mutoscope.sampling.categorical import gumbel, log_probability, sample_categorical


class NextTokenModel(Protocol):
    """All the sampler asks of a network."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch_size: int) -> KVCache: ...

    def prefix(self, label: Tensor | None, condition_tokens: Tensor | None, batch_size: int) -> Int[Tensor, "b p"]: ...

    def code_logits(self, ids: Int[Tensor, "b n"], cache: KVCache | None = None) -> Float[Tensor, "b k"]: ...


@dataclass(frozen=True)
class AutoregressiveSamplerConfig:
    """How tokens are drawn: see `sample_categorical`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not math.isfinite(self.temperature):
            raise UserError(f"temperature must be a number of at least 0, found {self.temperature}.")


class AutoregressiveSampler:
    """Draws a clip in as many steps as it has tokens; keys and values of earlier tokens are kept in a cache."""

    def __init__(self, config: AutoregressiveSamplerConfig | None = None) -> None:
        self.config = config or AutoregressiveSamplerConfig()

    def sample(
        self,
        model: NextTokenModel,
        label: Int[Tensor, " b"] | None,
        condition_tokens: Int[Tensor, "b t h w"] | None,
        generator: torch.Generator,
        batch_size: int = 1,
    ) -> Iterator[TokenEvent]:
        """One event per latent frame, when its last token is drawn. Put the model in eval mode first."""
        begin = time.perf_counter()
        known = next((len(x) for x in (condition_tokens, label) if x is not None), batch_size)
        shape = (known, *model.latent_shape)
        frames, per_frame = shape[1], shape[2] * shape[3]
        tokens = torch.zeros(shape, dtype=torch.int64, device=model.device)
        confidence = torch.full(shape, -math.inf, device=model.device)
        flat, flat_confidence = tokens.view(known, -1), confidence.view(known, -1)
        cache = model.new_cache(known)
        ids = model.prefix(label, condition_tokens, known)
        for position in range(frames * per_frame):
            flat[:, position], flat_confidence[:, position] = self._draw(model, ids, cache, generator)
            ids = flat[:, position : position + 1]
            if (position + 1) % per_frame == 0:
                frame = position // per_frame
                decided = torch.zeros(shape, dtype=torch.bool, device=model.device)
                decided[:, frame] = True
                yield TokenEvent(
                    step=frame,
                    num_steps=frames,
                    decided=decided,
                    proposal=tokens.clone(),
                    frames=slice(frame, frame + 1),
                    seconds=time.perf_counter() - begin,
                    tokens=tokens.clone(),
                    confidence=confidence.clone(),
                )

    @torch.no_grad()  # on the only call of the network, because a generator must not change the caller's grad mode
    def _draw(
        self, model: NextTokenModel, ids: Tensor, cache: KVCache, generator: torch.Generator
    ) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """The next token and its log-probability."""
        logits = model.code_logits(ids, cache).float()
        noise = gumbel(tuple(logits.shape), generator, model.device)
        token = sample_categorical(logits, noise, self.config.temperature, self.config.top_k, self.config.top_p)
        return token, log_probability(logits, token)
