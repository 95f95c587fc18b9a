"""Published NOVA folders (diffusers layout) to our parts: transformer, scheduler, text encoder and tokenizer.

No code in a folder is executed: the class names of `model_index.json` are looked up in tables here, never imported.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from einops import rearrange
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import read_json
from mutoscope.layers.diffusion import DDPM, Diffusion, FlowMatching
from mutoscope.meta_device import on_meta_device
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.tokenizers.pretrained import load_weights, read_published_weights

# name -> (layers, width, heads); no rule gives the heads
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
PIPELINE_CLASS, ARCHITECTURES = "NOVAPipeline", "arch_table.json"
NUM_LATENT_FRAMES = 9  # 33 frames, the length of the published video model's samples
# part of a pipeline -> its possible classes; the module that a file names is ignored
COMPONENTS = {
    "transformer": ("NOVATransformer3DModel",),
    "scheduler": ("FlowMatchEulerDiscreteScheduler", "DDPMScheduler"),
    "vae": ("AutoencoderKL", "AutoencoderKLOpenSora"),
    "text_encoder": ("PhiEncoderModel", "PhiModel"),
    "tokenizer": ("CodeGenTokenizerFast", "CodeGenTokenizer"),
}

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
    """Published tensors under our names. Raises UserError with the name of an unknown one."""
    weights = {}
    for name, value in stored.items():
        if (ours := our_name(name)) is None:
            raise UserError(f"{where}: tensor {name!r} is not part of NOVA.")
        if value.ndim == 4:  # a convolution with stride = kernel size is a linear map of token vectors
            value = rearrange(value, "d c p q -> d (p q c)")
        weights[ours] = value
    return weights


class TransformerSettings(TypedDict):
    """Keys of a published `transformer/config.json` that we read."""

    arch: tuple[str, str, str]
    """Names of the sizes of temporal encoder, spatial encoder and diffusion head."""
    video_base_size: tuple[int, int, int]
    image_dim: int
    image_size: int | tuple[int, int]
    image_stride: NotRequired[int]
    text_token_dim: NotRequired[int | None]
    text_token_len: NotRequired[int]
    video_mixer_rank: NotRequired[int | None]
    rotary_pos_embed: NotRequired[bool]


def transformer_config(
    values: TransformerSettings,
    weights: Mapping[str, Tensor],
    where: Path,
    diffusion: Diffusion,
    vit: Mapping[str, tuple[int, int, int]] = VIT,
    mlp: Mapping[str, tuple[int, int]] = MLP,
) -> NOVAConfig:
    """Our configuration of a published `transformer/config.json`.

    The mixer's rank is read from the weights, since some files lack it. Raises UserError for unknown names of sizes and
    for missing keys.
    """
    try:
        temporal, spatial, head = values["arch"]
        frames, rows, columns = values["video_base_size"]
        channels, stride = values["image_dim"], values.get("image_stride", 8)
        layers, width, heads = vit[temporal]
        spatial_layers, _, spatial_heads = vit[spatial]
        head_layers, head_size = mlp[head]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error} is missing or an unknown size.") from None
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
        latent_shape=(min(frames, NUM_LATENT_FRAMES), rows * coarse, columns * coarse),
        num_time_slots=frames,
        patch_size=coarse // 2,
        mixer_rank=_mixer_rank(values, weights),
        positions="rotary" if values.get("rotary_pos_embed") else "absolute",
        text_size=text_size,
        text_length=values.get("text_token_len", 256),
        num_classes=None if text_size else _num_classes(weights),
        diffusion=diffusion,
    )


def _mixer_rank(values: TransformerSettings, weights: Mapping[str, Tensor]) -> int | None:
    """Rank of the mixer's weights: some published configurations lack it."""
    if "mixer.output.weight" not in weights:
        rank = values.get("video_mixer_rank")
        return None if rank is None or weights else (rank if rank > 0 else -1)
    return len(weights["mixer.down.weight"]) if "mixer.down.weight" in weights else -1


def _num_classes(weights: Mapping[str, Tensor]) -> int:
    return len(weights["classes.weight"]) - 1 if "classes.weight" in weights else NUM_CLASSES


def scheduler(values: Mapping[str, object], where: Path, clips: bool = False) -> Diffusion:
    """Flow matching or DDPM of a published `scheduler_config.json`.

    `clips`: the sampling class is diffusers' DDPM, which clamps the predicted sample; NOVA's own never does. Raises
    UserError for another scheduler.
    """
    name = values.get("_class_name")
    if name == "FlowMatchEulerDiscreteScheduler":
        shift = values.get("shift", 1.0)
        if not isinstance(shift, int | float):
            raise UserError(f"{where}: shift must be a number, found {shift!r}.")
        return FlowMatching(float(shift))
    if name == "DDPMScheduler":
        known = {f.name for f in fields(DDPM)}
        chosen = {key: value for key, value in values.items() if key in known}
        return replace(DDPM(), **chosen | {"clip_sample": clips and bool(values.get("clip_sample", True))})
    raise UserError(f"{where}: unknown scheduler {name!r}; NOVA uses flow matching (Euler) or DDPM.")


