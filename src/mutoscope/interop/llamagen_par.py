"""Published LlamaGen and PAR checkpoints (transformers and the VQ-16 tokenizer) to our networks.

A checkpoint is a `.pt` or `.pth` file in one of several wrappers, read without executing anything in it. A file lacks
its grid and its number of heads: these are inferred from published sizes, or arguments of the caller.
"""

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.meta_device import on_meta_device
from mutoscope.models.par import PAPER_SIZES, PAR, PARConfig
from mutoscope.state_dicts import has_averaged, open_containers, read_stored, without_wrappers
from mutoscope.tokenizers.vq2d import VQ2D, Attention, Down, Norm, ResBlock, Up, VQ2DConfig

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file, and the training script's arguments, if the file has them."""

    path: Path
    weights: dict[str, Tensor]
    arguments: dict[str, object]


def read_checkpoint(path: str | Path, ema: bool = False) -> Checkpoint:
    """Opens a published file; `ema` selects the averaged weights of a training checkpoint.

    Only tensors, plain containers and `argparse.Namespace` are accepted. Raises UserError for anything else, for a
    damaged file, and for an unknown wrapper.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.")
    stored = read_stored(path, allowed=[argparse.Namespace])
    if not isinstance(stored, Mapping):
        raise UserError(f"{path} holds a {type(stored).__name__}, not the weights of a network.")
    arguments = vars(stored["args"]) if isinstance(stored.get("args"), argparse.Namespace) else {}
    return Checkpoint(path, _unwrap(stored, path, ema), arguments)


def _unwrap(stored: Mapping[str, object], path: Path, ema: bool) -> dict[str, Tensor]:
    if ema and not has_averaged(stored):
        raise UserError(f"{path} has no averaged weights. Convert it without --ema.")
    inner = open_containers(stored, averaged=ema)
    weights = without_wrappers({name: value for name, value in inner.items() if isinstance(value, Tensor)})
    if not weights:
        raise UserError(f"{path} holds no weights: found {', '.join(map(str, list(stored)[:5])) or 'nothing'}.")
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Transformers

LAYER = {
    "attention.wqkv": "attention.qkv",
    "attention.wo": "attention.output",
    "feed_forward.w1": "mlp_gate",
    "feed_forward.w3": "mlp_in",
    "feed_forward.w2": "mlp_out",
    "attention_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
}
OUTSIDE = {
    "tok_embeddings.weight": "token_embedding.weight",
    "spe_tok_embeddings.special_embeddings.weight": "query_embedding.weight",
    "cls_embedding.embedding_table.weight": "condition.weight",
    "cls_embedding.cap_proj.fc1.weight": "condition.fc1.weight",
    "cls_embedding.cap_proj.fc2.weight": "condition.fc2.weight",
    "cls_embedding.uncond_embedding": "condition.unconditional",
    "norm.weight": "norm.weight",
    "output.weight": "output.weight",
}
# A computed table, and caches that generation leaves in the official model.
IGNORED = re.compile(r"^freqs_cis$|\.kv_cache\.|^causal_mask$|^mask$")


def our_name(name: str) -> str | None:
    """Name of an official transformer tensor in `PAR`; None if there is none."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    return f"blocks.{match[1]}.{LAYER[match[2]]}.weight" if match and match[2] in LAYER else None


