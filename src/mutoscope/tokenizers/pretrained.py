"""Published autoencoders in the folder layout of diffusers: `config.json` beside `diffusion_pytorch_model.*`.

NOVA's two (`AutoencoderKL` and `AutoencoderKLOpenSora`) are loaded into our own network. FAR's (`AutoencoderDC`, see
`dc_ae`) and a few others, listed in `DIFFUSERS_CLASSES`, are run by diffusers with the same interface. No code in a
folder is executed: configurations are plain JSON, weights are safetensors or tensors alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.errors import UserError, reason
from mutoscope.json_config import nearest, read_json
from mutoscope.meta_device import on_meta_device
from mutoscope.state_dicts import open_containers, read_stored, without_wrappers
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL, TileOptions
from mutoscope.tokenizers.autoencoder_kl_network import AutoencoderKLConfig
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from mutoscope.tokenizers.dc_ae import CLASS_NAME as IMAGE_CLASS
from mutoscope.tokenizers.dc_ae import DCAE, DCAEConfig

WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
OWN_CLASSES = ("AutoencoderKL", "AutoencoderKLOpenSora")
# All take clips of 1 + k·stride frames.
DIFFUSERS_CLASSES = ("AutoencoderKLWan", "AutoencoderKLCosmos", "AutoencoderKLLTXVideo", "AutoencoderKLHunyuanVideo")


def load_vae(folder: str | Path, tiles: TileOptions | None = None) -> VideoTokenizer:
    """The autoencoder in a folder, or in the `vae` folder of a whole pipeline; float32, in evaluation mode.

    `tiles` is for NOVA's autoencoders. Raises UserError for an unknown class and for files that do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "vae").is_dir():
        folder = folder / "vae"
    values = read_json(folder / "config.json")
    name = str(values.get("_class_name"))
    if name in OWN_CLASSES:
        with on_meta_device():
            tokenizer: VideoTokenizer = AutoencoderKL(vae_config(values, str(folder / "config.json")), tiles)
        weights = {_current_name(key): value for key, value in read_published_weights(folder).items()}
    elif name == IMAGE_CLASS:
        tokenizer = DCAE(DCAEConfig(_without_private(values)))
        weights = {f"vae.{key}": value for key, value in read_published_weights(folder).items()}
    elif name in DIFFUSERS_CLASSES:
        tokenizer = DiffusersVAE(DiffusersVAEConfig(name, _without_private(values)))
        weights = {f"vae.{key}": value for key, value in read_published_weights(folder).items()}
    else:
        known = (*OWN_CLASSES, *DIFFUSERS_CLASSES, IMAGE_CLASS)
        raise UserError(f"{folder / 'config.json'} names {name!r}, which cannot be loaded: {nearest(name, known)}")
    load_weights(tokenizer, weights, folder)
    return tokenizer.eval()


# ---------------------------------------------------------------------------------------------------------- weights


def read_published_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of the first of `WEIGHT_FILES` in a folder; floating ones as float32.

    Raises UserError if there is no such file, or if it is damaged or holds more than tensors.
    """
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds none of {', '.join(WEIGHT_FILES)}: the download is incomplete.")
    stored = open_containers(read_stored(path))
    weights = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(stored):
        raise UserError(f"{path} holds something else than the named tensors of a network.")
    weights = without_wrappers(weights)
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Assigns the tensors without copying. Raises UserError with the name of the first that does not fit."""
    expected = network.state_dict()
    for name in sorted(set(expected) | set(weights)):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (weights, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{folder}: tensor {name!r} is {shapes[0] or 'missing'} in the weights, config.json requires "
                f"{shapes[1] or 'none of that name'}."
            )
    network.load_state_dict(weights, assign=True)


def _current_name(name: str) -> str:
    """Current name of a tensor: older files, such as Stable Diffusion's, name attention weights differently."""
    renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)\b", lambda m: m[1] + renamed[m[2]], name)


# --------------------------------------------------------------------------------------------------- configuration

# Keys with a single supported value; None: any value, since the key has no effect here.
FIXED: dict[str, object] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "double_z": True,
    "mid_block_add_attention": True,
    "latents_mean": (),
    "latents_std": (),
    "sample_size": None,
    "force_upcast": None,
}
DIMENSIONS = {
    "DownEncoderBlock2D": 2,
    "DownEncoderBlock3D": 3,
    "UpDecoderBlock2D": 2,
    "UpDecoderBlock3D": 3,
}
RENAMED = {
    "block_out_channels": "block_channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "norm_num_groups": "num_groups",
    "use_quant_conv": "quant_conv",
    "use_post_quant_conv": "post_quant_conv",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
}


