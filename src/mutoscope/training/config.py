"""Recipes: complete, frozen descriptions of one training run, and their strict JSON form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeVar

from mutoscope.data.base import DataConfig
from mutoscope.data.sources.registry import kind_of, of_kind, source_class, without_former_fields
from mutoscope.errors import UserError
from mutoscope.json_config import best_match, dataclass_from_dict
from mutoscope.models.base import ModelConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, GanLoss, PatchDiscriminatorConfig
from mutoscope.tokenizers.inflation import Inflation
from mutoscope.tokenizers.vq2d import VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig

TokenizerConfig = VQ3DConfig | VQ2DConfig | Causal3DConfig
Options = dict[str, object]  # settings of a sampler as JSON values, by name; its own configuration checks them


@dataclass(frozen=True)
class OptimConfig:
    """Adam with decoupled weight decay, linear warm-up and one cosine (arXiv 2212.05199, appendix B).

    Weight decay acts on matrices of dense and attention layers only, never on norms or biases, and on embeddings only
    with `decay_embeddings` (as LlamaGen's scripts do); with `decay_all` (as NOVA's do) on everything but norms, with
    `decay_tensors` (as MAR's do) on everything of more than one dimension outside a model's head.
    muon_learning_rate: peak rate of Muon for those matrices and for convolution kernels; None: Adam for everything.
    schedule: one cosine over the run, or the peak rate all the time, either after the warm-up.
    """

    peak_learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.96
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    muon_learning_rate: float | None = None
    decay_embeddings: bool = False
    decay_all: bool = False
    decay_tensors: bool = False
    schedule: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True)
class LoopConfig:
    """Length of a run, split of its batches, and its logs.

    batch_size: clips per update, counted over all ranks and all micro-batches; it is split evenly into
      world size x `accumulation` parts, so neither changes which clips an update sees.
    ema_decay: decay of the averaged weights that are exported, updated every `ema_every` updates; None exports the raw
      weights.
    clip_norm: largest allowed global gradient norm; None leaves gradients alone.
    threads: CPU threads of torch; None keeps torch's own choice.
    report_to: where losses and sample sheets are sent beside log.jsonl and samples/: TensorBoard (into the run's
      folder tensorboard), Weights & Biases (project "mutoscope"); both need the extra [tracking].
    """

    num_steps: int
    batch_size: int
    accumulation: int = 1
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 500
    ema_decay: float | None = None
    ema_every: int = 1
    clip_norm: float | None = None
    autocast: Literal["none", "bf16"] = "none"
    num_workers: int = 1
    threads: int | None = None
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training of stage 1: the discriminator and its losses (arXiv 2212.05199, §3.1 and Tab. 8).

    start_step: update at which adversarial training starts; before it only the other losses count.
    discriminator_weight: of the discriminator's own loss.
    r1_weight: of ‖∂D(v)/∂v‖², without the customary ½.
    lecam_weight: the paper uses LeCam and gives no weight; every released configuration has 0.
    perceptual_weights: local file of a torchvision ResNet or VGG-16; None trains without the perceptual term, which is
      also what MAGVIT's released code amounts to (its network comes without weights and with a last layer of zeros).
    perceptual_heads: local file of LPIPS' linear weights for that VGG-16, which make the distance LPIPS (LlamaGen's).
    """

    discriminator: DiscriminatorConfig | PatchDiscriminatorConfig
    gan_loss: GanLoss = "non-saturating"
    gan_weight: float = 0.1
    discriminator_weight: float = 1.0
    start_step: int = 0
    r1_weight: float = 10.0
    lecam_weight: float = 0.0
    lecam_decay: float = 0.999
    perceptual_weight: float = 0.1
    perceptual_weights: str | None = None
    perceptual_heads: str | None = None

    def __post_init__(self) -> None:
        if self.perceptual_heads is not None and self.perceptual_weights is None:
            raise UserError("perceptual_heads are for a VGG-16: name its file in perceptual_weights too.")


@dataclass(frozen=True)
class TokenizerRecipe:
    """Stage 1: everything that decides a tokenizer training run; without `adversarial`, reconstruction alone.

    start_from: folder of a 2D-VQ (see `VQ3DConfig.per_frame`) whose weights, and those of its discriminator if it has
      one, are inflated into this tokenizer; None starts from random weights.
    protocol: name of the evaluation protocol its figures follow.
    """

    name: str
    data: DataConfig
    tokenizer: TokenizerConfig
    optim: OptimConfig
    loop: LoopConfig
    adversarial: AdversarialConfig | None = None
    start_from: str | None = None
    inflation: Inflation = "central"
    protocol: str = "shapes"


@dataclass(frozen=True)
class ModelRecipe:
    """Stage 2: a video model on the tokens of a frozen tokenizer.

    tokenizer: bundled name or folder of the tokenizer.
    task_weights: how often each task gets a whole batch (see `sampling.tasks.balanced_task_order`); the
      model's configuration lists the tasks it can be trained for.
    cache_clips: clips encoded once into the token cache before training starts; training cycles through them.
    start_from: bundled name or folder of a model of the same shapes whose weights training starts from; None starts
      from random weights.
    sampling: options of the sampler that become the model's defaults.
    task_sampling: other defaults for some tasks, by their names (MAGVIT only).
    blend_given: the conditioning region is blended into generated clips without a seam, unless a call says otherwise
      (MAGVIT only).
    text_encoder: folder of the text encoder, or "words": one without weights, built from the captions' own words.
    motion: condition the model on the optical flow of every clip.
    frozen: parameters whose names begin with one of these are not trained.
    protocol: name of the evaluation protocol its figures follow.
    """

    name: str
    tokenizer: str
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    loop: LoopConfig
    task_weights: dict[str, float] = field(default_factory=lambda: {"class-conditional": 1.0, "frame-prediction": 1.0})
    cache_clips: int = 40_000
    sampling: Options = field(default_factory=dict)
    protocol: str = "shapes"
    start_from: str | None = None
    text_encoder: str | None = None
    motion: bool = False
    frozen: tuple[str, ...] = ()
    task_sampling: dict[str, Options] = field(default_factory=dict)
    blend_given: bool = False


@dataclass(frozen=True)
class FeaturesRecipe:
    """The feature network of every `shapes-...` metric, trained on labels and attributes of the synthetic dataset."""

    name: str
    data: DataConfig
    optim: OptimConfig
    loop: LoopConfig


Recipe = TokenizerRecipe | ModelRecipe | FeaturesRecipe
RECIPE_CLASSES: dict[str, type[Recipe]] = {cls.__name__: cls for cls in (TokenizerRecipe, ModelRecipe, FeaturesRecipe)}
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def with_data(recipe: AnyRecipe, kind: str | None = None, path: str | None = None) -> AnyRecipe:
    """The recipe with data of another kind, or of the kind found at `path`.

    Settings that both kinds have, such as frames and sizes, stay as the recipe has them. Raises UserError for an
    unknown kind, or a path that holds no data.
    """
    if kind is None:
        if path is None:
            return recipe
        kind = kind_of(path)
    return replace(recipe, data=of_kind(recipe.data, kind, path))


def to_json(recipe: Recipe) -> dict[str, object]:
    """The recipe as plain JSON values, with its class under "recipe"."""
    return {"recipe": type(recipe).__name__} | {name: _plain(value) for name, value in asdict(recipe).items()}


def from_json(values: Mapping[str, object], where: str, model_configs: Sequence[type[ModelConfig]]) -> Recipe:
    """Inverse of `to_json`. `where` begins the message of every error.

    model_configs: the configurations that a model may have; the one whose keys fit best is taken.
    Unknown, missing or wrongly typed keys raise UserError naming the key. Recipes of earlier versions, which held the
    data settings of all kinds, are read too.
    """
    values = dict(values)
    cls = RECIPE_CLASSES.get(str(values.pop("recipe", None)))
    if cls is None:
        raise UserError(f'{where}: "recipe" must be set to one of {", ".join(RECIPE_CLASSES)}.')
    if isinstance(data := values.get("data"), Mapping):
        try:
            values["data"] = without_former_fields(data)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    choices = {
        DataConfig: lambda found: source_class(found.get("kind", "shapes")),
        ModelConfig: lambda found: best_match(model_configs, found),
    }
    return dataclass_from_dict(cls, values, where, choices)


def completed(values: Mapping[str, object], like: Recipe) -> Mapping[str, object]:
    """A saved recipe with the defaults of fields that did not exist yet when it was saved; else as it is.

    like: a recipe with the same class of model.
    """
    model_configs = (type(like.model),) if isinstance(like, ModelRecipe) else ()
    try:
        return to_json(from_json(values, "The recipe", model_configs))
    except UserError:
        return values


def _plain(value: object) -> object:
    """Tuples become lists, as they do in a JSON file, so that saved and fresh recipes compare equal."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
