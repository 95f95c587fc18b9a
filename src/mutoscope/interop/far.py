"""Published FAR checkpoints (`.pth`: a bare state dict of averaged weights) and its DC-AE autoencoders to our networks.

A file holds tensors alone. Widths, layers, patch sizes and conditions follow from their shapes; the frames in fine
patches do not, and are found by the name of a published file, or given by the caller.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.meta_device import on_meta_device
from mutoscope.models.far import FAR, FARConfig
from mutoscope.state_dicts import open_containers, read_stored, without_wrappers
from mutoscope.tokenizers.dc_ae import DCAE, DCAEConfig
from mutoscope.tokenizers.pretrained import load_weights

HEAD_KEY = "transformer_blocks.0.attn.norm_q.weight"
DC_AE_SCALE = 0.2889  # of all published FAR models
DC_AE_HEAD = 32
FRAME_NAME = re.compile(r"FAR_\w+?_(?P<data>UCF101|BAIR|DMLab|Minecraft)_(?P<kind>[A-Za-z]+)(?P<size>\d+)")

OUTSIDE = {
    "x_embedder": "token_embedding",
    "context_embedder": "coarse_embedding",
    "timestep_embedder.linear_1": "time_embedding.0",
    "timestep_embedder.linear_2": "time_embedding.2",
    "label_embedder.embedding_table": "class_embedding",
    "action_embedder.embedding_table": "action_embedding",
    "norm_out.linear": "modulation",
    "proj_out": "output",
    "context_proj_out": "coarse_output",
}
# within a block; several published layers with one name of ours are its rows, one after another
INSIDE = {
    "norm1.linear": "modulation",
    "norm2.linear": "modulation",
    "attn.to_q": "heads.qkv",
    "attn.to_k": "heads.qkv",
    "attn.to_v": "heads.qkv",
    "attn.norm_q": "heads.query_norm",
    "attn.norm_k": "heads.key_norm",
    "attn.to_out.0": "heads.output",
    "attn.add_q_proj": "coarse_heads.qkv",
    "attn.add_k_proj": "coarse_heads.qkv",
    "attn.add_v_proj": "coarse_heads.qkv",
    "attn.norm_added_q": "coarse_heads.query_norm",
    "attn.norm_added_k": "coarse_heads.key_norm",
    "attn.to_add_out": "coarse_heads.output",
    "mlp.net.0.proj": "mlp_in",
    "mlp.net.2": "mlp_out",
}


@dataclass(frozen=True)
class Released:
    """Settings of a published file that its tensors do not hold."""

    num_frames: int
    """Of training clips."""
    window: int
    interval: int
    """Source frames from one frame of a clip to the next."""
    context_frames: int
    """Of its own evaluation."""
    guidance_scale: float


def released(path: Path) -> Released | None:
    """Settings of a published file by its name; None for others."""
    found = FRAME_NAME.match(path.name)
    if found is None:
        return None
    data, is_conditional = found["data"], found["kind"] == "Cond"
    if data == "BAIR":
        return Released(30, 30, 1, 2, 1.0)
    if data == "UCF101" and found["size"] == "64":
        return Released(16, 16, 1, 4, 1.0)
    if data == "UCF101":
        return Released(16, 16, 3, 0, 2.0 if is_conditional else 1.0)
    return Released(300, 16, 1, 144, 1.5)


# ------------------------------------------------------------------------------------------------------- checkpoints


def read_checkpoint(path: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors of a published file, or of a checkpoint of the official training; floating ones as float32.

    Raises UserError for a file that is damaged or holds more than tensors, and for one without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.")
    inner = open_containers(read_stored(path, what=what), averaged=True)
    weights = without_wrappers({name: value for name, value in inner.items() if isinstance(value, Tensor)})
    if not weights:
        raise UserError(f"{path} holds no weights of {what}.")
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def our_name(name: str) -> str | None:
    """Name in `FAR` of a published tensor; None if there is none."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{kind}"
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem)
    if match and match[2] in INSIDE:
        return f"blocks.{match[1]}.{INSIDE[match[2]]}.{kind}"
    return None


