"""PAR's comparisons at small scale (arXiv 2412.15119, ablations) on the built-in world.

Orders, several tokens per step, the sequential start, and groups that see each other: every variant is trained for the
same number of updates on the same cached tokens and generates the classes of the held-back clips.
"""

from dataclasses import dataclass
from typing import Any

import torch

from mutoscope.models.par import PAR, PARConfig
from mutoscope.sampling.parallel_ar import Condition, ParallelARSampler, ParallelARSamplerConfig, PrefillMemo
from mutoscope.studies import claims

TASK = "class-conditional"


@dataclass(frozen=True)
class Variant:
    """One row of the tables; `config` holds fields of the model's configuration."""

    name: str
    paper: str
    config: tuple[tuple[str, Any], ...] = ()


FOUR = (("num_parallel", 4),)
VARIANTS = (
    Variant("raster-one", "n = 1: LlamaGen; order: raster, one"),
    Variant("distant-one", "order: distant, one", (("num_regions", 4),)),
    Variant("distant-4", "n = 4; order: distant, multi; full groups; sequential start", FOUR),
    Variant("distant-16", "n = 16", (("num_parallel", 16),)),
    Variant("raster-4", "order: raster, multi", (*FOUR, ("order", "raster"))),
    Variant("no-sequential-start", "without the sequential start", (*FOUR, ("sequential_start", False))),
    Variant("causal-groups", "causal attention in a group", (*FOUR, ("group_attention", "causal"))),
)


class Laboratory(claims.Laboratory):
    """Builds, trains and measures the variants."""

    variants = VARIANTS

    def build(self, variant: Variant, seed: int) -> PAR:
        """The untrained network; equal seeds give equal weights wherever variants share their shapes."""
        torch.manual_seed(seed)
        config = self.config
        return PAR(
            PARConfig(
                num_layers=config.num_layers,
                hidden_size=config.hidden_size,
                num_heads=config.hidden_size // 32,
                codebook_size=self.tokenizer.spec.vocab_size or 0,
                latent_shape=self.latent_shape,
                num_classes=int(self.cache.labels.max()) + 1,
                mlp_size=3 * config.hidden_size,
                token_dropout=0.0,
                residual_dropout=0.0,
                mlp_dropout=0.0,
                **dict(variant.config),
            )
        )

    def result(self, variant: Variant, seed: int) -> dict[str, Any]:
        model = self.build(variant, seed)
        recipe = self.recipe(variant.name, model.config, seed, (TASK,))
        self.trained(model, recipe, lambda batch, step: batch)
        return {"variant": variant.name, "paper": variant.paper, "seed": seed, "results": [self.measure(model, seed)]}

    @torch.inference_mode()
    def measure(self, model: PAR, seed: int) -> dict[str, Any]:
        """shapes-FVD, share of clips whose class the judge names, forward passes and seconds per clip (batches of 32).

        Seconds include no decoding into pixels.
        """
        generator, memo, sampler = torch.Generator().manual_seed(seed), PrefillMemo(), ParallelARSampler(SAMPLING)
        frames, seconds, steps = [], 0.0, 0
        for labels in self.real.attributes["class"].split(32):
            labels = labels.clamp(max=(model.config.num_classes or 1) - 1)
            null = [model.config.num_classes] * len(labels)
            begin = self.now()
            prefix, nothing = model.class_prefix(labels, len(labels)), model.class_prefix(None, len(labels))
            condition = Condition(prefix, nothing, labels=(*labels.tolist(), *null))
            *_, last = sampler.sample(model, condition, generator, memo=memo)
            seconds += self.now() - begin
            steps = last.num_steps
            frames.append(self.clips(last.tokens))
        clips = torch.cat(frames)
        correct = self.judge.read(clips).correct("class", self.real.attributes)
        distance = self.distance_of(clips)
        return {
            "num_decoding_steps": steps,
            "shapes_fvd": distance,
            "per_task": {TASK: distance},
            "class_accuracy": correct.float().mean().item(),
            "seconds_per_clip": seconds / len(clips),
        }


SAMPLING = ParallelARSamplerConfig(guidance_scale=1.5)
