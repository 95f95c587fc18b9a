"""The folder format: where a model lies, how it is read and written.

    model_index.json            ModelIndex: what the folder holds and how it is used
    tokenizer/config.json       {"class": "VQ3D", ...fields of its configuration}
    tokenizer/model.safetensors half precision on disk as a rule, float32 in memory
    model/config.json, model/model.safetensors
    text_encoder/...            where the model reads prompts: a folder in the layout of its encoder (`mutoscope.text`)
    discriminator/...           the tokenizer's opponent, where there was one: only further training needs it
    recipe.json, MODEL_CARD.md  the resolved training configuration and a page for people

`model_index.json` may name another folder or a bundled model as its tokenizer, so several models share one.
Reading a folder never runs anything found in it: JSON and safetensors hold data only, and the classes a
configuration may name are the ones listed in `CLASSES`.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.interop import nova
from mutoscope.json_config import dataclass_from_dict, nearest, read_json
from mutoscope.meta_device import on_meta_device
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.tokenizers.pretrained import load_vae

FORMAT = "mutoscope-1"
INDEX = "model_index.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ZOO = Path(__file__).parent / "zoo"

# name in config.json -> (module, class, configuration class)
CLASSES = {
    "VQ3D": ("mutoscope.tokenizers.vq3d", "VQ3D", "VQ3DConfig"),
    "Magvit": ("mutoscope.models.magvit", "Magvit", "MagvitConfig"),
    "PAR": ("mutoscope.models.par", "PAR", "PARConfig"),
    "MAGI": ("mutoscope.models.magi", "MAGI", "MAGIConfig"),
    "NOVA": ("mutoscope.models.nova", "NOVA", "NOVAConfig"),
    "Causal3D": ("mutoscope.tokenizers.causal3d", "Causal3D", "Causal3DConfig"),
    "VQ2D": ("mutoscope.tokenizers.vq2d", "VQ2D", "VQ2DConfig"),
    "AutoencoderKL": ("mutoscope.tokenizers.autoencoder_kl", "AutoencoderKL", "AutoencoderKLConfig"),
    "DiffusersVAE": ("mutoscope.tokenizers.pretrained", "DiffusersVAE", "DiffusersVAEConfig"),
    "PatchDiscriminator": ("mutoscope.tokenizers.discriminator", "PatchDiscriminator", "PatchDiscriminatorConfig"),
    "Discriminator": ("mutoscope.tokenizers.discriminator", "Discriminator", "DiscriminatorConfig"),
}


@dataclass(frozen=True)
class ModelIndex:
    """The content of `model_index.json`.

    `tokenizer` is a bundled name, or a path relative to the folder ("./tokenizer", "../other").
    `text_encoder` is the folder of the encoder of prompts, absolute or relative to this one.
    `num_frames`, `height`, `width` (pixels) and `fps` are those of the clips the model was trained on.
    `sampling` holds defaults of the sampler's configuration, `task_sampling` what differs for some tasks, `data` what
    the model was trained on. `blend_given`: MAGVIT puts what a task is given into its result without a seam, unless
    a call says otherwise.
    """

    family: str  # "magvit", "par", or "tokenizer" for a tokenizer alone
    num_frames: int
    height: int
    width: int
    fps: float = 8
    tokenizer: str = "./tokenizer"
    model: str | None = "./model"
    text_encoder: str | None = None
    class_names: tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    task_sampling: dict[str, dict[str, Any]] = field(default_factory=dict)
    blend_given: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT


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
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # no network, no such name, no permission: the library has many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"There is no folder {name!r}, and it could not be fetched from the hub: {reason}") from None


# ------------------------------------------------------------------------------------------------------ reading


def load_index(name_or_folder: str | os.PathLike[str]) -> ModelIndex:
    """Read and check `model_index.json`."""
    path = resolve(name_or_folder) / INDEX
    values = read_json(path)
    if nova.is_pipeline(values):
        return ModelIndex(**nova.describe_pipeline(path.parent, values))
    index = dataclass_from_dict(ModelIndex, values, str(path))
    if index.format != FORMAT:
        raise UserError(f"{path} has format {index.format!r}, this version reads {FORMAT!r}.")
    if min(index.num_frames, index.height, index.width) < 1 or not 0 < index.fps < float("inf"):
        raise UserError(f"{path}: num_frames, height, width and fps must be positive.")
    return index


def load_tokenizer(name_or_folder: str | os.PathLike[str]) -> VideoTokenizer:
    """The tokenizer of a model folder, float32 on the CPU, in evaluation mode."""
    folder = tokenizer_folder(name_or_folder)
    published = read_json(folder / CONFIG).get("_class_name") is not None
    tokenizer = load_vae(folder) if published else load_component(folder)
    if not isinstance(tokenizer, VideoTokenizer):
        raise UserError(f"{folder} holds a {type(tokenizer).__name__}, which is no tokenizer.")
    return tokenizer


def load_model(name_or_folder: str | os.PathLike[str]) -> nn.Module:
    """The generating network of a model folder, float32 on the CPU, in evaluation mode."""
    folder = resolve(name_or_folder)
    values = read_json(folder / INDEX)
    if nova.is_pipeline(values):
        return nova.load_pipeline_model(folder, values)
    return load_component(model_folder(folder))


def tokenizer_folder(name_or_folder: str | os.PathLike[str]) -> Path:
    """Where the tokenizer of a model lies: in the model's own folder, or in the one it names."""
    folder = resolve(name_or_folder)
    for _ in range(4):  # a model may borrow its tokenizer from a folder that borrows it in turn
        named = load_index(folder).tokenizer
        path = Path(named)
        if not named.startswith(".") and not path.is_absolute():
            folder = resolve(named)
        elif (folder / path / INDEX).is_file():
            folder = folder / path
        else:
            return folder / path
    raise UserError(f"{folder / INDEX}: the tokenizer is named in a circle. Point it at a folder that holds one.")


