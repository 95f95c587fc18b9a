"""MAGVIT's comparisons at small scale: Tab. 4, 5 and 6 of arXiv 2212.05199 on the built-in world.

Every variant is trained for the same number of updates on the same cached tokens of the same tokenizer, and judged by
shapes-FVD on the same held-back clips. A run is a folder: one sub-folder per training, one JSON file per result, so it
continues where it was stopped.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mutoscope import hub
from mutoscope.data.shapes import HELD_BACK_SEED
from mutoscope.data.token_cache import TokenCache
from mutoscope.errors import UserError
from mutoscope.evaluation.frechet import frechet_distance_between
from mutoscope.evaluation.protocol import Judge, Readings, RealClips, real_clips
from mutoscope.hub import write_json
from mutoscope.layers.condition_regions import TASKS
from mutoscope.models.base import VideoModel
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.magvit_baselines import GivenPrefix, MagvitAR, MagvitARConfig, PrefixMagvit
from mutoscope.recipes.run import TaskMix, clip_source, describe_data, shapes_world
from mutoscope.recipes.tokenize import tokenize
from mutoscope.sampling.autoregressive import AutoregressiveSampler
from mutoscope.sampling.masked import MaskedSampler, MaskedSamplerConfig
from mutoscope.sampling.tasks import condition_video
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.config import DataConfig, LoopConfig, ModelRecipe, OptimConfig
from mutoscope.training.trainer import train_model

EIGHT = tuple(task for task in TASKS if not task.startswith("class-conditional"))
ONE = ("frame-prediction",)


@dataclass(frozen=True)
class Variant:
    """One row of the tables.

    `steps` are the numbers of decoding steps at which it is measured, `also` the tasks it was not trained for and is
    measured on all the same, with 12 steps.
    """

    name: str
    paper: str
    tasks: tuple[str, ...] = ONE
    kind: Literal["masked", "prefix", "autoregressive"] = "masked"
    config: tuple[tuple[str, Any], ...] = ()
    keep_given: bool = False
    steps: tuple[int, ...] = (12,)
    also: tuple[str, ...] = ()

    def measured(self, num_steps: int) -> tuple[str, ...]:
        """The tasks measured with `num_steps` decoding steps, those it was trained for first."""
        tasks = tuple(task for task in self.tasks if task in EIGHT)
        return tasks + tuple(task for task in self.also if task not in tasks and num_steps == 12)


MASKING = (("condition_mode", "cond->cond"),)
MASK_ONLY, MASK_RECONS = (("loss_groups", ("mask",)),), (("loss_groups", ("mask", "recons")),)
MULTI = (("task_token", True), ("num_special_tokens", 16))
VARIANTS = (
    Variant("commit", "Tab. 5 and 6: COMMIT; Tab. 4: FP", steps=(4, 8, 12, 16, 24, 32), also=EIGHT),
    Variant("commit-unconditional", "Tab. 4: UNC", ("class-conditional",), also=EIGHT),
    Variant("commit-mask-recons", "Tab. 5: without the refine loss", config=MASK_RECONS),
    Variant("commit-mask", "Tab. 5: mask loss only", config=MASK_ONLY),
    Variant("latent-masking", "Tab. 5 and 6: latent masking as in MaskGIT", config=MASKING, keep_given=True),
    Variant("prefix", "Tab. 5: condition as a prefix", kind="prefix"),
    Variant("autoregressive", "Tab. 6: AR transformer", kind="autoregressive"),
    Variant("commit-mt8", "Tab. 5: COMMIT, eight tasks; Tab. 4: MT", EIGHT, config=MULTI),
    Variant("commit-mask-recons-mt8", "Tab. 5: without refine, eight tasks", EIGHT, config=MULTI + MASK_RECONS),
    Variant("commit-mask-mt8", "Tab. 5: mask loss only, eight tasks", EIGHT, config=MULTI + MASK_ONLY),
    Variant("latent-masking-mt8", "Tab. 5: latent masking, eight tasks", EIGHT, "masked", MULTI + MASKING, True),
)


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

    def model(self, latent_shape: tuple[int, int, int], codebook_size: int) -> MagvitConfig:
        return MagvitConfig(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.hidden_size // 32,
            mlp_size=4 * self.hidden_size,
            codebook_size=codebook_size,
            latent_shape=latent_shape,
            tasks=("class-conditional", *EIGHT),
            dropout=0.0,
        )


def run_claims(
    config: ClaimsConfig,
    out: str | Path,
    *,
    variants: tuple[Variant, ...] = VARIANTS,
    judge: Judge | None = None,
    on_result: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Trains and measures what `out` does not hold yet; returns and writes `out/claims.json`.

    Raises UserError when `out` belongs to other settings.
    """
    out = Path(out)
    keep_settings(out / "settings.json", config)
    lab = Laboratory.open(config, out, judge or Judge.bundled())
    rows = []
    for seed in config.seeds:
        for variant in variants:
            file = out / f"{variant.name}-{seed}.json"
            if not file.exists():
                write_json(file, lab.measure(variant, seed, lab.train(variant, seed)))
            rows.append(json.loads(file.read_text()))
            on_result(rows[-1])
    report = {"settings": asdict(config), "real_against_real": lab.real_against_real(), "rows": summarise(rows)}
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
    """Mean and both ends over seeds, per variant and number of decoding steps."""
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
        }
        for (name, steps), group in found.items()
    ]


