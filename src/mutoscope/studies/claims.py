"""Common parts of the papers' comparisons at small scale: equal training, then shapes-FVD on the same held-out clips.

A run is a folder: one sub-folder per training, one JSON file per result, so it continues after an interruption.
"""

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Generic, Self, TypedDict, TypeVar, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.networks.shapes_classifier import Readings, ShapesClassifier
from mutoscope.evaluation.sources.shapes_clips import RealClips, real_clips
from mutoscope.hub import write_json
from mutoscope.models.base import ModelConfig, VideoModel
from mutoscope.runs.tokenize import tokenize
from mutoscope.tokenizers.base import VideoTokenizer, channels_last
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig
from mutoscope.training.trainer import Batch, train_model
from mutoscope.writing import new_folder

# Betas and weight decay of MAGVIT (arXiv 2212.05199, appendix B); higher rates for small networks and few updates.
OPTIMIZER = OptimConfig(1.5e-3, 0.9, 0.96, weight_decay=0.045, warmup_steps=100, muon_learning_rate=3e-3)


@dataclass(frozen=True)
class Variant:
    """One row of a paper's tables: its name, and where the paper shows it. Papers add what differs."""

    name: str
    paper: str


VariantT = TypeVar("VariantT", bound=Variant)


class Measurement(TypedDict):
    """One measurement of a trained variant; papers add further numbers, or lists of numbers.

    per_task: shapes-FVD by task; shapes_fvd: their mean over the tasks trained for.
    """

    num_decoding_steps: int
    shapes_fvd: float
    per_task: dict[str, float]


class Result(TypedDict):
    """All measurements of one variant trained from one seed."""

    variant: str
    paper: str
    seed: int
    results: Sequence[Measurement]


class SummaryRow(TypedDict):
    """Means over seeds of one variant at one number of decoding steps; further numbers are averaged likewise."""

    variant: str
    paper: str
    num_decoding_steps: int
    shapes_fvd: float
    shapes_fvd_per_seed: list[float]
    shapes_fvd_per_task: dict[str, float]


class ClaimsReport(TypedDict):
    """Contents of `claims.json`, beside the conclusions of the paper."""

    settings: dict[str, object]
    real_against_real: float
    rows: list[SummaryRow]


@dataclass(frozen=True)
class ClaimsConfig:
    """Settings of all variants. The defaults take about 8 minutes per training on two CPU cores (estimated)."""

    tokenizer: str = "vq-shapes"
    seeds: tuple[int, ...] = (0, 1)
    num_steps: int = 1_000
    batch_size: int = 16
    num_train_clips: int = 6_000
    num_clips: int = 128
    num_layers: int = 3
    hidden_size: int = 128


