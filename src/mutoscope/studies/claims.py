"""What the papers' comparisons at small scale share: trainings alike, judged by shapes-FVD on the same held-back clips.

A run is a folder: one sub-folder per training, one JSON file per result, so it continues where it was stopped.
"""

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.protocols.protocol import Judge, Readings, RealClips, real_clips
from mutoscope.hub import write_json
from mutoscope.models.base import ModelConfig, VideoModel
from mutoscope.runs.tokenize import tokenize
from mutoscope.tokenizers.base import VideoTokenizer, channels_last
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig
from mutoscope.training.trainer import train_model


class AnyVariant(Protocol):
    """One row of the tables: a name, and where the paper shows it."""

    @property
    def name(self) -> str: ...

    @property
    def paper(self) -> str: ...


@dataclass(frozen=True)
class ClaimsConfig:
    """What all variants share. The defaults are meant for about 8 minutes per training on two CPU cores; not timed."""

    tokenizer: str = "vq-shapes"
    seeds: tuple[int, ...] = (0, 1)
    num_steps: int = 1_000
    batch_size: int = 16
    num_train_clips: int = 6_000
    num_clips: int = 128
    num_layers: int = 3
    hidden_size: int = 128


@dataclass
class Laboratory(ABC):
    """What every training and every measurement shares. All of it happens on the tokenizer's device."""

    config: ClaimsConfig
    out: Path
    tokenizer: VideoTokenizer
    cache: TokenCache
    judge: Judge
    real: RealClips
    seen: Readings

    variants: ClassVar[tuple[Any, ...]]
    """The rows of the paper's tables, each an `AnyVariant`."""
    settings: ClassVar[type[ClaimsConfig]] = ClaimsConfig
    tasks: ClassVar[tuple[str, ...]] = ()
    """Those whose conditions the training needs."""

    @classmethod
    def open(cls, config: ClaimsConfig, out: Path, judge: Judge, device: str | torch.device = "cpu") -> Self:
        """Encodes the training clips, unless `out` holds them already, and lets the judge see the real ones."""
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
        return cls(config, out, tokenizer, cache, judge, real, judge.read(real.video))

    @property
    def device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        t, h, w = self.cache.info.clip_shape
        return t, h, w

    def real_against_real(self) -> float:
        world = clip_data(self.config).world(HELD_BACK_SEED).config
        other = self.judge.read(real_clips(world, self.config.num_clips, self.config.num_clips).video)
        return frechet_distance_between(other.features, self.seen.features)

    def video(self, clips: UInt8[Tensor, "n t h w 3"]) -> Float[Tensor, "n 3 t h w"]:
        """Pixels in [-1, 1] on the device."""
        return self.tokenizer.from_uint8(clips.to(self.device))

    def clips(self, tokens: Int[Tensor, "n lt lh lw"] | Float[Tensor, "n d lt lh lw"]) -> UInt8[Tensor, "n t h w 3"]:
        """Decoded clips on the CPU."""
        return self.tokenizer.to_uint8(self.tokenizer.decode(tokens)).cpu()

    def now(self) -> float:
        """Seconds on a clock that waits for everything asked of the device before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def distance_of(self, clips: UInt8[Tensor, "n t h w 3"]) -> float:
        """shapes-FVD of generated clips."""
        return frechet_distance_between(self.judge.read(clips).features, self.seen.features)

    def recipe(self, name: str, model: ModelConfig, seed: int, tasks: Sequence[str]) -> ModelRecipe:
        """Equal for all variants but for the network and the tasks."""
        config = self.config
        return ModelRecipe(
            name=f"{name}-{seed}",
            tokenizer=config.tokenizer,
            data=clip_data(config),
            model=model,
            optim=OptimConfig(1.5e-3, 0.9, 0.96, weight_decay=0.045, warmup_steps=100, muon_learning_rate=3e-3),
            loop=LoopConfig(config.num_steps, config.batch_size, seed=seed, clip_norm=1.0, num_workers=0),
            task_weights=dict.fromkeys(tasks, 1.0),
            cache_clips=config.num_train_clips,
        )

    def trained(self, model: VideoModel, recipe: ModelRecipe, prepare_batch: Callable[..., Any]) -> VideoModel:
        """The network after its updates, continued from its newest checkpoint if it was stopped."""
        folder = self.out / recipe.name
        resume = any((folder / "checkpoints").glob("*.pt"))
        options = {"prepare_batch": prepare_batch, "resume": resume, "device": self.device}
        result = train_model(model, recipe, self.cache, folder, **options)
        if not result.finished:
            raise KeyboardInterrupt(f"stopped in {recipe.name}; the same command continues.")
        assert isinstance(result.network, VideoModel)
        return result.network.eval()

    @abstractmethod
    def result(self, variant: Any, seed: int) -> dict[str, Any]:
        """Trains and measures one variant: "variant", "paper", "seed", and "results", a list of measurements.

        Each measurement has "num_decoding_steps", "shapes_fvd" and "per_task".
        """

    def conclusions(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the report says beside the rows of the summary."""
        return {}


