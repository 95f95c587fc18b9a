"""What decoding frame after frame needs of a network that remembers finished frames, and the conditions of a frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from mutoscope.layers.diffusion import Plan
from mutoscope.layers.kv_cache import KVCache, RollingKVCache
from mutoscope.sampling.frame_ar import DiffusionHead


class TokenDiffusion(Protocol):
    """How continuous tokens are drawn from noise."""

    def plan(self, num_steps: int, sample_range: float | None = None, eta: float | None = None, /) -> Plan: ...


class HistorySizes(Protocol):
    """Sizes of a frame, and how its tokens are drawn."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...  # rows and columns of tokens
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def token_size(self) -> int: ...  # numbers in a continuous token
    @property
    def codebook_parts(self) -> tuple[int, ...] | None: ...  # sizes of the digits of discrete tokens; None: continuous
    @property
    def diffusion(self) -> TokenDiffusion: ...
    @property
    def predicts_change(self) -> bool: ...  # the head predicts the difference to the frame before
    @property
    def is_relative(self) -> bool: ...  # positions in time are relative, so that a cache can roll


class ConditionRows(Protocol):
    """What one frame is conditioned on, for the rows of all guidance passes, conditional ones first.

    The sampler passes it on to the network and never looks inside.
    """

    @classmethod
    def grouped(cls, frames: Sequence[Self]) -> list[tuple[int, Self]]:
        """Runs of frames with equal conditions, actions aside, joined into one value each: (count, conditions)."""
        ...

    def first(self, count: int) -> Self:
        """The conditions of the first rows."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...


Conditions = TypeVar("Conditions", bound=ConditionRows)
ReadConditions = TypeVar("ReadConditions", bound=ConditionRows, contravariant=True)


class HistoryModel(Protocol[ReadConditions]):
    """Methods that the sampler needs of a network."""

    @property
    def config(self) -> HistorySizes: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def denoiser(self) -> DiffusionHead:
        """The diffusion head of continuous tokens."""
        ...

    def code_logits(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k"]:
        """Logits over the digits of discrete tokens."""
        ...

    def to_tokens(self, frames: Num[Tensor, "b *c f h w"]) -> Num[Tensor, "b f n k"]: ...

    def to_frames(self, tokens: Num[Tensor, "b f n k"]) -> Num[Tensor, "b *c f h w"]: ...

    def reserve(self, batch_size: int, num_frames: int) -> KVCache:
        """Memory for complete frames and the one in progress."""
        ...

    def reserve_rolling(self, batch_size: int) -> RollingKVCache:
        """Memory for the latest frames of a stream, where the configuration says `is_relative`."""
        ...

    def observe(
        self, cache: KVCache, tokens: Num[Tensor, "b f n k"], conditions: ReadConditions, first: int, level: int = 0
    ) -> None:
        """Read complete frames into the cache; `first` is the time of the first, `level` the noise level stated."""
        ...

    def restore(
        self,
        cache: KVCache,
        tokens: Num[Tensor, "b n k"],
        hidden: Bool[Tensor, "b n"],
        conditions: ReadConditions,
        time: int,
        blind: Bool[Tensor, " b"] | None = None,
        previous: Float[Tensor, "b n k"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Outputs for the frame in progress; rows in `blind` see no history. The cache is left as it was.

        `previous`: tokens of the frame before, where the configuration says `predicts_change`.
        """
        ...


@dataclass(frozen=True)
class StreamCondition(Generic[Conditions]):
    """What the samples of one batch are conditioned on, frame by frame."""

    at: Callable[[int], Conditions]
    """Conditions of a 0-based latent frame; called once for every frame, just before it is needed."""
    num_samples: int
    num_frames: int | None = None
    """Latent frames of the clip, those of the context among them; None: until the caller stops."""
    context: Num[Tensor, "b *c k h w"] | None = None
    """Latents or codes of the frames that the clip starts with."""

    @property
    def num_context(self) -> int:
        """Latent frames of the context."""
        return 0 if self.context is None else self.context.shape[-3]