@dataclass
class Laboratory(ABC, Generic[VariantT]):
    """What every training and every measurement shares. Everything runs on the tokenizer's device."""

    config: ClaimsConfig
    out: Path
    tokenizer: VideoTokenizer
    cache: TokenCache
    classifier: ShapesClassifier
    real: RealClips
    readings: Readings
    """What the classifier reads in `real`."""

    settings: ClassVar[type[ClaimsConfig]] = ClaimsConfig
    tasks: ClassVar[tuple[str, ...]] = ()
    """Tasks whose condition videos the token cache holds."""

    @classmethod
    @abstractmethod
    def variants(cls) -> tuple[VariantT, ...]:
        """The rows of the paper's tables."""

    @classmethod
    def open(
        cls, config: ClaimsConfig, out: Path, classifier: ShapesClassifier, device: str | torch.device = "cpu"
    ) -> Self:
        """Encode the training clips, unless `out` holds them, and classify the real ones."""
        tokenizer = open_tokenizer(config, device)
        data = clip_data(config)
        cache = tokenize(
            tokenizer,
            config.tokenizer,
            data.open(),
            out / "tokens",
            num_clips=config.num_train_clips,
            tasks=cls.tasks,
            data=data.describe() | {"seed": data.seed},
        )
        real = real_clips(data.world(HELD_BACK_SEED).config, 0, config.num_clips)
        return cls(config, out, tokenizer, cache, classifier, real, classifier.read(real.video))

    @property
    def device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        t, h, w = self.cache.info.clip_shape
        return t, h, w

    def real_against_real(self) -> float:
        """shapes-FVD of as many further real clips."""
        config = clip_data(self.config).world(HELD_BACK_SEED).config
        return self.distance_of(real_clips(config, self.config.num_clips, self.config.num_clips).video)

    def video(self, clips: UInt8[Tensor, "n t h w 3"]) -> Float[Tensor, "n 3 t h w"]:
        """Pixels in [-1, 1] on the device."""
        return self.tokenizer.from_uint8(clips.to(self.device))

    def clips(self, tokens: Int[Tensor, "n lt lh lw"] | Float[Tensor, "n d lt lh lw"]) -> UInt8[Tensor, "n t h w 3"]:
        """Decoded clips on the CPU."""
        return self.tokenizer.to_uint8(self.tokenizer.decode(tokens)).cpu()

    def now(self) -> float:
        """Seconds of a clock that waits until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def distance_of(self, clips: UInt8[Tensor, "n t h w 3"]) -> float:
        """shapes-FVD of generated clips."""
        return frechet_distance_between(self.classifier.read(clips).features, self.readings.features)

    def recipe(self, name: str, model: ModelConfig, seed: int, tasks: Sequence[str]) -> ModelRecipe:
        """The recipe of a variant; all variants differ in the network and the tasks only."""
        config = self.config
        return ModelRecipe(
            name=f"{name}-{seed}",
            tokenizer=config.tokenizer,
            data=clip_data(config),
            model=model,
            optim=OPTIMIZER,
            loop=LoopConfig(config.num_steps, config.batch_size, seed=seed, clip_norm=1.0, num_workers=0),
            task_weights=dict.fromkeys(tasks, 1.0),
            cache_clips=config.num_train_clips,
        )

    def trained(
        self, model: VideoModel, recipe: ModelRecipe, prepare_batch: Callable[[Batch, int], Batch]
    ) -> VideoModel:
        """The network after its updates, continued from its newest checkpoint if there is one."""
        folder = self.out / recipe.name
        resume = any((folder / "checkpoints").glob("*.pt"))
        result = train_model(
            model, recipe, self.cache, folder, prepare_batch=prepare_batch, resume=resume, device=self.device
        )
        if not result.finished:
            raise KeyboardInterrupt(f"stopped in {recipe.name}; the same command continues.")
        assert isinstance(result.network, VideoModel)
        return result.network.eval()

    @abstractmethod
    def result(self, variant: VariantT, seed: int) -> Result:
        """Train and measure one variant."""

    def conclusions(self, rows: Sequence[SummaryRow]) -> dict[str, object]:
        """Entries of the report beside the rows of the summary."""
        return {}


def result_of(variant: Variant, seed: int, results: Sequence[Measurement]) -> Result:
    """The measurements of a variant, as its JSON file holds them."""
    return {"variant": variant.name, "paper": variant.paper, "seed": seed, "results": results}


def run_claims(
    laboratory: type[Laboratory[VariantT]],
    config: ClaimsConfig,
    out: str | Path,
    *,
    variants: Sequence[VariantT] | None = None,
    classifier: ShapesClassifier | None = None,
    device: str | torch.device = "cpu",
    on_result: Callable[[Result], object] = lambda row: None,
) -> ClaimsReport:
    """Train and measure what `out` does not hold yet; returns and writes `out/claims.json`.

    `variants`: by default all of the laboratory's. `classifier`: by default the bundled one.
    Raises UserError if `out` holds results of other settings.
    """
    out = Path(out)
    keep_settings(out / "settings.json", config)
    opened = laboratory.open(config, out, classifier or ShapesClassifier.bundled(device), device)
    rows: list[Result] = []
    for seed in config.seeds:
        for variant in laboratory.variants() if variants is None else variants:
            file = out / f"{variant.name}-{seed}.json"
            if not file.exists():
                write_json(file, dict(opened.result(variant, seed)))
            rows.append(json.loads(file.read_text()))
            on_result(rows[-1])
    summary = summarise(rows)
    report: ClaimsReport = {
        "settings": asdict(config),
        "real_against_real": opened.real_against_real(),
        "rows": summary,
    }
    report = cast(ClaimsReport, report | opened.conclusions(summary))
    write_json(out / "claims.json", dict(report))
    return report


def keep_settings(file: Path, config: ClaimsConfig) -> None:
    """Write the settings of a folder's results. Raises UserError for others: such results do not compare."""
    settings = json.loads(json.dumps(asdict(config) | {"seeds": None}))  # seeds may be added; JSON has no tuples
    if file.exists() and json.loads(file.read_text()) != settings:
        raise UserError(f"{file.parent} holds results of other settings ({file.name}); name another folder.")
    new_folder(file.parent)
    write_json(file, settings)


def summarise(rows: Sequence[Result]) -> list[SummaryRow]:
    """Mean over seeds and every seed's value, per variant and number of decoding steps."""
    found: dict[tuple[str, str, int], list[Measurement]] = {}
    for row in rows:
        for result in row["results"]:
            key = row["variant"], row["paper"], result["num_decoding_steps"]
            found.setdefault(key, []).append(result)
    return [summary_row(*key, group) for key, group in found.items()]


def summary_row(variant: str, paper: str, steps: int, group: Sequence[Measurement]) -> SummaryRow:
    """The measurements of all seeds as one row."""
    further = {key: mean_of(group, key) for key in group[0] if key not in Measurement.__annotations__}
    row: SummaryRow = {
        "variant": variant,
        "paper": paper,
        "num_decoding_steps": steps,
        "shapes_fvd": statistics.mean(entry["shapes_fvd"] for entry in group),
        "shapes_fvd_per_seed": [entry["shapes_fvd"] for entry in group],
        "shapes_fvd_per_task": {
            task: statistics.mean(entry["per_task"][task] for entry in group) for task in group[0]["per_task"]
        },
    }
    return cast(SummaryRow, row | further)


def mean_of(group: Sequence[Mapping[str, object]], key: str) -> float | list[float]:
    """Mean over measurements of a number, or of a list of numbers entry by entry."""
    values = [entry[key] for entry in group]
    if isinstance(values[0], list):
        return [statistics.mean(entries) for entries in zip(*cast(list[list[float]], values), strict=True)]
    return statistics.mean(cast(list[float], values))


def open_tokenizer(config: ClaimsConfig, device: str | torch.device) -> VideoTokenizer:
    """The tokenizer of all variants."""
    tokenizer = hub.load_tokenizer(config.tokenizer).to(device).eval()
    channels_last(tokenizer)
    return tokenizer


def clip_data(config: ClaimsConfig) -> ShapesData:
    """The shapes dataset at the clip size that the tokenizer was trained for."""
    index = hub.load_index(config.tokenizer)
    return ShapesData(num_frames=index.num_frames, height=index.height, width=index.width)