@dataclass
class Laboratory:
    """What every training and every measurement shares."""

    config: ClaimsConfig
    out: Path
    tokenizer: VideoTokenizer
    cache: TokenCache
    judge: Judge
    real: RealClips
    seen: Readings

    @classmethod
    def open(cls, config: ClaimsConfig, out: Path, judge: Judge) -> "Laboratory":
        tokenizer = hub.load_tokenizer(config.tokenizer).to(memory_format=torch.channels_last_3d)
        data = clip_data(config)
        cache = tokenize(
            tokenizer,
            config.tokenizer,
            clip_source(data),
            out / "tokens",
            num_clips=config.num_train_clips,
            tasks=EIGHT,
            data=describe_data(data) | {"seed": data.seed},
        )
        real = real_clips(shapes_world(data, HELD_BACK_SEED).config, 0, config.num_clips)
        return cls(config, out, tokenizer, cache, judge, real, judge.read(real.video))

    def real_against_real(self) -> float:
        world = shapes_world(clip_data(self.config), HELD_BACK_SEED).config
        other = self.judge.read(real_clips(world, self.config.num_clips, self.config.num_clips).video)
        return frechet_distance_between(other.features, self.seen.features)

    def build(self, variant: Variant, seed: int) -> VideoModel:
        """The untrained network; equal seeds give equal weights wherever variants share their shapes."""
        torch.manual_seed(seed)
        shape = self.cache.info.clip_shape
        base = self.config.model((shape[0], shape[1], shape[2]), self.tokenizer.spec.vocab_size or 0)
        if variant.kind == "autoregressive":
            return MagvitAR(
                MagvitARConfig(
                    base.num_layers,
                    base.hidden_size,
                    base.num_heads,
                    base.mlp_size,
                    base.codebook_size,
                    latent_shape=base.latent_shape,
                    condition_frames=1,
                    dropout=0.0,
                )
            )
        config = replace(base, **dict(variant.config))
        return PrefixMagvit(config) if variant.kind == "prefix" else Magvit(config)

    def train(self, variant: Variant, seed: int) -> VideoModel:
        """The network after its updates, continued from its newest checkpoint if it was stopped."""
        config = self.config
        recipe = ModelRecipe(
            name=f"{variant.name}-{seed}",
            tokenizer=config.tokenizer,
            data=clip_data(config),
            model=config.model(self.cache.info.clip_shape, self.tokenizer.spec.vocab_size or 0),  # pyright: ignore
            optim=OptimConfig(1.5e-3, 0.9, 0.96, weight_decay=0.045, warmup_steps=100, muon_learning_rate=3e-3),
            loop=LoopConfig(config.num_steps, config.batch_size, seed=seed, clip_norm=1.0, num_workers=0),
            task_weights=dict.fromkeys(variant.tasks, 1.0),
            cache_clips=config.num_train_clips,
        )
        mix, folder = TaskMix(recipe.task_weights), self.out / recipe.name

        def unlabelled(batch: dict[str, Any], step: int) -> dict[str, Any]:
            return mix({name: value for name, value in batch.items() if name != "label"}, step)

        resume = any((folder / "checkpoints").glob("*.pt"))
        result = train_model(
            self.build(variant, seed), recipe, self.cache, folder, prepare_batch=unlabelled, resume=resume
        )
        if not result.finished:
            raise KeyboardInterrupt(f"stopped in {recipe.name}; the same command continues.")
        assert isinstance(result.network, VideoModel)
        return result.network.eval()

    def measure(self, variant: Variant, seed: int, model: VideoModel) -> dict[str, Any]:
        """shapes-FVD per task and number of decoding steps; "shapes_fvd" is the mean over the tasks trained for."""
        results = []
        for steps in variant.steps:
            tasks = variant.measured(steps)
            trained = [task for task in tasks if task in variant.tasks]
            per_task = {task: self.distance(variant, model, task, steps, seed) for task in tasks}
            results.append(
                {
                    "num_decoding_steps": self.num_tokens if variant.kind == "autoregressive" else steps,
                    "shapes_fvd": statistics.mean(per_task[task] for task in trained or tasks),
                    "per_task": per_task,
                }
            )
        return {"variant": variant.name, "paper": variant.paper, "seed": seed, "results": results}

    @property
    def num_tokens(self) -> int:
        t, h, w = self.cache.info.clip_shape
        return t * h * w

    @torch.inference_mode()
    def distance(self, variant: Variant, model: VideoModel, task: str, steps: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        frames = []
        for batch in self.real.video.split(32):
            video = self.tokenizer.from_uint8(batch)
            given = self.tokenizer.encode(condition_video(task, video))
            for event in sample(variant, model, task, given, steps, generator):
                tokens = event.proposal
            frames.append(self.tokenizer.to_uint8(self.tokenizer.decode(tokens)))
        return frechet_distance_between(self.judge.read(torch.cat(frames)).features, self.seen.features)


def sample(
    variant: Variant, model: Any, task: str, given: Tensor, steps: int, generator: torch.Generator
) -> Iterator[Any]:
    """Sampling events of one batch, by the sampler of the variant."""
    if variant.kind == "autoregressive":
        return AutoregressiveSampler().sample(model, None, given, generator)
    sampler = MaskedSampler(MaskedSamplerConfig(num_decoding_steps=steps, keep_given=variant.keep_given))
    if variant.kind == "prefix":
        bound = GivenPrefix(model, given)
        return sampler.sample(bound, "class-conditional", generator=generator, batch_size=len(given))
    mask = model.config.condition_mask(task)
    return sampler.sample(model, task, None, given, generator, condition_mask=mask)


def clip_data(config: ClaimsConfig) -> DataConfig:
    """Clips of the built-in world at the size the tokenizer was trained for."""
    index = hub.load_index(config.tokenizer)
    return DataConfig("shapes", num_frames=index.num_frames, height=index.height, width=index.width)