def our_weights(stored: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Published tensors under our names, joined where we have one layer. Raises UserError for an unknown name."""
    joined: dict[str, dict[int, Tensor]] = {}
    order = {name: i for i, name in enumerate(INSIDE)}
    for name, value in stored.items():
        if (ours := our_name(name)) is None:
            raise UserError(f"{where}: tensor {name!r} is not part of FAR.")
        layer = re.sub(r"^transformer_blocks\.\d+\.", "", name.rpartition(".")[0])
        joined.setdefault(ours, {})[order.get(layer, 0)] = value
    return {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in joined.items()}


def infer_config(
    stored: Mapping[str, Tensor],
    where: Path,
    latent_channels: int,
    latent_shape: tuple[int, int, int],
    window: int,
) -> FARConfig:
    """Configuration of a published state dict for latents of a known size.

    Raises UserError for tensors of another network, and for latents of another number of channels.
    """
    try:
        width, token_size = stored["x_embedder.weight"].shape
        head_size = len(stored[HEAD_KEY])
        layers = 1 + max(int(m[1]) for name in stored if (m := re.match(r"transformer_blocks\.(\d+)\.", name)))
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} is not a checkpoint of FAR: {error} is missing or has another shape.") from None
    coarse = stored.get("context_embedder.weight")
    actions, classes = (stored.get(f"{kind}_embedder.embedding_table.weight") for kind in ("action", "label"))
    return FARConfig(
        hidden_size=width,
        num_layers=layers,
        latent_channels=latent_channels,
        latent_shape=latent_shape,
        patch_size=_patch_size(token_size, latent_channels, where),
        coarse_patch_size=None if coarse is None else _patch_size(coarse.shape[1], latent_channels, where),
        rotary_channels=rotary_channels(head_size),
        window=window,
        num_classes=None if classes is None else len(classes) - 1,
        action_size=None if actions is None else len(actions) - 1,
        one_action=actions is not None,
        rounds_positions=coarse is not None,
    )


def _patch_size(token_size: int, channels: int, where: Path) -> int:
    side = math.isqrt(token_size // channels)
    if side < 1 or side * side * channels != token_size:
        raise UserError(
            f"{where} reads tokens of {token_size} numbers, which are no square patches of {channels} channels: name "
            "the autoencoder that it was trained with in --tokenizer."
        )
    return side


def rotary_channels(head_size: int) -> tuple[int, int, int]:
    """A quarter of a head for frames and the rest for rows and columns, as published: (16, 24, 24) of 64."""
    side = head_size // 16 * 6 or head_size // 4
    return head_size - 2 * side, side, side


def load_transformer(stored: Mapping[str, Tensor], config: FARConfig, where: Path) -> FAR:
    """The network with published weights. Raises UserError with the name of the first tensor that does not fit."""
    with on_meta_device():
        model = FAR(config)
    load_weights(model, our_weights(stored, where), where)
    return model.eval()


# ------------------------------------------------------------------------------------------------------------- DC-AE


def infer_autoencoder(stored: Mapping[str, Tensor], where: Path) -> DCAEConfig:
    """Configuration of diffusers' AutoencoderDC for a published state dict. Raises UserError for other networks."""
    try:
        latent_channels = stored["decoder.conv_in.weight"].shape[1]
        sides = [_stages(stored, side) for side in ("encoder.down_blocks", "decoder.up_blocks")]
        widths = [stored["encoder.conv_in.conv.weight"].shape[0] * 4, *_widths(stored)]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where} is not a checkpoint of DC-AE: {error} is missing or has another shape.") from None
    (encoder_types, encoder_layers, _), (decoder_types, decoder_layers, norms) = sides
    # The first stage has no blocks, and no tensor shows its width.
    channels = (widths[0] // 2, *widths)
    return DCAEConfig(
        {
            "in_channels": 3,
            "latent_channels": latent_channels,
            "attention_head_dim": DC_AE_HEAD,
            "encoder_block_types": ["ResBlock", *encoder_types],
            "decoder_block_types": ["ResBlock", *decoder_types],
            "encoder_block_out_channels": list(channels),
            "decoder_block_out_channels": list(channels),
            "encoder_layers_per_block": [0, *encoder_layers],
            "decoder_layers_per_block": [0, *decoder_layers],
            "encoder_qkv_multiscales": [[] for _ in channels],
            "decoder_qkv_multiscales": [[] for _ in channels],
            "decoder_norm_types": [norms[0], *norms],
            "decoder_act_fns": ["relu" if norm == "batch_norm" else "silu" for norm in (norms[0], *norms)],
            "scaling_factor": DC_AE_SCALE,
        }
    )


def _stages(stored: Mapping[str, Tensor], prefix: str) -> tuple[list[str], list[int], list[str]]:
    """Kinds of blocks, their numbers, and kinds of norms of all stages but the first."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(\d+)\.(conv1|attn)\.")
    blocks: dict[int, dict[int, str]] = {}
    for name in stored:
        if match := pattern.match(name):
            kind = "ResBlock" if match[3] == "conv1" else "EfficientViTBlock"
            blocks.setdefault(int(match[1]), {})[int(match[2])] = kind
    if sorted(blocks) != list(range(1, len(blocks) + 1)) or not blocks:
        raise KeyError(prefix)
    stages = [blocks[i] for i in sorted(blocks)]
    has_statistics = {
        i: any(re.match(rf"{re.escape(prefix)}\.{i}\..*running_mean$", name) for name in stored) for i in blocks
    }
    norms = ["batch_norm" if has_statistics[i] else "rms_norm" for i in sorted(blocks)]
    return [next(iter(stage.values())) for stage in stages], [len(stage) for stage in stages], norms


def _widths(stored: Mapping[str, Tensor]) -> list[int]:
    """Channels of every stage after the second, from the layers that lead to them."""
    pattern = re.compile(r"encoder\.down_blocks\.(\d+)\.\d+\.conv\.weight")
    found = {int(match[1]): len(value) * 4 for name, value in stored.items() if (match := pattern.fullmatch(name))}
    return [found[i] for i in sorted(found)]


def load_autoencoder(stored: Mapping[str, Tensor], where: Path) -> DCAE:
    """The autoencoder with published weights. Raises UserError with the name of the first tensor that does not fit."""
    with on_meta_device():
        tokenizer = DCAE(infer_autoencoder(stored, where))
    load_weights(tokenizer, {f"vae.{name}": value for name, value in stored.items()}, where)
    return tokenizer.eval()
