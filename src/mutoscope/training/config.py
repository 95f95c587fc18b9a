"""Recipes: complete, frozen descriptions of one training run, and their strict JSON form."""

import types
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mutoscope.errors import UserError
from mutoscope.models.magvit import MagvitConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig


@dataclass(frozen=True)
class OptimConfig:
    """Adam with decoupled weight decay, linear warm-up and one cosine (arXiv 2212.05199, appendix B).

    Weight decay acts on matrices of dense and attention layers only, never on embeddings, norms or biases.
    """

    peak_learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.96
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0


@dataclass(frozen=True)
class LoopConfig:
    """How long and in which portions to train.

    batch_size: clips per update, counted over all ranks and all micro-batches; it is split evenly into
      world size x `accumulation` parts, so neither changes which clips an update sees.
    ema_decay: decay of the averaged weights that are exported; None exports the raw weights.
    clip_norm: largest allowed global gradient norm; None leaves gradients alone.
    threads: CPU threads of torch; None keeps torch's own choice.
    """

    num_steps: int
    batch_size: int
    accumulation: int = 1
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 500
    ema_decay: float | None = None
    clip_norm: float | None = None
    autocast: Literal["none", "bf16"] = "none"
    num_workers: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from: the built-in world ("shapes"), a folder of videos, or a folder of cached tokens.

    path: the folder, for "folder" and "tokens"; unused for "shapes".
    seed, fps, max_objects, controllable: the built-in world only.
    frame_stride: source frames per clip frame, for "folder" only.
    """

    kind: Literal["shapes", "folder", "tokens"] = "shapes"
    path: str | None = None
    num_frames: int = 16
    height: int = 32
    width: int = 32
    frame_stride: int = 1
    seed: int = 0
    fps: int = 8
    max_objects: int = 3
    controllable: bool = False


@dataclass(frozen=True)
class TokenizerRecipe:
    """Stage 1: everything that decides a tokenizer training run."""

    name: str
    data: DataConfig
    tokenizer: VQ3DConfig
    optim: OptimConfig
    loop: LoopConfig


@dataclass(frozen=True)
class ModelRecipe:
    """Stage 2: a video model on the tokens of a frozen tokenizer.

    tokenizer: bundled name or folder of the tokenizer.
    task_weights: how often each task gets a whole batch (see `sampling.tasks.balanced_task_order`).
    cache_clips: clips encoded once into the token cache before training starts; training cycles through them.
    """

    name: str
    tokenizer: str
    data: DataConfig
    model: MagvitConfig
    optim: OptimConfig
    loop: LoopConfig
    task_weights: dict[str, float] = field(default_factory=lambda: {"class-conditional": 1.0, "frame-prediction": 1.0})
    cache_clips: int = 40_000


@dataclass(frozen=True)
class FeaturesRecipe:
    """The small network behind every `shapes-...` metric, trained on the built-in world's labels and attributes."""

    name: str
    data: DataConfig
    optim: OptimConfig
    loop: LoopConfig


Recipe = TokenizerRecipe | ModelRecipe | FeaturesRecipe
RECIPE_CLASSES = {cls.__name__: cls for cls in (TokenizerRecipe, ModelRecipe, FeaturesRecipe)}


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, with its class under "recipe"."""
    return {"recipe": type(recipe).__name__} | _plain(asdict(recipe))


def from_json(values: dict[str, Any]) -> Recipe:
    """Inverse of `to_json`. Unknown, missing or wrongly typed fields raise UserError naming the field."""
    values = dict(values)
    cls = RECIPE_CLASSES.get(values.pop("recipe", None))
    if cls is None:
        raise UserError(f'A recipe file needs "recipe" set to one of {", ".join(RECIPE_CLASSES)}.')
    return config_from_json(cls, values)


def config_from_json(cls: type, values: Any, where: str = "") -> Any:
    """Builds the dataclass `cls` from JSON values; `where` is the dotted name used in messages."""
    if not isinstance(values, dict):
        raise UserError(f"{where or 'A recipe'} must be an object with the fields of {cls.__name__}, found {values!r}.")
    known = {f.name: f for f in fields(cls) if f.init}
    prefix = f"{where}." if where else ""
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"Unknown field {prefix}{unknown[0]}; {cls.__name__} has {', '.join(known)}.")
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - values.keys()):
        raise UserError(f"Missing field {prefix}{missing[0]} of {cls.__name__}.")
    hints = get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return config_from_json(hint, value, where)
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in args else _convert(args[0], value, where)
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) == len(value):
            return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {k: _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise UserError(f"{where} must be {getattr(hint, '__name__', hint)}, found {value!r}.")


def _plain(value: Any) -> Any:
    """Tuples become lists, as they do in a JSON file, so that saved and fresh recipes compare equal."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
