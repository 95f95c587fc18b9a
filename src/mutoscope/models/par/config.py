"""Configuration of PAR (arXiv 2412.15119) and LlamaGen (arXiv 2406.06525): sizes, vocabulary, tokens per step."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from mutoscope.errors import UserError
from mutoscope.layers.token_order import regions_per_side
from mutoscope.models.base import ClipFacts, ModelConfig, TextShape

# Layers, hidden size, heads: LlamaGen's B to XXXL and 1B to 7B (arXiv 2406.06525, Table 1; released code).
PAPER_SIZES = {
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (36, 1280, 20),
    "XXL": (48, 1536, 24),
    "XXXL": (48, 2560, 40),
    "1B": (22, 2048, 32),
    "3B": (24, 3200, 32),
    "7B": (32, 4096, 32),
}
CAPTION_LENGTH = 120  # rows of T5 features that the released text-to-image models read
SWIGLU_MULTIPLE = 256  # LlamaGen rounds feed-forward sizes up to a multiple of this


def swiglu_size(hidden_size: int, multiple: int = SWIGLU_MULTIPLE, multiplier: float | None = None) -> int:
    """Hidden size of the feed-forward layers: two thirds of four times the width, scaled, then rounded up."""
    size = int(2 * (4 * hidden_size) / 3)
    size = size if multiplier is None else int(multiplier * size)
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class PARConfig(ModelConfig):
    """Size, vocabulary and the number of tokens per step.

    Exactly one of `num_classes` and `caption_size` is set: class labels (prefix of one position), or text features of
    `caption_size` channels (prefix of `caption_length` positions). `num_parallel`: n of the paper, a square; 1 is
    LlamaGen. `latent_shape`: the grid of training; sampling may use others, since positions are rotations. `mlp_size`:
    0 selects the published rule, `swiglu_size`. `num_regions`: number of regions of the decoding order, None for
    `num_parallel`.
    `order`, `group_attention` and `sequential_start` are the paper's ablations: raster order, causal attention inside
    a group, and no sequential start (the first group is predicted from the condition alone).
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None
    codebook_size: int = 16_384
    latent_shape: tuple[int, int, int] = (1, 24, 24)  # frames, rows, columns
    num_parallel: int = 1
    num_classes: int | None = 1000
    caption_size: int | None = None
    caption_length: int = CAPTION_LENGTH
    mlp_size: int = 0
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    condition_dropout: float = 0.1
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    mlp_dropout: float = 0.1
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    order: Literal["regions", "raster"] = "regions"
    num_regions: int | None = None
    group_attention: Literal["full", "causal"] = "full"
    sequential_start: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # JSON has no tuples
        if self.mlp_size == 0:
            object.__setattr__(self, "mlp_size", swiglu_size(self.hidden_size))
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise UserError(
                f"hidden_size must give every head a multiple of 4 channels, found {self.hidden_size} for "
                f"{self.num_heads} heads."
            )
        if self.num_heads % self.kv_heads:
            raise UserError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.kv_heads}.")
        if (self.num_classes is None) == (self.caption_size is None):
            raise UserError("Set one of num_classes and caption_size: the model reads class labels or captions.")
        for count in (self.num_parallel, self.num_regions or self.num_parallel):
            regions_per_side(self.latent_shape, count)

    @classmethod
    def paper(cls, size: str, **overrides: object) -> "PARConfig":
        """A published size on the 24×24 grid of 384-pixel images."""
        if size not in PAPER_SIZES:
            raise UserError(f"There is no LlamaGen size {size!r}; sizes: {', '.join(PAPER_SIZES)}.")
        layers, hidden, heads = PAPER_SIZES[size]
        published = cls(num_layers=layers, hidden_size=hidden, num_heads=heads)
        return replace(published, **{"mlp_size": 0, **overrides})  # 0: the published rule for the final hidden size

    def fitted(self, clips: ClipFacts) -> Self:
        """Clips with classes are conditioned on these; others on their captions, or on one class for all."""
        text = clips.text if self.caption_size is not None or not clips.num_classes else None
        return replace(
            self,
            latent_shape=clips.latent_shape,
            codebook_size=clips.codes(),
            num_classes=None if text else max(clips.num_classes, 1),
            caption_size=text and text.size,
            caption_length=text.length if text else self.caption_length,
        )

    @property
    def grid_multiple(self) -> int:
        return math.isqrt(max(self.num_parallel, self.num_regions or 1))

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def prefix_length(self) -> int:
        return self.caption_length if self.caption_size else 1

    @property
    def num_start(self) -> int:
        """Tokens that are decided one by one, before the learned queries are read."""
        return self.num_parallel if self.sequential_start else 0

    @property
    def text(self) -> TextShape | None:
        return None if self.caption_size is None else TextShape(self.caption_length, self.caption_size)

    @property
    def rope_pairs(self) -> tuple[int, int, int]:
        """Channel pairs of a head rotated by time, row and column.

        Images: half by row, half by column (LlamaGen). Clips: a quarter by time (our choice; the paper is silent).
        """
        pairs = self.head_size // 2
        time = 0 if self.latent_shape[0] == 1 else pairs // 4 // 2 * 2  # even, so that the rest splits in two
        return time, (pairs - time) // 2, (pairs - time) // 2
