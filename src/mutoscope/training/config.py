"""Recipes: complete, frozen descriptions of one training run, and their strict JSON form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mutoscope.data.sources.datasets.catalog import KINDS, DatasetKind, Split
from mutoscope.errors import UserError
from mutoscope.json_config import dataclass_from_dict
from mutoscope.models.magi import MAX_INTERVAL, MAGIConfig
from mutoscope.models.magvit import MagvitConfig
from mutoscope.models.nova import NOVAConfig
from mutoscope.models.par import PARConfig
from mutoscope.tokenizers.causal3d import Causal3DConfig
from mutoscope.tokenizers.discriminator import DiscriminatorConfig, GanLoss, PatchDiscriminatorConfig
from mutoscope.tokenizers.inflation import Inflation
from mutoscope.tokenizers.vq2d import VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3DConfig

TokenizerConfig = VQ3DConfig | VQ2DConfig | Causal3DConfig
ModelConfig = MagvitConfig | PARConfig | NOVAConfig | MAGIConfig


@dataclass(frozen=True)
class OptimConfig:
    """Adam with decoupled weight decay, linear warm-up and one cosine (arXiv 2212.05199, appendix B).

    Weight decay acts on matrices of dense and attention layers only, never on norms or biases, and on embeddings only
    with `decay_embeddings` (as LlamaGen's scripts do); with `decay_all` (as NOVA's do) on everything but norms, with
    `decay_tensors` (as MAR's do) on everything of more than one dimension outside a model's head.
    muon_learning_rate: peak rate of Muon for those matrices and for convolution kernels; None: Adam for everything.
    schedule: one cosine over the run, or the peak rate all the time, either behind the warm-up.
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
    """How long and in which portions to train.

    batch_size: clips per update, counted over all ranks and all micro-batches; it is split evenly into
      world size x `accumulation` parts, so neither changes which clips an update sees.
    ema_decay: decay of the averaged weights that are exported, updated every `ema_every` updates; None exports the raw
      weights.
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
    ema_every: int = 1
    clip_norm: float | None = None
    autocast: Literal["none", "bf16"] = "none"
    num_workers: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from: the built-in world ("shapes"), a folder of videos or of images, cached tokens, or a data
    set in its own layout (docs/datasets.md).

    path: the folder, for all but "shapes".
    split, fold: of a data set; `fold` is UCF-101's number of the split lists.
    windows, crops, mirrored: data sets of videos only: how many clips, evenly spread over its time and its longer side,
      are made of every video, and whether each comes a second time mirrored (see `data.clips.ClipDataset`).
    random_crops: data sets and "images" only, for tokenizers: another crop each time, of videos also another start, and
      with `mirrored` mirrored half of the time; images are scaled and mirrored at random too (`RandomCrops`).
    ten_crops: images only: ten crops of every image (see `data.images`) instead of the middle.
    seed, max_objects, controllable: the built-in world only, but for the seed of random crops.
    fps: frames per second of the clips as they are shown; the built-in world moves accordingly.
    frame_stride: source frames per clip frame, for videos only.
    max_interval: frames lie 1 to this many (strides) apart, drawn anew for every clip; not for "images".
    mixed: "shapes" only: every second clip comes from the controllable world, with its actions.
    max_jump: "shapes" only: two clips of every four leave out 1 to this many frames behind their first one, as a window
      that keeps the first frame does (`window_mode` "anchored"); 0: none does.
    flawed_history: "shapes" only: where clips that jump are history, some of their frames show wrong shapes; for
      MAGI with complete teacher forcing.
    """

    kind: Literal["shapes", "folder", "images", "tokens", DatasetKind] = "shapes"
    path: str | None = None
    num_frames: int = 16
    height: int = 32
    width: int = 32
    frame_stride: int = 1
    split: Split = "train"
    fold: int = 1
    windows: int = 1
    crops: int = 1
    mirrored: bool = False
    random_crops: bool = False
    ten_crops: bool = False
    seed: int = 0
    fps: int = 8
    max_objects: int = 3
    controllable: bool = False
    max_interval: int = 1
    mixed: bool = False
    max_jump: int = 0
    flawed_history: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_interval <= MAX_INTERVAL:
            raise UserError(f"max_interval must lie between 1 and {MAX_INTERVAL}, found {self.max_interval}.")
        if (self.max_interval > 1 or self.mixed or self.max_jump) and self.controllable:
            raise UserError("max_interval, mixed and max_jump are for the free world: leave controllable out.")
        if self.max_jump < 0 or (self.max_jump and (self.kind not in ("shapes", "tokens") or self.num_frames < 3)):
            raise UserError(
                "max_jump is for the built-in world and clips of at least 3 frames, and not negative; found "
                f"{self.max_jump} for {self.num_frames} frames of kind {self.kind!r}."
            )
        if self.flawed_history and not self.max_jump:
            raise UserError("flawed_history is for clips that jump: give max_jump too.")
        images, videos = self.kind in ("images", "imagenet"), self.kind in KINDS and self.kind != "imagenet"
        if self.random_crops and (self.ten_crops or not (images or videos)):
            raise UserError(
                'random_crops are for data sets and for kind "images", without ten_crops: leave one of them out.'
            )
        evenly = self.windows != 1 or self.crops != 1
        if (evenly or self.mirrored) and not videos:
            raise UserError(f"windows, crops and mirrored are for data sets of videos; found kind {self.kind!r}.")
        if evenly and self.random_crops:
            raise UserError("random_crops draw windows and crops at random: leave windows and crops at 1.")


@dataclass(frozen=True)
class AdversarialConfig:
    """The game of stage 1: the discriminator and the weights of its losses (arXiv 2212.05199, §3.1 and Tab. 8).

    start_step: update from which the players meet; before it only the other losses count.
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
            raise UserError("perceptual_heads belong to a VGG-16: name its file in perceptual_weights too.")


@dataclass(frozen=True)
class TokenizerRecipe:
    """Stage 1: everything that decides a tokenizer training run; without `adversarial`, reconstruction alone.

    start_from: folder of a 2D-VQ (see `VQ3DConfig.per_frame`) whose weights, and those of its discriminator if it has
      one, are inflated into this tokenizer; None starts from random weights.
    protocol: name of the evaluation that its figures follow.
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
    task_weights: how often each task gets a whole batch (see `sampling.tasks.balanced_task_order`); models other than
      MAGVIT have one task, class-conditional or text-conditional.
    cache_clips: clips encoded once into the token cache before training starts; training cycles through them.
    start_from: bundled name or folder of a model of the same shapes whose weights training starts from; None starts
      from random weights.
    sampling: options of the sampler that become the model's defaults.
    task_sampling: other defaults for some tasks, by their names (MAGVIT only).
    blend_given: what a task is given is put into the model's results without a seam, unless a call says otherwise
      (MAGVIT only).
    text_encoder: folder of the encoder of captions, or "words": one without weights, made of the captions' own words.
    motion: tell the model the optical flow of every clip.
    frozen: parameters whose names begin so are not trained.
    protocol: name of the evaluation that its figures follow.
    """

    name: str
    tokenizer: str
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    loop: LoopConfig
    task_weights: dict[str, float] = field(default_factory=lambda: {"class-conditional": 1.0, "frame-prediction": 1.0})
    cache_clips: int = 40_000
    sampling: dict[str, Any] = field(default_factory=dict)
    protocol: str = "shapes"
    start_from: str | None = None
    text_encoder: str | None = None
    motion: bool = False
    frozen: tuple[str, ...] = ()
    task_sampling: dict[str, dict[str, Any]] = field(default_factory=dict)
    blend_given: bool = False


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


def from_json(values: Mapping[str, Any], where: str = "The recipe") -> Recipe:
    """Inverse of `to_json`. Unknown, missing or wrongly typed keys raise UserError naming the key, after `where`."""
    values = dict(values)
    cls = RECIPE_CLASSES.get(str(values.pop("recipe", None)))
    if cls is None:
        raise UserError(f'{where}: "recipe" must be set to one of {", ".join(RECIPE_CLASSES)}.')
    return dataclass_from_dict(cls, values, where)


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe with the defaults of fields that did not exist yet when it was saved; else as it is."""
    try:
        return to_json(from_json(values))
    except UserError:
        return values


def _plain(value: Any) -> Any:
    """Tuples become lists, as they do in a JSON file, so that saved and fresh recipes compare equal."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
