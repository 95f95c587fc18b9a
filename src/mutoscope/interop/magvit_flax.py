"""Converts parameters of the official MAGVIT code (JAX/Flax names and layouts) to our modules, and back.

No official weights were published. The conversion serves weights trained with that code, and tests of our networks
against it. A checkpoint is a flat table of arrays whose names are joined by "/" (`read_flat`). Flax numbers the modules
of one kind in the order of their creation inside their parent.

A layout is a list of `Entry`: one of our parameters, its Flax parameters, and the conversion. Shapes in Flax: dense
kernels (in, out), convolutions (kt, kh, kw, in, out), query, key and value (hidden, heads, head_dim), attention output
(heads, head_dim, hidden).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import TASKS
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.magvit.baselines import MagvitARConfig
from mutoscope.state_dicts import open_containers, read_stored, without_wrappers
from mutoscope.tokenizers.discriminator import Discriminator, DiscriminatorConfig
from mutoscope.tokenizers.vq3d import VQ3D, Conv3d, Padding, ResBlock, Up, VQ3DConfig

Kind = Literal["copy", "first", "dense", "conv", "qkv", "qkv_bias", "attention_output"]


@dataclass(frozen=True)
class Entry:
    """One of our parameters, the names of its Flax parameters, and the conversion between them."""

    ours: str
    theirs: tuple[str, ...]
    kind: Kind = "copy"


def read_flat(path: str | Path) -> dict[str, Tensor]:
    """Reads a `.safetensors` or `.npz` file of named arrays as float32; a leading "params/" is dropped from names.

    Raises UserError for other files and for damaged ones.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.")
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path.name} is neither .safetensors nor .npz; flatten the Flax parameters into one of them.")
    arrays = {name: value for name, value in open_containers(read_stored(path)).items() if isinstance(value, Tensor)}
    return {name.removeprefix("params/"): array.float() for name, array in without_wrappers(arrays).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def norm_entries(ours: str, theirs: str) -> list[Entry]:
    """Scale and bias of a norm."""
    return [Entry(f"{ours}.weight", (f"{theirs}/scale",)), Entry(f"{ours}.bias", (f"{theirs}/bias",))]


def dense_entries(ours: str, theirs: str) -> list[Entry]:
    """Kernel and bias of a dense layer."""
    return [Entry(f"{ours}.weight", (f"{theirs}/kernel",), "dense"), Entry(f"{ours}.bias", (f"{theirs}/bias",))]


def block_entries(index: int) -> list[Entry]:
    """One block of the transformer."""
    ours, theirs = f"blocks.{index}", f"BertLayer_{index}"
    attention = f"{theirs}/BertAttention_0/self_attention"
    projections = [f"{attention}/{name}" for name in ("query", "key", "value")]
    return [
        Entry(f"{ours}.attention.qkv.weight", tuple(f"{p}/kernel" for p in projections), "qkv"),
        Entry(f"{ours}.attention.qkv.bias", tuple(f"{p}/bias" for p in projections), "qkv_bias"),
        Entry(f"{ours}.attention.output.weight", (f"{attention}/out/kernel",), "attention_output"),
        Entry(f"{ours}.attention.output.bias", (f"{attention}/out/bias",)),
        *norm_entries(f"{ours}.attention_norm", f"{theirs}/BertAttention_0/attention_output_ln"),
        *dense_entries(f"{ours}.mlp_in", f"{theirs}/BertMlp_0/intermediate_output"),
        *dense_entries(f"{ours}.mlp_out", f"{theirs}/BertMlp_0/layer_output"),
        *norm_entries(f"{ours}.mlp_norm", f"{theirs}/BertMlp_0/layer_output_ln"),
    ]


def transformer_layout(config: MagvitConfig) -> list[Entry]:
    """All parameters of `Magvit`."""
    return [
        Entry("token_embedding.weight", ("BertEmbed_0/word_embeddings/embedding",)),
        Entry("position_embedding.weight", ("BertEmbed_0/position_embeddings/embedding",)),
        *norm_entries("embedding_norm", "BertEmbed_0/embeddings_ln"),
        *(entry for index in range(config.num_layers) for entry in block_entries(index)),
        *dense_entries("head.dense", "BertMlmLayer_0/mlm_dense"),
        *norm_entries("head.norm", "BertMlmLayer_0/mlm_ln"),
        Entry("head.bias", ("BertMlmLayer_0/mlm_bias/bias",)),
    ]


def causal_block_entries(index: int) -> list[Entry]:
    """One block of the autoregressive baseline."""
    ours, theirs = f"blocks.{index}", f"VTNLayer_{index}"
    projections = tuple(f"{theirs}/SelfAttention_0/{name}/kernel" for name in ("query", "key", "value"))
    return [
        *norm_entries(f"{ours}.attention_norm", f"{theirs}/LayerNorm_0"),
        Entry(f"{ours}.qkv.weight", projections, "qkv"),
        Entry(f"{ours}.output.weight", (f"{theirs}/SelfAttention_0/out/kernel",), "attention_output"),
        *norm_entries(f"{ours}.mlp_norm", f"{theirs}/LayerNorm_1"),
        *dense_entries(f"{ours}.mlp_in", f"{theirs}/MlpBlock_0/Dense_0"),
        *dense_entries(f"{ours}.mlp_out", f"{theirs}/MlpBlock_0/Dense_1"),
    ]


def autoregressive_layout(config: MagvitARConfig) -> list[Entry]:
    """All parameters of `MagvitAR`."""
    return [
        Entry("token_embedding.weight", ("Embed_0/embedding",)),
        Entry("position_embedding.weight", ("PositionEmbeddings_0/embed_pos",), "first"),
        *(entry for index in range(config.num_layers) for entry in causal_block_entries(index)),
        *norm_entries("norm", "decoder_out_ln"),
        *dense_entries("output", "logits_dense"),
    ]


def conv_entries(ours: str, theirs: str, conv: nn.Conv3d) -> list[Entry]:
    """Kernel of a convolution, and its bias if it has one."""
    entries = [Entry(f"{ours}.weight", (f"{theirs}/kernel",), "conv")]
    return entries if conv.bias is None else [*entries, Entry(f"{ours}.bias", (f"{theirs}/bias",))]


def res_block_entries(ours: str, theirs: str, block: ResBlock) -> list[Entry]:
    """One residual block of the tokenizer."""
    entries = [
        *norm_entries(f"{ours}.norm1", f"{theirs}/GroupNorm_0"),
        *conv_entries(f"{ours}.conv1", f"{theirs}/Conv_0", block.conv1),
        *norm_entries(f"{ours}.norm2", f"{theirs}/GroupNorm_1"),
        *conv_entries(f"{ours}.conv2", f"{theirs}/Conv_1", block.conv2),
    ]
    if isinstance(block.shortcut, Conv3d):
        entries += conv_entries(f"{ours}.shortcut", f"{theirs}/Conv_2", block.shortcut)
    return entries


def autoencoder_half_entries(name: Literal["encoder", "decoder"], layers: nn.Sequential) -> list[Entry]:
    """Encoder or decoder: a flat sequence in creation order, so that counting modules per kind gives Flax's numbers."""
    entries: list[Entry] = []
    counts = {"Conv": 0, "ResBlock": 0, "GroupNorm": 0}

    def theirs(kind: str) -> str:
        counts[kind] += 1
        return f"{name}/{kind}_{counts[kind] - 1}"

    for index, layer in enumerate(layers):
        ours = f"{name}.{index}"
        if isinstance(layer, Conv3d):
            entries += conv_entries(ours, theirs("Conv"), layer)
        elif isinstance(layer, Up):
            entries += conv_entries(f"{ours}.conv", theirs("Conv"), layer.conv)
        elif isinstance(layer, ResBlock):
            entries += res_block_entries(ours, theirs("ResBlock"), layer)
        elif isinstance(layer, nn.GroupNorm):
            entries += norm_entries(ours, theirs("GroupNorm"))
    return entries


def tokenizer_layout(config: VQ3DConfig) -> list[Entry]:
    """All parameters of `VQ3D`."""
    with torch.device("meta"):  # only the structure is needed
        tokenizer = VQ3D(config)
    return [
        *autoencoder_half_entries("encoder", tokenizer.encoder),
        *autoencoder_half_entries("decoder", tokenizer.decoder),
        Entry("quantizer.codebook", ("quantizer/codebook",)),
    ]


def discriminator_layout(config: DiscriminatorConfig) -> list[Entry]:
    """All parameters of `Discriminator`."""
    with torch.device("meta"):  # only the structure is needed
        network = Discriminator(config)
    entries = conv_entries("conv_in", "Conv_0", network.conv_in)
    for index, block in enumerate(network.blocks):
        for ours, theirs in (("conv1", "Conv_0"), ("skip", "Conv_1"), ("conv2", "Conv_2")):
            entries += conv_entries(f"blocks.{index}.{ours}", f"ResBlock_{index}/{theirs}", getattr(block, ours))
    entries += conv_entries("conv_out", "Conv_1", network.conv_out)
    return [*entries, *dense_entries("dense", "Dense_0"), *dense_entries("logit", "Dense_1")]


# ---------------------------------------------------------------------------------------------------------------------
# Applying a layout


def _to_ours(kind: Kind, arrays: list[Tensor]) -> Tensor:
    if kind == "first":
        return arrays[0][0]
    if kind == "dense":
        return arrays[0].T
    if kind == "conv":
        return rearrange(arrays[0], "kt kh kw c_in c_out -> c_out c_in kt kh kw")
    if kind == "qkv":
        return torch.cat([rearrange(a, "d heads e -> (heads e) d") for a in arrays])
    if kind == "qkv_bias":
        return torch.cat([a.flatten() for a in arrays])
    if kind == "attention_output":
        return rearrange(arrays[0], "heads e d -> d (heads e)")
    return arrays[0]


def _to_theirs(kind: Kind, ours: Tensor, num_heads: int) -> list[Tensor]:
    if kind == "first":
        return [ours[None]]
    if kind == "dense":
        return [ours.T]
    if kind == "conv":
        return [rearrange(ours, "c_out c_in kt kh kw -> kt kh kw c_in c_out")]
    if kind == "qkv":
        return [rearrange(a, "(heads e) d -> d heads e", heads=num_heads) for a in ours.chunk(3)]
    if kind == "qkv_bias":
        return [rearrange(a, "(heads e) -> heads e", heads=num_heads) for a in ours.chunk(3)]
    if kind == "attention_output":
        return [rearrange(ours, "d (heads e) -> heads e d", heads=num_heads)]
    return [ours]


def from_flax(flax: dict[str, Tensor], layout: list[Entry]) -> dict[str, Tensor]:
    """State dict of our module. Raises UserError for a missing or unknown parameter."""
    names = {name for entry in layout for name in entry.theirs}
    for problem, difference in (("lacks", names - flax.keys()), ("has the unknown", flax.keys() - names)):
        if difference:
            raise UserError(f"The checkpoint {problem} parameter {min(difference)!r} ({len(difference)} in all).")
    return {e.ours: _to_ours(e.kind, [flax[name] for name in e.theirs]).contiguous() for e in layout}


def to_flax(ours: dict[str, Tensor], layout: list[Entry], num_heads: int = 1) -> dict[str, Tensor]:
    """Our parameters (or gradients) under Flax's names and in its layouts; entries missing in `ours` are omitted."""
    flax: dict[str, Tensor] = {}
    for entry in layout:
        if entry.ours in ours:
            flax.update(zip(entry.theirs, _to_theirs(entry.kind, ours[entry.ours], num_heads), strict=True))
    return flax


# ---------------------------------------------------------------------------------------------------------------------
# Whole models


def _need(flax: dict[str, Tensor], name: str) -> Tensor:
    if name not in flax:
        raise UserError(f"The checkpoint has no parameter {name!r}; is it the right kind of model?")
    return flax[name]


def _count(flax: dict[str, Tensor], prefix: str) -> int:
    return len({name.split("/")[prefix.count("/")] for name in flax if name.startswith(prefix)})


def infer_transformer_config(
    flax: dict[str, Tensor],
    latent_shape: tuple[int, int, int],
    codebook_size: int,
    num_classes: int,
    tasks: tuple[str, ...] = TASKS,
) -> MagvitConfig:
    """Sizes from array shapes; the parts of the vocabulary and of the sequence must be arguments."""
    vocab, hidden = _need(flax, "BertEmbed_0/word_embeddings/embedding").shape
    positions = _need(flax, "BertEmbed_0/position_embeddings/embedding").shape[0]
    prefix = positions - latent_shape[0] * latent_shape[1] * latent_shape[2]
    special = vocab - codebook_size - num_classes - 1
    if prefix not in (1, 2) or special < 1:
        raise UserError(
            f"{vocab} vocabulary rows and {positions} positions do not fit a codebook of {codebook_size}, "
            f"{num_classes} classes and latents {latent_shape}; check these numbers."
        )
    return MagvitConfig(
        num_layers=_count(flax, "BertLayer_"),
        hidden_size=hidden,
        num_heads=_need(flax, "BertLayer_0/BertAttention_0/self_attention/query/kernel").shape[1],
        mlp_size=_need(flax, "BertLayer_0/BertMlp_0/intermediate_output/kernel").shape[1],
        codebook_size=codebook_size,
        num_classes=num_classes,
        num_special_tokens=special,
        latent_shape=latent_shape,
        task_token=prefix == 2,
        tasks=tasks,
    )


def infer_tokenizer_config(
    flax: dict[str, Tensor],
    temporal_downsample: tuple[bool, ...] | None = None,
    padding: Padding = "zero",
    num_groups: int = 32,
) -> VQ3DConfig:
    """Sizes from array shapes. The halving of time, the padding and the groups of norms are not visible in them.

    By default, all transitions but the third halve time, as in the published sizes, and padding is zero, as in the
    released configurations.
    """
    codes, dim = _need(flax, "quantizer/codebook").shape
    filters = _need(flax, "encoder/Conv_0/kernel").shape[-1]
    stages = _count(flax, "decoder/Conv_") - 1  # one per up-sampling, plus the first and the last
    blocks = _count(flax, "encoder/ResBlock_") // (stages + 1)  # the bottleneck counts as a stage
    widths = [_need(flax, f"encoder/ResBlock_{i * blocks}/Conv_0/kernel").shape[-1] for i in range(stages)]
    return VQ3DConfig(
        filters=filters,
        channel_multipliers=tuple(width // filters for width in widths),
        num_res_blocks=blocks,
        temporal_downsample=temporal_downsample or tuple(i < 2 for i in range(stages - 1)),
        embedding_dim=dim,
        codebook_size=codes,
        num_groups=num_groups,
        padding=padding,
    )


def infer_discriminator_config(flax: dict[str, Tensor], clip_shape: tuple[int, int, int]) -> DiscriminatorConfig:
    """Sizes from array shapes; `clip_shape` is (frames, rows, columns)."""
    filters = _need(flax, "Conv_0/kernel").shape[-1]
    widths = [_need(flax, f"ResBlock_{i}/Conv_2/kernel").shape[-1] for i in range(_count(flax, "ResBlock_"))]
    return DiscriminatorConfig(filters, tuple(width // filters for width in widths), clip_shape)


def load_transformer(flax: dict[str, Tensor], config: MagvitConfig) -> Magvit:
    """Our transformer with the checkpoint's weights."""
    model = Magvit(config)
    _load(model, from_flax(flax, transformer_layout(config)))
    return model


def load_tokenizer(flax: dict[str, Tensor], config: VQ3DConfig) -> VQ3D:
    """Our tokenizer with the checkpoint's weights."""
    tokenizer = VQ3D(config)
    _load(tokenizer, from_flax(flax, tokenizer_layout(config)))
    return tokenizer


def load_discriminator(flax: dict[str, Tensor], config: DiscriminatorConfig) -> Discriminator:
    """Our discriminator with the checkpoint's weights."""
    network = Discriminator(config)
    _load(network, from_flax(flax, discriminator_layout(config)))
    return network


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    for name, parameter in module.state_dict().items():
        if state[name].shape != parameter.shape:
            raise UserError(
                f"Parameter {name!r} has shape {tuple(state[name].shape)}, the configuration requires "
                f"{tuple(parameter.shape)}."
            )
    module.load_state_dict(state)
