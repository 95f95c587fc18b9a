"""Published NOVA folders (diffusers layout) to our parts: transformer, scheduler, text encoder and tokenizer.

Nothing in a folder is executed: the module and class names of `model_index.json` are looked up here, never imported.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.layers.diffusion import DDPM, Diffusion, FlowMatching
from mutoscope.meta import without_memory
from mutoscope.models.nova import NOVA, NOVAConfig

# name -> (layers, width, heads): the heads follow no rule
VIT: dict[str, tuple[int, int, int]] = {
    f"vit_d{depth}w{width}": (depth, width, heads)
    for depth in (16, 32)
    for width, heads in ((768, 12), (1024, 16), (1536, 16))
}
MLP: dict[str, tuple[int, int]] = {
    "mlp_d3w1280": (3, 1280),
    "mlp_d6w768": (6, 768),
    "mlp_d6w1024": (6, 1024),
    "mlp_d6w1536": (6, 1536),
}
NUM_CLASSES = 1000

WITHIN_BLOCK = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
    "norm1": "norm1",
    "norm2": "norm2",
}
WITHIN_HEAD_BLOCK = {
    "norm1.proj": "modulation",
    "proj.fc1": "mlp.0",
    "proj.fc2": "mlp.2",
    "norm2": "norm",
}
PREFIXES = {
    "video_encoder.mixer.lora": "mixer.down",
    "video_encoder.mixer.proj": "mixer.output",
    "video_encoder.patch_embed.proj": "temporal_encoder.patch_embedding",
    "video_encoder.norm": "temporal_encoder.norm",
    "image_encoder.patch_embed.proj": "spatial_encoder.patch_embedding",
    "image_encoder.norm": "spatial_encoder.norm",
    "image_decoder.patch_embed.proj": "head.patch_embedding",
    "image_decoder.time_cond_embed.timestep_proj.fc1": "head.time_projector.0",
    "image_decoder.time_cond_embed.timestep_proj.fc2": "head.time_projector.2",
    "image_decoder.time_cond_embed.condition_proj.fc1": "head.condition_projector.0",
    "image_decoder.time_cond_embed.condition_proj.fc2": "head.condition_projector.2",
    "image_decoder.norm.proj": "head.modulation",
    "image_decoder.head": "head.output",
    "text_embed.proj": "text.projection",
    "text_embed.norm": "text.norm",
    "label_embed.norm": "class_norm",
    "video_pos_embed.time_proj.0": "time_embedding.projector.0",
    "video_pos_embed.time_proj.2": "time_embedding.projector.2",
    "video_pos_embed.norm": "time_embedding.norm",
    "motion_embed.flow_proj.0": "flow_embedding.projector.0",
    "motion_embed.flow_proj.2": "flow_embedding.projector.2",
    "motion_embed.fps_proj.0": "fps_embedding.projector.0",
    "motion_embed.fps_proj.2": "fps_embedding.projector.2",
}
WHOLE = {
    "mask_embed.bos_token": "begin_of_video",
    "mask_embed.mask_token": "mask_token",
    "text_embed.weight": "text.table",
    "label_embed.weight": "classes.weight",
}
ENCODERS = {"video_encoder": "temporal_encoder", "image_encoder": "spatial_encoder"}


def our_name(name: str) -> str | None:
    """Name of a published tensor in `NOVA`; None if there is none."""
    if name in WHOLE:
        return WHOLE[name]
    stem, _, kind = name.rpartition(".")
    if stem in PREFIXES:
        return f"{PREFIXES[stem]}.{kind}"
    match = re.fullmatch(r"(\w+)\.blocks\.(\d+)\.(.+)", stem)
    if match and match[1] in ENCODERS and match[3] in WITHIN_BLOCK:
        return f"{ENCODERS[match[1]]}.blocks.{match[2]}.{WITHIN_BLOCK[match[3]]}.{kind}"
    if match and match[1] == "image_decoder" and match[3] in WITHIN_HEAD_BLOCK:
        return f"head.blocks.{match[2]}.{WITHIN_HEAD_BLOCK[match[3]]}.{kind}"
    return None


def transformer_weights(stored: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Published tensors under our names. Raises UserError naming one that is not known."""
    weights = {}
    for name, value in stored.items():
        if (ours := our_name(name)) is None:
            raise UserError(f"{where}: tensor {name!r} is not part of NOVA.")
        if value.ndim == 4:  # a convolution of stride equal to its size is a linear map of token vectors
            value = rearrange(value, "d c p q -> d (p q c)")
        weights[ours] = value
    return weights


