"""The folder format of models: how a folder is found, read and written.

    model_index.json            `ModelIndex`: what the folder holds and how it is used
    tokenizer/config.json       {"class": "VQ3D", ...fields of its configuration}
    tokenizer/model.safetensors half precision on disk as a rule, float32 in memory
    model/config.json, model/model.safetensors
    text_encoder/...            for models of text: a folder in the layout of the encoder (`mutoscope.text`)
    discriminator/...           of a tokenizer with adversarial training: only further training needs it
    recipe.json, MODEL_CARD.md  the resolved training configuration and a page for people

`model_index.json` may name another folder or a bundled model as its tokenizer, so several models share one.
Reading a folder never runs anything found in it: JSON and safetensors hold data only, and the classes a
configuration may name are those of `FAMILIES` and `COMPONENTS`.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mutoscope.data.media import write_png
from mutoscope.errors import UserError, reason, shown
from mutoscope.families import FAMILIES
from mutoscope.interop import pipelines
from mutoscope.json_config import dataclass_from_dict, nearest, read_json
from mutoscope.meta_device import on_meta_device
from mutoscope.model_index import ModelIndex as ModelIndex
from mutoscope.models.base import AnyModel, ModelConfig, VideoModel
from mutoscope.ownership import is_temporary, owned, real_folder, temporary_folder
from mutoscope.state_dicts import open_containers, read_stored, without_wrappers
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.tokenizers.pretrained import load_vae
from mutoscope.writing import move_entries, new_folder, write_whole, writing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INDEX = "model_index.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ZOO = Path(__file__).parent / "zoo"

MAX_TOKENIZER_LINKS = 4  # more than anyone needs, and few enough to find a circle at once

# name in config.json -> (module, configuration class) of the parts that belong to no family
COMPONENTS = {
    "VQ3D": ("mutoscope.tokenizers.vq3d", "VQ3DConfig"),
    "Causal3D": ("mutoscope.tokenizers.causal3d", "Causal3DConfig"),
    "VQ2D": ("mutoscope.tokenizers.vq2d", "VQ2DConfig"),
    "AutoencoderKL": ("mutoscope.tokenizers.autoencoder_kl", "AutoencoderKLConfig"),
    "DCAE": ("mutoscope.tokenizers.dc_ae", "DCAEConfig"),
    "DiffusersVAE": ("mutoscope.tokenizers.pretrained", "DiffusersVAEConfig"),
    "PatchDiscriminator": ("mutoscope.tokenizers.discriminator", "PatchDiscriminatorConfig"),
    "Discriminator": ("mutoscope.tokenizers.discriminator", "DiscriminatorConfig"),
}


def component_classes(name: str) -> tuple[type[nn.Module], type]:
    """The network and the configuration class that `config.json` names. Raises UserError for an unknown name."""
    families = {family.network.__name__: family for family in FAMILIES.values()}
    if name in families:
        return families[name].network, families[name].config
    if name in COMPONENTS:
        module_name, config_name = COMPONENTS[name]
        module = import_module(module_name)
        return getattr(module, name), getattr(module, config_name)
    raise UserError(f"unknown class {name!r}: {nearest(name, (*families, *COMPONENTS))}")


@dataclass(frozen=True, repr=False)
class ModelFolder:
    """A model folder whose `model_index.json` was read once. Weights are read when a part is loaded.

    `tokenizer_path` is the folder of the tokenizer, which may be part of another model folder.
    """

    path: Path
    index: ModelIndex
    tokenizer_path: Path
    pipeline: Mapping[str, object] | None = None
    """The content of model_index.json for a published diffusers pipeline; None for a folder of our own."""

    def __repr__(self) -> str:
        index = self.index
        clips = f"{index.num_frames} frames of {index.height}×{index.width}, {index.fps:g} fps"
        return f"ModelFolder({str(self.path)!r}, {index.family}, {clips})"

    @property
    def model_path(self) -> Path:
        """Folder of the network. Raises UserError for a tokenizer alone."""
        if self.index.model is None:
            raise UserError(f"{str(self.path)!r} is a tokenizer only; it can reconstruct but not generate.")
        return self.path / self.index.model

    @property
    def text_encoder_path(self) -> Path | None:
        """Absolute path of the text encoder's folder; None if the model has none."""
        named = self.index.text_encoder
        return None if named is None else (self.path / Path(named).expanduser()).resolve()

    def load_tokenizer(self) -> VideoTokenizer:
        """The tokenizer, float32 on the CPU, in evaluation mode."""
        published = read_json(self.tokenizer_path / CONFIG).get("_class_name") is not None
        tokenizer = load_vae(self.tokenizer_path) if published else load_component(self.tokenizer_path)
        if not isinstance(tokenizer, VideoTokenizer):
            raise UserError(f"{self.tokenizer_path} holds a {type(tokenizer).__name__}, which is no tokenizer.")
        return tokenizer

    def load_config(self) -> ModelConfig:
        """The configuration of the network; no weights are read."""
        if self.pipeline is not None:
            return pipelines.load_pipeline_model(self.path, self.pipeline).config
        with on_meta_device():
            network = build_component(self.model_path)
        if not isinstance(network, VideoModel):
            raise UserError(f"{self.model_path} holds a {type(network).__name__}, which does not generate video.")
        return network.config

    def load_model(self) -> AnyModel:
        """The generating network, float32 on the CPU, in evaluation mode."""
        if self.pipeline is not None:
            return pipelines.load_pipeline_model(self.path, self.pipeline)
        model = load_component(self.model_path)
        if not isinstance(model, VideoModel):
            raise UserError(f"{self.model_path} holds a {type(model).__name__}, which does not generate video.")
        return model


