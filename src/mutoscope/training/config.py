"""Recipes: complete, frozen descriptions of one training run, and their strict JSON form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeVar

from mutoscope.checks import COUNT, DECAY, NOT_NEGATIVE, POSITIVE, SEED, SHARE, Range, check_fields
from mutoscope.data.base import DataConfig
from mutoscope.data.sources.registry import kind_of, of_kind, source_class, without_former_fields
from mutoscope.errors import UserError
from mutoscope.json_config import best_match, dataclass_from_dict
from mutoscope.layers.lora import LoRAConfig
from mutoscope.models.base import ModelConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, GanLoss, PatchDiscriminatorConfig
from mutoscope.tokenizers.inflation import Inflation
from mutoscope.tokenizers.vq2d import VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig

TokenizerConfig = VQ3DConfig | VQ2DConfig | Causal3DConfig
Options = dict[str, object]  # settings of a sampler as JSON values, by name; its own configuration checks them


OPTIM_RANGES = {
    "peak_learning_rate": NOT_NEGATIVE,
    "beta1": DECAY,
    "beta2": DECAY,
    "eps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "muon_learning_rate": NOT_NEGATIVE,
}
LOOP_RANGES = {
    "num_steps": COUNT,
    "batch_size": COUNT,
    "accumulation": COUNT,
    "seed": SEED,
    "log_every": COUNT,
    "sample_every": COUNT,
    "checkpoint_every": COUNT,
    "checkpoint_minutes": NOT_NEGATIVE,
    "checkpoints_total_limit": COUNT,
    "sheet_share": SHARE,
    "ema_decay": DECAY,
    "ema_every": COUNT,
    "clip_norm": POSITIVE,
    "num_workers": Range(0, 1024),
    "threads": Range(1, 4096),
    "validation_share": Range(low=0, below=1),
    "validate_every": COUNT,
    "validation_clips": COUNT,
    "recognisable_after": COUNT,
}
ADVERSARIAL_RANGES = {
    "gan_weight": NOT_NEGATIVE,
    "discriminator_weight": NOT_NEGATIVE,
    "start_step": NOT_NEGATIVE,
    "r1_weight": NOT_NEGATIVE,
    "lecam_weight": NOT_NEGATIVE,
    "lecam_decay": DECAY,
    "perceptual_weight": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class OptimConfig:
    """Adam with decoupled weight decay, linear warm-up and one cosine (arXiv 2212.05199, appendix B).

    Weight decay acts on matrices of dense and attention layers, not on norms or biases, unless a field says otherwise.
    """

    peak_learning_rate: float = 1e-4
    """learning rate at the end of the warm-up"""
    beta1: float = 0.9
    """decay of Adam's first moment"""
    beta2: float = 0.96
    """decay of Adam's second moment"""
    eps: float = 1e-8
    """added to Adam's denominator"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    warmup_steps: int = 0
    """updates of linear warm-up"""
    muon_learning_rate: float | None = None
    """peak rate of Muon for those matrices and for convolution kernels; None: Adam for everything"""
    decay_embeddings: bool = False
    """weight decay acts on embeddings too, as in LlamaGen's scripts"""
    decay_all: bool = False
    """weight decay acts on everything but norms, as in NOVA's scripts"""
    decay_tensors: bool = False
    """weight decay acts on everything of more than one dimension outside a model's head, as in MAR's scripts"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """after the warm-up: one cosine over the run, or the peak rate"""

    def __post_init__(self) -> None:
        check_fields(self, OPTIM_RANGES)


@dataclass(frozen=True)
class LoopConfig:
    """Length of a run, split of its batches, and its logs."""

    num_steps: int
    """updates of the weights"""
    batch_size: int
    """clips per update, over all ranks and micro-batches: neither changes an update, but for the rounding of sums"""
    accumulation: int = 1
    """micro-batches into which each rank splits its share of a batch"""
    seed: int = 0
    """seed of initial weights, of the order of clips, and of every draw of the loss"""
    log_every: int = 20
    """updates between two lines of the log"""
    sample_every: int = 500
    """updates between two contact sheets"""
    checkpoint_every: int = 500
    """updates between two checkpoints"""
    ema_decay: float | None = None
    """decay of the averaged weights that are exported; None exports the raw weights"""
    ema_every: int = 1
    """updates between two steps of the average"""
    clip_norm: float | None = None
    """largest allowed global gradient norm; None: no clipping"""
    autocast: Literal["none", "bf16"] = "none"
    """bf16: matrix products and convolutions in bfloat16"""
    compile: bool = False
    """compile the network's blocks with torch.compile: a minute or more of compiling, and losses that differ by
    rounding; pays on GPUs and for networks of many small operations (docs/speed.md); where no compiler works, training
    goes on without"""
    num_workers: int = 1
    """processes that read clips"""
    threads: int | None = None
    """CPU threads of torch; None keeps torch's own choice"""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """also send losses and contact sheets to TensorBoard (OUT/tensorboard) or Weights & Biases (project "mutoscope");
    both need the extra [tracking]"""
    ema_warmup: bool = False
    """averaged weights start fast: the decay is min(ema_decay, (1 + t) / (10 + t)) after t steps of the average, so
    that they are as good as the raw weights from the first updates on"""
    validation_share: float = 0.0
    """share of the recordings (of an old token cache: the clips) held back from training; with it the loss on these is
    logged, and the better of raw and averaged weights is exported; 0: no validation"""
    validate_every: int = 500
    """updates between two validations; the first contact sheets and every later one come with a validation too"""
    validation_clips: int = 64
    """largest number of held-back clips in a validation"""
    recognisable_after: int | None = None
    """updates after which the recipe's output was recognisable as measured; for the estimate after the first minute"""
    checkpoint_minutes: float = 10.0
    """minutes between two checkpoints, beside those by updates; 0: by updates only"""
    checkpoints_total_limit: int = 2
    """newest checkpoints that are kept, beside the one with the lowest held-back loss"""
    sheet_share: float = 0.02
    """largest share of the time that contact sheets may take: one that would exceed it is drawn later"""

    def __post_init__(self) -> None:
        check_fields(self, LOOP_RANGES)


@dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training of stage 1: the discriminator and its losses (arXiv 2212.05199, §3.1 and Tab. 8)."""

    discriminator: DiscriminatorConfig | PatchDiscriminatorConfig
    gan_loss: GanLoss = "non-saturating"
    """form of the adversarial loss"""
    gan_weight: float = 0.1
    """weight of the generator's adversarial loss"""
    discriminator_weight: float = 1.0
    """weight of the discriminator's own loss"""
    start_step: int = 0
    """update at which adversarial training starts; before it only the other losses count"""
    r1_weight: float = 10.0
    """weight of the squared gradient norm of D at real clips, without the customary factor 1/2"""
    lecam_weight: float = 0.0
    """weight of LeCam regularisation; the paper uses it without a weight, and every released configuration has 0"""
    lecam_decay: float = 0.999
    """decay of LeCam's averages of the logits"""
    perceptual_weight: float = 0.1
    """weight of the perceptual loss"""
    perceptual_weights: str | None = None
    """local file of a torchvision ResNet or VGG-16; None trains without the perceptual loss, which the released code
    amounts to (its network comes without weights and with a last layer of zeros)"""
    perceptual_heads: str | None = None
    """local file of LPIPS' linear weights for that VGG-16, which turn the distance into LPIPS"""

    def __post_init__(self) -> None:
        check_fields(self, ADVERSARIAL_RANGES)
        if self.perceptual_heads is not None and self.perceptual_weights is None:
            raise UserError("perceptual_heads are for a VGG-16: name its file in perceptual_weights too.")


ROLLOUT_RANGES = {
    "share": SHARE,
    "start_step": NOT_NEGATIVE,
    "context_frames": COUNT,
    "num_decoding_steps": COUNT,
    "num_diffusion_steps": COUNT,
}