def transformer_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors under our names. Raises UserError with the name of the first unknown one."""
    weights: dict[str, Tensor] = {}
    for name, value in checkpoint.weights.items():
        if IGNORED.search(name):
            continue
        if (ours := our_name(name)) is None:
            raise UserError(f"{checkpoint.path}: tensor {name!r} is not part of LlamaGen or PAR.")
        weights[ours] = value
    for needed in ("token_embedding.weight", "output.weight", "blocks.0.attention.qkv.weight"):
        if needed not in weights:
            raise UserError(f"{checkpoint.path} is no LlamaGen or PAR transformer: {needed} is missing.")
    return weights


def infer_transformer_config(
    checkpoint: Checkpoint,
    grid: tuple[int, int] | None = None,
    num_heads: int | None = None,
    rope_base: float = 10_000.0,
    norm_eps: float = 1e-5,
) -> PARConfig:
    """Sizes from the tensors' shapes; heads from published widths and the grid from the script's arguments.

    `grid`: rows and columns of tokens. Raises UserError if the grid or the number of heads is unknown and not an
    argument.
    """
    weights = transformer_weights(checkpoint)
    codebook_size, hidden = weights["token_embedding.weight"].shape
    num_layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    known = {(layers, width): heads for layers, width, heads in PAPER_SIZES.values()}
    heads = num_heads or known.get((num_layers, hidden))
    if heads is None:
        raise UserError(
            f"{checkpoint.path} has {num_layers} layers of width {hidden}, which is no published size, and the file "
            "lacks the number of heads: set --num-heads."
        )
    if hidden % heads:
        raise UserError(f"{checkpoint.path} has width {hidden}, which is no multiple of {heads} heads.")
    rows = weights["blocks.0.attention.qkv.weight"].shape[0] // (hidden // heads)
    queries = weights.get("query_embedding.weight")
    shape = _grid(checkpoint, grid)
    return PARConfig(
        num_layers=num_layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=(rows - heads) // 2,
        codebook_size=codebook_size,
        latent_shape=(1, *shape),
        num_parallel=1 if queries is None else len(queries) + 1,
        mlp_size=weights["blocks.0.mlp_in.weight"].shape[0],
        rope_base=rope_base,
        norm_eps=norm_eps,
        **_condition_sizes(checkpoint.path, weights),
    )


class ConditionSizes(TypedDict, total=False):
    """Fields of `PARConfig` that describe the condition."""

    num_classes: int | None
    caption_size: int
    caption_length: int


def _condition_sizes(path: Path, weights: Mapping[str, Tensor]) -> ConditionSizes:
    if "condition.weight" in weights:
        return {"num_classes": len(weights["condition.weight"]) - 1}
    if "condition.unconditional" not in weights:
        raise UserError(f"{path} has neither class labels nor captions.")
    length, size = weights["condition.unconditional"].shape
    return {"num_classes": None, "caption_size": size, "caption_length": length}


def _grid(checkpoint: Checkpoint, grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is not None:
        return grid
    size, stride = (checkpoint.arguments.get(name) for name in ("image_size", "downsample_size"))
    if isinstance(size, int) and isinstance(stride, int) and stride > 0 and size % stride == 0:
        return size // stride, size // stride
    raise UserError(
        f"{checkpoint.path} lacks its grid of tokens: set --grid ROWS COLUMNS (24 24 for images of 384 pixels at "
        "stride 16, 16 16 for 256)."
    )


def load_transformer(checkpoint: Checkpoint, config: PARConfig) -> PAR:
    """The network in evaluation mode. Raises UserError with the name of the first tensor that does not fit."""
    with on_meta_device():
        model = PAR(config)
    return _load(model, transformer_weights(checkpoint), checkpoint.path)


def _load(network: Network, weights: Mapping[str, Tensor], path: Path) -> Network:
    expected = network.state_dict()
    for name in sorted(set(expected) | set(weights)):
        if name not in weights:
            raise UserError(f"{path}: {name} is missing; the file is incomplete or belongs to another network.")
        if name not in expected:
            raise UserError(f"{path}: {name} does not belong to a network of these sizes.")
        found, wanted = tuple(weights[name].shape), tuple(expected[name].shape)
        if found != wanted:
            raise UserError(f"{path}: {name} is {found}, a network of these sizes has {wanted}.")
    network.load_state_dict(weights, assign=True)
    return network.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer


def infer_tokenizer_config(checkpoint: Checkpoint) -> VQ2DConfig:
    """Sizes from the tensors' shapes. Raises UserError for a file that is no LlamaGen tokenizer."""
    weights, path = checkpoint.weights, checkpoint.path
    try:
        filters = weights["encoder.conv_in.weight"].shape[0]
        codebook_size, embedding_dim = weights["quantize.embedding.weight"].shape
        latent_channels = weights["encoder.conv_out.weight"].shape[0]
        blocks = [re.match(r"encoder\.conv_blocks\.(\d+)\.res\.(\d+)\.conv2\.weight", name) for name in weights]
        positions = [(int(found[1]), int(found[2])) for found in blocks if found]  # (stage, block)
        last = max(block for _, block in positions)
        stages = [
            weights[f"encoder.conv_blocks.{stage}.res.{last}.conv2.weight"].shape[0]
            for stage in range(1 + max(stage for stage, _ in positions))
        ]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is no LlamaGen tokenizer: {error} is missing.") from None
    return VQ2DConfig(
        filters=filters,
        channel_multipliers=tuple(width // filters for width in stages),
        num_res_blocks=last + 1,
        latent_channels=latent_channels,
        embedding_dim=embedding_dim,
        codebook_size=codebook_size,
        num_groups=math.gcd(32, filters),
    )


def tokenizer_names(tokenizer: VQ2D) -> dict[str, str]:
    """Official name of each of our tensors."""
    names = {"quantizer.codebook": "quantize.embedding.weight"}
    names |= _half_names(tokenizer.encoder, "encoder", list(range(len(tokenizer.config.widths))))
    names |= _half_names(tokenizer.decoder, "decoder", list(range(len(tokenizer.config.widths))))
    return names


def _half_names(half: nn.Sequential, side: str, stages: list[int]) -> dict[str, str]:
    """Official names of one half. Both networks create their layers in the same order, so the order suffices."""
    layers = dict(half.named_children())
    plain = [key for key, layer in layers.items() if isinstance(layer, nn.Conv2d)]  # 3 of them, in order
    first, last = (plain[:1], plain[1:]) if side == "encoder" else (plain[:2], plain[2:])
    outer = ["conv_in", "conv_out", "quant_conv"] if side == "encoder" else ["post_quant_conv", "conv_in", "conv_out"]
    theirs = {key: name if "quant" in name else f"{side}.{name}" for key, name in zip(plain, outer, strict=True)}
    body = [key for key in layers if int(first[-1]) < int(key) < int(last[0])]
    norm_out = next(key for key in body if isinstance(layers[key], Norm))
    theirs[norm_out] = f"{side}.norm_out"
    body = [key for key in body if int(key) < int(norm_out)]
    middle, rest = (body[-3:], body[:-3]) if side == "encoder" else (body[:3], body[3:])
    theirs |= {key: f"{side}.mid.{i}" for i, key in enumerate(middle)}
    stage, counts = stages[0], {"res": 0, "attn": 0}
    for key in rest:
        if isinstance(layers[key], Down | Up):
            sampler = "downsample" if side == "encoder" else "upsample"
            theirs[key], stage, counts = f"{side}.conv_blocks.{stage}.{sampler}", stage + 1, {"res": 0, "attn": 0}
        elif isinstance(layers[key], ResBlock | Attention):
            kind = "res" if isinstance(layers[key], ResBlock) else "attn"
            theirs[key] = f"{side}.conv_blocks.{stage}.{kind}.{counts[kind]}"
            counts[kind] += 1
    renamed = {"shortcut": "nin_shortcut", "output": "proj_out"}
    names = {}
    for name in half.state_dict():
        key, _, inner = name.partition(".")
        inner = ".".join(renamed.get(part, part) for part in inner.split("."))
        names[f"{side}.{name}"] = f"{theirs[key]}.{inner}"
    return names


def load_tokenizer(checkpoint: Checkpoint, config: VQ2DConfig) -> VQ2D:
    """The tokenizer in evaluation mode. Raises UserError with the name of the first tensor that does not fit."""
    with on_meta_device():
        tokenizer = VQ2D(config)
    ours = {theirs: name for name, theirs in tokenizer_names(tokenizer).items()}
    weights: dict[str, Tensor] = {}
    for name, value in checkpoint.weights.items():
        if name == "quantize.codebook_used":  # usage statistics
            continue
        if name not in ours:
            raise UserError(f"{checkpoint.path}: tensor {name!r} is not part of LlamaGen's tokenizer.")
        weights[ours[name]] = value
    return _load(tokenizer, weights, checkpoint.path)