# ---------------------------------------------------------------------------------------------- name -> folder


def bundled() -> dict[str, Path]:
    """Names of the models shipped in the package, and their folders."""
    if not ZOO.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(ZOO.iterdir()) if (folder / INDEX).is_file()}


def resolve(name_or_folder: str | os.PathLike[str]) -> Path:
    """The folder of a bundled model, or of a model folder on disk. A folder wins over a name."""
    given = os.fspath(name_or_folder)
    path = Path(given).expanduser()
    if (path / INDEX).is_file():
        return path
    if given in bundled():
        return bundled()[given]
    if path.is_dir():
        raise UserError(f"{given!r} is a folder without {INDEX}: it is not a model. Train one with --out {given}.")
    if path.exists():
        raise UserError(f"{given!r} is a file; a model is a bundled name or a folder with {INDEX}.")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", given):
        return _download(given)
    if os.sep in given or given.startswith("."):
        raise UserError(f"There is no folder {given!r}. Give a folder with {INDEX} or a bundled name.")
    raise UserError(f"Unknown model {given!r}: {nearest(given, bundled())} A folder with {INDEX} works too.")


def _download(name: str) -> Path:
    """A folder of the Hugging Face hub, from its local cache where there is no network. Code in it is not fetched."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"There is no folder {name!r}. To fetch it from the hub, install mutoscope with the extra [hub]."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.png"]))
    except Exception as error:  # no network, no such name, no permission: the library has many kinds
        message = f"There is no folder {name!r}, and it could not be fetched from the hub: {reason(error)}."
        raise UserError(message) from None


# ------------------------------------------------------------------------------------------------------ reading


def open_folder(name_or_folder: str | os.PathLike[str]) -> ModelFolder:
    """Read and check `model_index.json` of a bundled model, a folder, or a model of the hub."""
    path = resolve(name_or_folder)
    index, pipeline = _read_index(path)
    return ModelFolder(path, index, _tokenizer_path(path, index), pipeline)


def _read_index(folder: Path) -> tuple[ModelIndex, Mapping[str, object] | None]:
    path = folder / INDEX
    values = read_json(path)
    if pipelines.is_pipeline(values):
        return ModelIndex(**pipelines.describe_pipeline(folder, values)), values
    index = dataclass_from_dict(ModelIndex, values, str(path))
    if index.family not in (known := (*FAMILIES, "tokenizer")):
        raise UserError(f"{path}: unknown family {shown(index.family)}: {nearest(index.family, known)}")
    return index, None


def _tokenizer_path(folder: Path, index: ModelIndex) -> Path:
    """The folder of the tokenizer. A model may use the tokenizer of a folder that uses another folder's in turn."""
    for _ in range(MAX_TOKENIZER_LINKS):
        path = Path(index.tokenizer)
        if not index.tokenizer.startswith(".") and not path.is_absolute():
            folder = resolve(index.tokenizer)
        elif (folder / path / INDEX).is_file():
            folder = folder / path
        else:
            return folder / path
        index, _ = _read_index(folder)
    raise UserError(f"{folder / INDEX}: the tokenizer is named in a circle. Point it at a folder that holds one.")


def load_index(name_or_folder: str | os.PathLike[str]) -> ModelIndex:
    """The content of `model_index.json`."""
    return open_folder(name_or_folder).index


def load_tokenizer(name_or_folder: str | os.PathLike[str]) -> VideoTokenizer:
    """The tokenizer of a model folder, float32 on the CPU, in evaluation mode."""
    return open_folder(name_or_folder).load_tokenizer()


def load_model(name_or_folder: str | os.PathLike[str]) -> AnyModel:
    """The generating network of a model folder, float32 on the CPU, in evaluation mode."""
    return open_folder(name_or_folder).load_model()


def tokenizer_folder(name_or_folder: str | os.PathLike[str]) -> Path:
    """Folder of the tokenizer of a model: in the model's own folder, or in the one it names."""
    return open_folder(name_or_folder).tokenizer_path


def load_component(folder: Path) -> nn.Module:
    """One part: `config.json` and `model.safetensors`. Shapes are compared before memory is spent."""
    with on_meta_device():
        network = build_component(folder)
    expected = network.state_dict()
    weights = without_wrappers(read_weights(folder / WEIGHTS), expected)
    _check_weights(expected, weights, folder)
    network.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        # Tables that are computed at construction and not stored: build once more with real memory.
        network = build_component(folder)
        network.load_state_dict(weights)
    return network.eval()