def vae_config(values: Mapping[str, object], where: str = "config.json") -> AutoencoderKLConfig:
    """Our configuration for a published one of class AutoencoderKL or AutoencoderKLOpenSora.

    Absent keys have the defaults of the class. Raises UserError for unknown keys and values, since they may change the
    result of the network.
    """
    published = AutoencoderKLConfig()
    if values.get("_class_name") == "AutoencoderKLOpenSora":
        published = AutoencoderKLConfig.opensora()
    fields: dict[str, object] = {}
    for key, value in _without_private(values).items():
        if key in ("down_block_types", "up_block_types") and isinstance(value, Sequence):
            fields[key.replace("block_types", "dims")] = tuple(_dimensions(name, where) for name in value)
        elif key in RENAMED:
            fields[RENAMED[key]] = tuple(value) if isinstance(value, list) else value
        elif key not in FIXED:
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, (*RENAMED, *FIXED))}")
        elif FIXED[key] is not None and value != FIXED[key] and not (FIXED[key] == () and value is None):
            raise UserError(f"{where}: {key} is {value!r}; only {FIXED[key] or None!r} is supported.")
    fields["shift_factor"] = fields.get("shift_factor") or 0.0
    try:
        return replace(published, **fields)
    except (UserError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: {error}") from None


def _dimensions(name: object, where: str) -> int:
    if not isinstance(name, str) or name not in DIMENSIONS:
        raise UserError(f"{where}: unknown block type {name!r}: {nearest(str(name), DIMENSIONS)}")
    return DIMENSIONS[name]


def _without_private(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if not key.startswith("_")}


# ------------------------------------------------------------------------------------------------- run by diffusers


@dataclass(frozen=True)
class DiffusersVAEConfig:
    """`class_name`, one of `DIFFUSERS_CLASSES`, and the arguments of its constructor, from its config.json."""

    class_name: str
    arguments: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_name not in DIFFUSERS_CLASSES:
            raise UserError(f"Unknown autoencoder {self.class_name!r}: {nearest(self.class_name, DIFFUSERS_CLASSES)}")


class LatentDistribution(Protocol):
    """Diffusers' distribution of latents."""

    def mode(self) -> Tensor: ...

    def sample(self, generator: torch.Generator) -> Tensor: ...


class Encoded(Protocol):
    """Result of a diffusers encoder."""

    @property
    def latent_dist(self) -> LatentDistribution: ...


class Decoded(Protocol):
    """Result of a diffusers decoder."""

    @property
    def sample(self) -> Tensor: ...


class DiffusersNetwork(Protocol):
    """The parts of a diffusers autoencoder that we call; it is also an `nn.Module`."""

    @property
    def config(self) -> object: ...

    def encode(self, x: Tensor) -> Encoded: ...

    def decode(self, z: Tensor, *, temb: Tensor | None = None) -> Decoded: ...


class DiffusersVAE(VideoTokenizer):
    """A video autoencoder of diffusers: pixels in [-1, 1], latents normalised as in its pipelines.

    `encode` accepts any number of frames of any size and pads them by repeating the last frame, row and column;
    `decode` returns the padded clip, `reconstruct` a clip of the original length and size.
    """

    def __init__(self, config: DiffusersVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = _build(config)

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(
            temporal_stride=self._whole_number("scale_factor_temporal", "temporal_compression_ratio"),
            spatial_stride=self._whole_number("scale_factor_spatial", "spatial_compression_ratio"),
            latent_channels=self._whole_number("z_dim", "latent_channels"),
            first_frame_alone=True,
        )

    def encode(
        self, video: Float[Tensor, "b 3 t h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b d lt lh lw"]:
        """Normalised latents: their mean, or, with a generator, a draw from their distribution."""
        distribution = self.vae.encode(self.padded(video)).latent_dist
        latents = distribution.mode() if generator is None else distribution.sample(generator)
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def decode(self, tokens: Float[Tensor, "b d lt lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        mean, std = self._statistics(tokens)
        latents = tokens * std + mean
        if self._setting("timestep_conditioning"):  # LTX: time 0, at which its pipeline adds no noise
            return self.vae.decode(latents, temb=latents.new_zeros(len(latents))).sample
        return self.vae.decode(latents).sample

    def reconstruct(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The round trip of a clip of any length and size."""
        t, h, w = video.shape[-3:]
        return self.decode(self.encode(video))[:, :, :t, :h, :w]

    def padded(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """The clip padded to 1 + k·stride frames and to sides that the stride divides."""
        spec = self.spec
        t, h, w = video.shape[-3:]
        missing = [-(t - 1) % spec.temporal_stride, -h % spec.spatial_stride, -w % spec.spatial_stride]
        return F.pad(video, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else video

    def _statistics(self, latents: Float[Tensor, "b d lt lh lw"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by channel, in some models by frame too; later frames have the last frame's."""
        found = []
        for name, neutral in (("latents_mean", 0.0), ("latents_std", 1.0)):
            setting = self._setting(name)
            values = torch.as_tensor([neutral] * latents.shape[1] if setting is None else setting).to(latents)
            table = values.reshape(latents.shape[1], -1)  # (d, 1) or (d, frames)
            frames = torch.arange(latents.shape[2], device=table.device).clamp(max=table.shape[1] - 1)
            found.append(table[:, frames].reshape(1, -1, len(frames), 1, 1))
        scale = self._setting("scaling_factor")
        return found[0], found[1] / (scale if isinstance(scale, int | float) and scale else 1.0)

    def _setting(self, name: str) -> object:
        """A setting of the network itself (LTX keeps statistics as weights), else of its configuration."""
        own = vars(self.vae).get(name, dict(self.get_submodule("vae").named_buffers(recurse=False)).get(name))
        return own if own is not None else getattr(self.vae.config, name, None)

    def _whole_number(self, *names: str) -> int:
        """The first of these settings that the network has."""
        return next(value for name in names if isinstance(value := self._setting(name), int))


def copied(arguments: Mapping[str, object]) -> dict[str, Any]:
    """The same JSON values again: a constructor may keep its arguments."""
    return json.loads(json.dumps(arguments))


def _build(config: DiffusersVAEConfig) -> DiffusersNetwork:
    """The network with fresh weights; nothing is downloaded."""
    try:
        import diffusers
    except ImportError:
        raise UserError(
            f"{config.class_name} is run by diffusers, which is not installed: pip install 'mutoscope[vae]'."
        ) from None
    try:
        with on_meta_device():  # refuses sizes that no machine can hold, before anything is allocated
            getattr(diffusers, config.class_name)(**copied(config.arguments))
        return getattr(diffusers, config.class_name)(**copied(config.arguments))
    except UserError as error:
        raise UserError(f"{config.class_name} cannot be built: {error}") from None
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"diffusers {diffusers.__version__} cannot build {config.class_name}: {reason(error)}."
        ) from None