def transformer_config(
    values: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: Path,
    diffusion: Diffusion,
    vit: Mapping[str, tuple[int, int, int]] = VIT,
    mlp: Mapping[str, tuple[int, int]] = MLP,
) -> NOVAConfig:
    """Our configuration of a published `transformer/config.json`.

    The mixer's rank is read from the weights where the file does not say it. Raises UserError for names of sizes that
    are not known and for keys that are missing.
    """
    try:
        temporal, spatial, head = values["arch"]
        frames, rows, columns = values["video_base_size"]
        channels, stride = values["image_dim"], values.get("image_stride", 8)
        layers, width, heads = vit[temporal]
        spatial_layers, _, spatial_heads = vit[spatial]
        head_layers, head_size = mlp[head]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error} is missing or of a size that is not known here.") from None
    coarse = 2 * (15 // stride + 1)
    text_size = values.get("text_token_dim") or None
    return NOVAConfig(
        hidden_size=width,
        temporal_layers=layers,
        temporal_heads=heads,
        spatial_layers=spatial_layers,
        spatial_heads=spatial_heads,
        head_layers=head_layers,
        head_size=head_size,
        latent_channels=channels,
        latent_shape=(frames, rows * coarse, columns * coarse),
        patch_size=coarse // 2,
        mixer_rank=_mixer_rank(values, weights),
        positions="rotary" if values.get("rotary_pos_embed") else "absolute",
        text_size=text_size,
        text_length=values.get("text_token_len", 256),
        num_classes=None if text_size else _num_classes(weights),
        diffusion=diffusion,
    )


def _mixer_rank(values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> int | None:
    """As the weights show it: some published configurations leave it out."""
    if "mixer.output.weight" not in weights:
        rank = values.get("video_mixer_rank")
        return None if rank is None or weights else (rank if rank > 0 else -1)
    return len(weights["mixer.down.weight"]) if "mixer.down.weight" in weights else -1


def _num_classes(weights: Mapping[str, Tensor]) -> int:
    return len(weights["classes.weight"]) - 1 if "classes.weight" in weights else NUM_CLASSES


def scheduler(values: Mapping[str, Any], where: Path, clips: bool = False) -> Diffusion:
    """Flow matching or DDPM as a published `scheduler_config.json` says.

    `clips`: the sampling class is diffusers' DDPM, which bounds the predicted sample; NOVA's own never does.
    """
    name = values.get("_class_name")
    if name == "FlowMatchEulerDiscreteScheduler":
        return FlowMatching(float(values.get("shift", 1.0)))
    if name == "DDPMScheduler":
        known = {f.name for f in fields(DDPM)}
        chosen = {key: value for key, value in values.items() if key in known}
        return DDPM(**chosen | {"clip_sample": clips and bool(values.get("clip_sample", True))})
    raise UserError(f"{where}: scheduler {name!r} is not known; NOVA uses flow matching (Euler) or DDPM.")


def build_transformer(config: NOVAConfig, weights: Mapping[str, Tensor], where: Path) -> NOVA:
    """The network with published weights, after names and shapes are compared."""
    with without_memory():
        model = NOVA(config)
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in weights:
            raise UserError(f"{where}: the tensor that we call {name!r} is missing.")
        if weights[name].shape != value.shape:
            raise UserError(f"{where}: {name!r} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}.")
    for name in weights:
        if name not in expected:
            raise UserError(f"{where}: {name!r} does not belong to this configuration.")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_transformer(
    folder: Path,
    diffusion: Diffusion,
    vit: Mapping[str, tuple[int, int, int]] = VIT,
    mlp: Mapping[str, tuple[int, int]] = MLP,
) -> NOVA:
    """The transformer of a published folder, float32 on the CPU."""
    path, stored = read_tensors(folder)
    weights = transformer_weights(stored, path)
    config = transformer_config(read_json(folder / "config.json"), weights, folder / "config.json", diffusion, vit, mlp)
    return build_transformer(config, weights, path)


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Weights of a published component: `.safetensors`, or `.bin` opened without executing anything."""
    from mutoscope.hub import read_weights

    safe, pickled = folder / "diffusion_pytorch_model.safetensors", folder / "diffusion_pytorch_model.bin"
    if safe.is_file() or not pickled.is_file():
        return safe, read_weights(safe)
    try:
        stored = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file fails in many ways
        raise UserError(f"{pickled} is damaged, or holds more than tensors and was refused: {error}") from None
    return pickled, {name: value.float() for name, value in stored.items()}
