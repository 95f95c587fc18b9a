"""Shared by the PAR parity tests: configurations, weights by formula, recorded draws."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mutoscope.interop.llamagen_par import Checkpoint, load_transformer, our_name
from mutoscope.models.par import PAR, PARConfig, swiglu_size
from mutoscope.sampling.categorical import keep_top_k, nucleus
from mutoscope.sampling.parallel_ar import ParallelARSampler, ParallelARSamplerConfig, PrefixCondition
from parity.cases import Case, renamed

KEYS = {
    "token_dropout_p": "token_dropout",
    "attn_dropout_p": "attention_dropout",
    "resid_dropout_p": "residual_dropout",
    "ffn_dropout_p": "mlp_dropout",
    "drop_path_rate": "drop_path",
    "dim": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_kv_head": "num_kv_heads",
    "vocab_size": "codebook_size",
    "class_dropout_prob": "condition_dropout",
    "num_classes": "num_classes",
    "rope_base": "rope_base",
    "norm_eps": "norm_eps",
    "caption_dim": "caption_size",
    "cls_token_num": "caption_length",
    "ar_token_num": "num_parallel",
    "spe_token_num": None,
    "block_size": None,
    "multiple_of": None,
    "ffn_dim_multiplier": None,
    "model_type": None,
}


def config_of(values: Mapping[str, Any], grid: int) -> PARConfig:
    """The configuration an official one describes."""
    fields = renamed(dict(values), KEYS)
    if values.get("model_type") == "t2i":
        fields["num_classes"] = None
    else:
        fields.pop("caption_size", None)
        fields.pop("caption_length", None)
    multiple, multiplier = values.get("multiple_of", 256), values.get("ffn_dim_multiplier")
    fields["mlp_size"] = swiglu_size(fields["hidden_size"], multiple, multiplier)
    return PARConfig(latent_shape=(1, grid, grid), **fields)


def model_of(case: Case, weights: dict[str, Tensor] | None = None) -> PAR:
    """The model of a transformer case, with the weights stored beside it, or with `weights`."""
    grid = case.info.get("grid") or math.isqrt(case.info["config"]["block_size"])
    stored = weights or case.sibling(f"{case.name}_weights").tensors
    return load_transformer(Checkpoint(Path(case.name), stored, {}), config_of(case.info["config"], grid))


def official_name(model: PAR, ours: str, theirs: Mapping[str, Any]) -> str:
    """Official name of one of our parameters, found among `theirs`."""
    return next(name for name in theirs if our_name(name) == ours)


def inverse_cdf(uniforms: Tensor, config: ParallelARSamplerConfig) -> Any:
    """A draw by the cumulative distribution and recorded uniforms (b, n)."""

    def draw(logits: Tensor, places: slice) -> Tensor:
        logits = logits / config.temperature
        if config.top_k is not None:
            logits = keep_top_k(logits, config.top_k)
        if config.top_p is not None:
            logits = logits.masked_fill(~nucleus(logits, config.top_p), -math.inf)
        cumulative = logits.softmax(-1).double().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        return (cumulative <= uniforms[:, places, None]).sum(-1)

    return draw


def exponential_race(variates: Tensor) -> Any:
    """argmax of probability over recorded exponential variates (b, n, k): how torch.multinomial draws one sample."""
    return lambda logits, places: (logits.softmax(-1) / variates[:, places]).argmax(-1)


def generate(
    model: PAR, condition: PrefixCondition, config: ParallelARSamplerConfig, draw: Any = None
) -> tuple[Tensor, Tensor]:
    """Raster ids (b, n) and the guided logits (b, n, k) in decoding order; greedy without `draw`."""
    seen: list[Tensor] = []
    choose = draw or (lambda logits, places: logits.argmax(-1))

    def recorded(logits: Tensor, positions: slice) -> Tensor:
        seen.append(logits)
        return choose(logits, positions)

    *_, last = ParallelARSampler(config).sample(model, condition, torch.Generator(), draw=recorded)
    return last.tokens.flatten(1), torch.cat(seen, dim=1)


def formula(tag: int, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1), float64, from integer arithmetic modulo 2^64 alone."""
    with np.errstate(over="ignore"):
        i = np.arange(1, count + 1, dtype=np.uint64)
        x = i * np.uint64(6364136223846793005) + np.uint64(tag) * np.uint64(1442695040888963407)
        x ^= x >> np.uint64(33)
        x *= np.uint64(0xFF51AFD7ED558CCD)
        x ^= x >> np.uint64(33)
        x *= np.uint64(0xC4CEB9FE1A85EC53)
        x ^= x >> np.uint64(33)
    return 2 * (x >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 1


def formula_ids(tag: int, count: int, size: int) -> Tensor:
    return torch.from_numpy(np.floor((formula(tag, count) + 1) / 2 * size)).long()


def formula_transformer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of a transformer under official names, by rank of the name."""

    def value(tag: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        w = formula(tag, math.prod(shape)).reshape(shape)
        if len(shape) == 1:
            return 1 + 0.1 * w
        if "embed" in name:
            return math.sqrt(3) * w
        return w * math.sqrt(3 / shape[1]) * (4 if name == "output.weight" else 1)

    return _by_rank(shapes, value)


def formula_tokenizer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of a VQ-16 under official names, by rank of the name."""

    def value(tag: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        w = formula(tag, math.prod(shape)).reshape(shape)
        if name == "quantize.codebook_used":
            return 0 * w
        if "embedding" in name:
            return w
        if len(shape) == 4:
            return w * math.sqrt(3 / math.prod(shape[1:]))
        return 1 + 0.1 * w if "norm" in name and name.endswith("weight") else 0.1 * w

    return _by_rank(shapes, value)


def _by_rank(shapes: Mapping[str, tuple[int, ...]], value: Any) -> dict[str, Tensor]:
    ranked = enumerate(sorted(shapes), start=1)
    return {name: torch.from_numpy(value(rank, name, tuple(shapes[name]))).float() for rank, name in ranked}