def build_transformer(config: NOVAConfig, weights: Mapping[str, Tensor], where: Path) -> NOVA:
    """The network with published weights. Raises UserError with the name of the first tensor that does not fit."""
    with on_meta_device():
        model = NOVA(config)
    load_weights(model, weights, where)
    return model.eval()


def load_transformer(
    folder: Path,
    diffusion: Diffusion,
    vit: Mapping[str, tuple[int, int, int]] = VIT,
    mlp: Mapping[str, tuple[int, int]] = MLP,
) -> NOVA:
    """The transformer of a published folder, float32 on the CPU."""
    weights = transformer_weights(read_published_weights(folder), folder)
    path = folder / "config.json"
    values = cast(TransformerSettings, read_json(path))
    return build_transformer(transformer_config(values, weights, path, diffusion, vit, mlp), weights, folder)


# ---------------------------------------------------------------------------------------------------------------------
# Whole pipelines


class PipelineIndex(TypedDict):
    """Fields of our `model_index.json` for a published folder."""

    family: str
    num_frames: int
    height: int
    width: int
    fps: int
    tokenizer: str
    model: str
    text_encoder: str
    sampling: dict[str, object]


def is_pipeline(index: Mapping[str, object]) -> bool:
    """Whether a `model_index.json` belongs to a published NOVA."""
    return index.get("_class_name") == PIPELINE_CLASS


def check_pipeline(folder: Path, index: Mapping[str, object]) -> None:
    """Raises UserError for missing parts and for unknown classes."""
    for part, known in COMPONENTS.items():
        named = index.get(part)
        if not isinstance(named, list) or len(named) != 2 or named[1] not in known:
            raise UserError(
                f"{folder / 'model_index.json'}: {part} must be one of {', '.join(known)}, found {named!r}."
            )
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no folder {part!r}: the download is incomplete.")


def describe_pipeline(folder: Path, index: Mapping[str, object]) -> PipelineIndex:
    """Fields of our `model_index.json` for a published folder: 9 latent frames, or 1 for image models."""
    check_pipeline(folder, index)
    config, vae = read_json(folder / "transformer" / "config.json"), read_json(folder / "vae" / "config.json")
    try:
        slots, size = config["video_base_size"][0], config["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        stride = 2 ** sum(name.endswith("3D") for name in vae["down_block_types"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{folder}: {error} is missing in the configuration of transformer or vae.") from None
    return {
        "family": "nova",
        "num_frames": 1 + stride * (min(slots, NUM_LATENT_FRAMES) - 1),
        "height": height,
        "width": width,
        "fps": 12,
        "tokenizer": "./vae",
        "model": "./transformer",
        "text_encoder": "./text_encoder",
        "sampling": {"num_decoding_steps": 64, "num_diffusion_steps": 25, "guidance_scale": 5.0},
    }


def load_pipeline_model(folder: Path, index: Mapping[str, object]) -> NOVA:
    """The transformer with its scheduler. Raises UserError for missing parts and for unknown classes."""
    check_pipeline(folder, index)
    named, path = index["scheduler"], folder / "scheduler" / "scheduler_config.json"
    clips = isinstance(named, list) and named[0] == "diffusers"
    diffusion = scheduler(read_json(path), path, clips)
    return load_transformer(folder / "transformer", diffusion, *architectures(folder))


def architectures(folder: Path) -> tuple[dict[str, tuple[int, int, int]], dict[str, tuple[int, int]]]:
    """Sizes by name: the published ones, and those of an `arch_table.json` in the folder or its parent.

    The table is {name: {"depth", "embed_dim", "num_heads"}}, without "num_heads" for diffusion heads.
    """
    vit, mlp = dict(VIT), dict(MLP)
    for path in (folder.parent / ARCHITECTURES, folder / ARCHITECTURES):
        for name, sizes in (read_json(path) if path.is_file() else {}).items():
            try:
                if "num_heads" in sizes:
                    vit[name] = sizes["depth"], sizes["embed_dim"], sizes["num_heads"]
                else:
                    mlp[name] = sizes["depth"], sizes["embed_dim"]
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}: {name!r} lacks {error}.") from None
    return vit, mlp