def build_component(folder: Path) -> nn.Module:
    """The network that `config.json` describes, with fresh weights."""
    path = folder / CONFIG
    values = read_json(path)
    try:
        network, config_class = component_classes(str(values.pop("class", None)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    config = dataclass_from_dict(config_class, values, str(path))
    try:
        with torch.random.fork_rng(devices=[]):
            return network(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        name = network.__name__
        raise UserError(f"{path}: no {name} can be built from this configuration: {reason(error)}.") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; floating ones as float32."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the folder is incomplete. Copy or train the model again.")
    try:
        stored = read_stored(path)
    except UserError as error:
        raise UserError(f"{error} Copy the model again.") from None
    weights = {name: value for name, value in open_containers(stored).items() if isinstance(value, Tensor)}
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    path = folder / WEIGHTS
    for key, value in expected.items():
        if key not in found:
            raise UserError(f"{path}: tensor {key!r} is missing. The file does not belong to {folder / CONFIG}.")
        if value.shape != found[key].shape:
            raise UserError(
                f"{path}: tensor {key!r} is {tuple(found[key].shape)}, {folder / CONFIG} asks for {tuple(value.shape)}."
            )
    for key, value in found.items():
        if key not in expected:
            raise UserError(f"{path}: tensor {key!r} is not part of the network {folder / CONFIG} describes.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{path}: tensor {key!r} holds NaN or infinity: the file is damaged or training diverged.")


def weights_hash(*modules: nn.Module) -> str:
    """SHA-256 over the names and values of all weights, independent of files, memory layout and device."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------ writing


def save_component(folder: Path, module: nn.Module, half: bool = True) -> None:
    """Write `config.json` and `model.safetensors` of a tokenizer or model into a folder."""
    from safetensors.torch import save

    new_folder(folder)
    write_json(folder / CONFIG, {"class": type(module).__name__, **asdict(configuration(module))})
    # Not by safetensors' own function, which writes files that only their owner may read.
    write_whole(folder / WEIGHTS, save({key: _to_disk(value, half) for key, value in module.state_dict().items()}))


def configuration(module: nn.Module) -> "DataclassInstance":
    """The frozen configuration of a tokenizer or model, from which it can be built again."""
    config = getattr(module, "config", None)
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{type(module).__name__} has no configuration")
    return config


def _to_disk(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    if half and value.is_floating_point() and bool(value.half().isfinite().all()):
        value = value.half()  # half precision ends at 65504
    return value.clone().contiguous()


def save_pretrained(
    folder: str | os.PathLike[str],
    index: ModelIndex,
    tokenizer: nn.Module | None = None,
    model: nn.Module | None = None,
    recipe: Mapping[str, object] | None = None,
    card: str | None = None,
    discriminator: nn.Module | None = None,
    half: bool = True,
    first_frames: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model folder so that no reader ever sees part of it.

    Weights are rounded to half precision unless `half` is False. first_frames: uint8 (h, w, 3) by file name, as the
    index lists them.

    Everything goes to a temporary folder beside or in the target first. An existing folder keeps its other files
    (checkpoints, logs); the parts written here replace their older versions, the index last.
    """
    target = Path(folder)
    check_writable_folder(target)
    with owned(target, "convert"):
        _save(real_folder(target), index, (tokenizer, model, discriminator), recipe, card, half, first_frames or {})
    return target


def _save(
    target: Path,
    index: ModelIndex,
    networks: tuple[nn.Module | None, nn.Module | None, nn.Module | None],
    recipe: Mapping[str, object] | None,
    card: str | None,
    half: bool,
    first_frames: Mapping[str, np.ndarray],
) -> None:
    """`save_pretrained` for the one process that writes into `target`."""
    temporary = temporary_folder(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    with writing(target, temporary=temporary):
        for name, part in zip(("tokenizer", "model", "discriminator"), networks, strict=True):
            if part is not None:
                save_component(temporary / name, part, half)
        if recipe is not None:
            write_json(temporary / "recipe.json", recipe)
        for name, frame in first_frames.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            write_png(temporary / name, frame)
        if card is not None:
            write_whole(temporary / "MODEL_CARD.md", card)
        write_json(temporary / INDEX, asdict(index))
        target.mkdir(exist_ok=True)
        move_entries(temporary, target, last=INDEX)
    shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")


def is_unfinished(folder: Path) -> bool:
    """Whether `save_pretrained` died before its last step: an empty folder, or parts of a model without its index."""
    parts = {"tokenizer", "model", "discriminator", "text_encoder", "first_frames", "recipe.json", "MODEL_CARD.md"}
    return folder.is_dir() and {entry.name for entry in folder.iterdir() if not is_temporary(entry)} <= parts


def check_writable_folder(folder: Path) -> None:
    """Check that a folder, or its nearest existing parent, can be written to, before any work starts.

    The parent of a folder that exists does not matter: of a mount point it may be read-only.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with writing(folder), tempfile.TemporaryFile(dir=nearest):
        pass