def model_folder(name_or_folder: str | os.PathLike[str]) -> Path:
    folder = resolve(name_or_folder)
    named = load_index(folder).model
    if named is None:
        raise UserError(f"{os.fspath(name_or_folder)!r} is a tokenizer only; it can reconstruct but not generate.")
    return folder / named


def text_encoder_folder(name_or_folder: str | os.PathLike[str]) -> Path | None:
    """Where the encoder of a model's prompts lies, as an absolute path; None where the model has none."""
    folder = resolve(name_or_folder)
    named = load_index(folder).text_encoder
    return None if named is None else (folder / Path(named).expanduser()).resolve()


def load_component(folder: Path) -> nn.Module:
    """One part: `config.json` and `model.safetensors`. Shapes are compared before memory is spent."""
    with on_meta_device():
        network = build_component(folder)
    weights = read_weights(folder / WEIGHTS)
    _check_weights(network.state_dict(), weights, folder)
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
    name = values.pop("class", None)
    if not isinstance(name, str) or name not in CLASSES:
        hint = nearest(str(name), CLASSES) if name is not None else f"known: {', '.join(CLASSES)}."
        raise UserError(f"{path}: unknown class {name!r}: {hint}")
    module_name, class_name, config_name = CLASSES[name]
    module = import_module(module_name)
    config = dataclass_from_dict(getattr(module, config_name), values, str(path))
    try:
        with torch.random.fork_rng(devices=[]):
            return getattr(module, class_name)(config)
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        raise UserError(f"{path}: no {name} can be built from this configuration: {error}.") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; floating ones as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is missing: the folder is incomplete. Copy or train the model again.")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}. Copy the model again.") from None
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

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"class": type(module).__name__, **asdict(typing.cast(Any, module).config)})
    # Written by us rather than by safetensors, whose files nobody but their owner may read.
    (folder / WEIGHTS).write_bytes(save({key: _to_disk(value, half) for key, value in module.state_dict().items()}))


def _to_disk(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    if half and value.is_floating_point() and bool(value.half().isfinite().all()):
        value = value.half()  # beyond 65504 half precision has no number
    return value.clone().contiguous()


def save_pretrained(
    folder: str | os.PathLike[str],
    index: ModelIndex,
    tokenizer: nn.Module | None = None,
    model: nn.Module | None = None,
    recipe: Mapping[str, Any] | None = None,
    card: str | None = None,
    discriminator: nn.Module | None = None,
    half: bool = True,
) -> Path:
    """Write a model folder so that no reader ever sees part of it.

    Weights are rounded to half precision unless `half` is False.

    Everything goes to a temporary folder beside the target first. An existing folder keeps its other files
    (checkpoints, logs); the parts written here replace their older versions, the index last.
    """
    target = Path(folder)
    check_writable_folder(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        for name, part in (("tokenizer", tokenizer), ("model", model), ("discriminator", discriminator)):
            if part is not None:
                save_component(temporary / name, part, half)
        if recipe is not None:
            write_json(temporary / "recipe.json", recipe)
        if card is not None:
            (temporary / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        write_json(temporary / INDEX, asdict(index))
        target.mkdir(exist_ok=True)
        for entry in sorted(temporary.iterdir(), key=lambda entry: entry.name == INDEX):
            _replace(entry, target / entry.name, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _replace(source: Path, target: Path, temporary: Path) -> None:
    if target.is_dir():  # a folder cannot be renamed over another one: move the old one out of the way
        target.rename(temporary / f"{target.name}.old")
    os.replace(source, target)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_writable_folder(folder: Path) -> None:
    """Prove that a file can be made in a folder, or in its nearest existing parent, before any work starts."""
    nearest_parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest_parent):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot write into {str(folder)!r}: {reason}. Choose another place.") from None