@dataclass(frozen=True)
class RolloutConfig:
    """Corrupted context from the model's own rollouts, so that streams stay alive beyond the length of training.

    Scheduled sampling (arXiv 1506.03099) at the level of frames: the weights of the moment continue the first frames
    of clips under the clips' own conditions, and later frames see these frames as their history, while the targets
    stay those of the recording. Self Forcing (arXiv 2506.08009) rolls out in the same way, and compares
    distributions instead.
    """

    share: float = 0.0
    """share of the updates in which the history of all clips is the model's own; 0: none"""
    start_step: int = 500
    """update from which on: the rollouts of a network that has learnt nothing are noise"""
    context_frames: int = 8
    """the true frames before a rollout number 1 to this many, drawn for every update"""
    num_decoding_steps: int = 2
    """sets of tokens per frame in rollouts; fewer than in sampling, to save time"""
    num_diffusion_steps: int = 6
    """denoising steps per token in rollouts"""

    def __post_init__(self) -> None:
        check_fields(self, ROLLOUT_RANGES)


@dataclass(frozen=True)
class TokenizerRecipe:
    """Stage 1: everything that decides a tokenizer training run; without `adversarial`, reconstruction only."""

    name: str
    """name of the recipe"""
    data: DataConfig
    tokenizer: TokenizerConfig
    optim: OptimConfig
    loop: LoopConfig
    adversarial: AdversarialConfig | None = None
    start_from: str | None = None
    """folder of a 2D-VQ whose weights, and those of its discriminator if it has one, are inflated into this tokenizer;
    None: random weights"""
    inflation: Inflation = "central"
    """how a 2D kernel becomes a 3D kernel"""
    protocol: str = "shapes"
    """evaluation protocol of the recipe's figures"""
    fits_data: bool = False
    """frame size, rate and windows follow the recording, instead of being the recipe's own"""


@dataclass(frozen=True)
class ModelRecipe:
    """Stage 2: a video model on the tokens of a frozen tokenizer."""

    name: str
    """name of the recipe"""
    tokenizer: str
    """bundled name or folder of the tokenizer, or the name of a recipe by which one is trained first"""
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    loop: LoopConfig
    task_weights: dict[str, float] = field(default_factory=lambda: {"class-conditional": 1.0, "frame-prediction": 1.0})
    """how often each task gets a whole batch; the model's configuration decides which tasks there are"""
    cache_clips: int = 40_000
    """clips encoded once into the token cache before training starts; training cycles through them"""
    sampling: Options = field(default_factory=dict)
    """options of the sampler that become the model's defaults"""
    protocol: str = "shapes"
    """evaluation protocol of the recipe's figures"""
    start_from: str | None = None
    """bundled name or folder of a model of the same family and sizes whose weights training starts from, with other
    classes, words, actions or frame sizes where the family allows it; None: random weights"""
    text_encoder: str | None = None
    """folder of the text encoder, or "words": one without weights, built from the captions' own words"""
    motion: bool = False
    """condition the model on the optical flow of every clip"""
    frozen: tuple[str, ...] = ()
    """parameters whose names begin with one of these are not trained"""
    lora: LoRAConfig | None = None
    """train low-rank changes of the matrices, and of the rest only what is new; they are merged on export"""
    task_sampling: dict[str, Options] = field(default_factory=dict)
    """other defaults of the sampler for some tasks, by their names"""
    blend_given: bool = False
    """blend the conditioning region into generated clips without a seam, unless a call says otherwise"""
    fits_data: bool = False
    """frame size, rate and windows follow the recording, instead of being the recipe's own"""
    tokenizer_steps: int | None = None
    """updates of a tokenizer that is trained first; None: as its own recipe says"""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        check_fields(self, {"cache_clips": COUNT, "tokenizer_steps": COUNT})
        for task, weight in self.task_weights.items():
            NOT_NEGATIVE.check(f"task_weights.{task}", weight)
        if not any(self.task_weights.values()):
            raise UserError(f"task_weights must name a task with a positive weight, found {self.task_weights}.")


@dataclass(frozen=True)
class FeaturesRecipe:
    """The feature network of every `shapes-...` metric, trained on labels and attributes of the synthetic dataset."""

    name: str
    """name of the recipe"""
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
