"""MAGVIT's comparisons at small scale: Tab. 4, 5 and 6 of arXiv 2212.05199 on the built-in world.

Every variant is trained for the same number of updates on the same cached tokens of the same tokenizer.
"""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from mutoscope.data.base import TokenBatch
from mutoscope.layers.condition_regions import TASKS
from mutoscope.models.base import VideoModel
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.magvit_baselines import GivenPrefix, MagvitAR, MagvitARConfig, PrefixMagvit
from mutoscope.runs.train import TaskMix
from mutoscope.sampling.autoregressive import AutoregressiveSampler
from mutoscope.sampling.masked import MaskedSampler, MaskedSamplerConfig
from mutoscope.sampling.tasks import condition_video
from mutoscope.studies import claims

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


class Laboratory(claims.Laboratory):
    """Builds, trains and measures the variants."""

    variants, tasks = VARIANTS, EIGHT

    def model_config(self) -> MagvitConfig:
        config = self.config
        return MagvitConfig(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_heads=config.hidden_size // 32,
            mlp_size=4 * config.hidden_size,
            codebook_size=self.tokenizer.spec.vocab_size or 0,
            latent_shape=self.latent_shape,
            tasks=("class-conditional", *EIGHT),
            dropout=0.0,
        )

    def build(self, variant: Variant, seed: int) -> VideoModel:
        """The untrained network; equal seeds give equal weights wherever variants share their shapes."""
        torch.manual_seed(seed)
        base = self.model_config()
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

    def result(self, variant: Variant, seed: int) -> dict[str, Any]:
        return self.measure(variant, seed, self.train(variant, seed))

    def train(self, variant: Variant, seed: int) -> VideoModel:
        recipe = self.recipe(variant.name, self.model_config(), seed, variant.tasks)
        mix = TaskMix(recipe.task_weights)

        def unlabelled(batch: TokenBatch, step: int) -> Mapping[str, object]:
            return {name: value for name, value in mix(batch, step).items() if name != "label"}

        return self.trained(self.build(variant, seed), recipe, unlabelled)

    def measure(self, variant: Variant, seed: int, model: VideoModel) -> dict[str, Any]:
        """shapes-FVD per task and number of decoding steps; "shapes_fvd" is the mean over the tasks trained for."""
        results = []
        for steps in variant.steps:
            tasks = variant.measured(steps)
            trained = [task for task in tasks if task in variant.tasks]
            per_task = {task: self.distance(variant, model, task, steps, seed) for task in tasks}
            results.append(
                {
                    "num_decoding_steps": prod(self.latent_shape) if variant.kind == "autoregressive" else steps,
                    "shapes_fvd": statistics.mean(per_task[task] for task in trained or tasks),
                    "per_task": per_task,
                }
            )
        return {"variant": variant.name, "paper": variant.paper, "seed": seed, "results": results}

    @torch.inference_mode()
    def distance(self, variant: Variant, model: VideoModel, task: str, steps: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        frames = []
        for batch in self.real.video.split(32):
            given = self.tokenizer.encode(condition_video(task, self.video(batch)))
            for event in sample(variant, model, task, given, steps, generator):
                tokens = event.proposal
            frames.append(self.clips(tokens))
        return self.distance_of(torch.cat(frames))


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