def run_claims(
    laboratory: type[Laboratory],
    config: ClaimsConfig,
    out: str | Path,
    *,
    variants: Sequence[AnyVariant] | None = None,
    judge: Judge | None = None,
    device: str | torch.device = "cpu",
    on_result: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Trains and measures what `out` does not hold yet; returns and writes `out/claims.json`.

    `variants`: all of the laboratory's unless some are named. `judge`: the bundled one unless another is given.
    Raises UserError when `out` belongs to other settings.
    """
    out = Path(out)
    keep_settings(out / "settings.json", config)
    opened, rows = laboratory.open(config, out, judge or Judge.bundled(device), device), []
    for seed in config.seeds:
        for variant in laboratory.variants if variants is None else variants:
            file = out / f"{variant.name}-{seed}.json"
            if not file.exists():
                write_json(file, opened.result(variant, seed))
            rows.append(json.loads(file.read_text()))
            on_result(rows[-1])
    report = {"settings": asdict(config), "real_against_real": opened.real_against_real(), "rows": summarise(rows)}
    report |= opened.conclusions(report["rows"])
    write_json(out / "claims.json", report)
    return report


def keep_settings(file: Path, config: ClaimsConfig) -> None:
    """Results of different settings do not compare, so a folder holds those of one."""
    settings = json.loads(json.dumps(asdict(config) | {"seeds": None}))  # more seeds may join; JSON has no tuples
    if file.exists() and json.loads(file.read_text()) != settings:
        raise UserError(f"{file.parent} holds results of other settings ({file.name}); name another folder.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds and every seed's value, per variant and number of decoding steps."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        for result in row["results"]:
            found.setdefault((row["variant"], result["num_decoding_steps"]), []).append(row | result)
    return [
        {
            "variant": name,
            "paper": group[0]["paper"],
            "num_decoding_steps": steps,
            "shapes_fvd": statistics.mean(entry["shapes_fvd"] for entry in group),
            "shapes_fvd_per_seed": [entry["shapes_fvd"] for entry in group],
            "shapes_fvd_per_task": {
                task: statistics.mean(entry["per_task"][task] for entry in group) for task in group[0]["per_task"]
            },
            **{key: mean_of([entry[key] for entry in group]) for key in group[0] if key not in NAMED},
        }
        for (name, steps), group in found.items()
    ]


NAMED = {"variant", "paper", "seed", "results", "num_decoding_steps", "shapes_fvd", "per_task"}


def mean_of(values: list[Any]) -> Any:
    """Mean of numbers, or of lists of numbers entry by entry."""
    if isinstance(values[0], list):
        return [statistics.mean(entries) for entries in zip(*values, strict=True)]
    return statistics.mean(values)


def open_tokenizer(config: ClaimsConfig, device: str | torch.device) -> VideoTokenizer:
    """The tokenizer of all variants, ready for use."""
    tokenizer = hub.load_tokenizer(config.tokenizer).to(device).eval()
    channels_last(tokenizer)
    return tokenizer


def clip_data(config: ClaimsConfig) -> ShapesData:
    """Clips of the built-in world at the size the tokenizer was trained for."""
    index = hub.load_index(config.tokenizer)
    return ShapesData(num_frames=index.num_frames, height=index.height, width=index.width)
