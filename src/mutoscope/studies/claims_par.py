"""PAR's comparisons at small scale (arXiv 2412.15119, ablations) on the shapes dataset.

Orders, tokens per step, the sequential start, and attention within a group: every variant is trained for the same
number of updates on the same cached tokens and generates the classes of the held-out clips.
"""

from dataclasses import dataclass, replace

import torch

from mutoscope.models.par import PAR, PARConfig
from mutoscope.sampling.parallel_ar import ParallelARSampler, ParallelARSamplerConfig, PrefillMemo, PrefixCondition
from mutoscope.studies import claims

TASK = "class-conditional"
SAMPLING = ParallelARSamplerConfig(guidance_scale=1.5)
BATCH = 32  # clips generated together


@dataclass(frozen=True)
class Variant(claims.Variant):
    """One row of the tables; `config` holds fields of the model's configuration."""

    config: tuple[tuple[str, object], ...] = ()


class Measurement(claims.Measurement):
    """class_accuracy: share of clips classified as requested. seconds_per_clip: without decoding to pixels."""

    class_accuracy: float
    seconds_per_clip: float


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


class Laboratory(claims.Laboratory[Variant]):
    """Builds, trains and measures the variants."""

    @classmethod
    def variants(cls) -> tuple[Variant, ...]:
        return VARIANTS

    def build(self, variant: Variant, seed: int) -> PAR:
        """The untrained network; equal seeds give equal weights wherever variants share their shapes."""
        torch.manual_seed(seed)
        config = self.config
        plain = PARConfig(
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
        )
        return PAR(replace(plain, **dict(variant.config)))

    def result(self, variant: Variant, seed: int) -> claims.Result:
        model = self.build(variant, seed)
        recipe = self.recipe(variant.name, model.config, seed, (TASK,))
        self.trained(model, recipe, lambda batch, step: batch)
        return claims.result_of(variant, seed, [self.measure(model, seed)])

    @torch.inference_mode()
    def measure(self, model: PAR, seed: int) -> Measurement:
        """One clip for the class of every real clip."""
        generator, memo, sampler = torch.Generator().manual_seed(seed), PrefillMemo(), ParallelARSampler(SAMPLING)
        frames, seconds, steps = [], 0.0, 0
        for labels in self.real.attributes["class"].split(BATCH):
            labels = labels.clamp(max=(model.config.num_classes or 1) - 1)
            null = [model.config.num_classes or 0] * len(labels)
            begin = self.now()
            prefix, null_prefix = model.class_prefix(labels, len(labels)), model.class_prefix(None, len(labels))
            condition = PrefixCondition(prefix, null_prefix, labels=(*labels.tolist(), *null))
            *_, last = sampler.sample(model, condition, generator, memo=memo)
            seconds += self.now() - begin
            steps = last.num_steps
            frames.append(self.clips(last.tokens))
        clips = torch.cat(frames)
        correct = self.classifier.read(clips).correct("class", self.real.attributes)
        distance = self.distance_of(clips)
        return {
            "num_decoding_steps": steps,
            "shapes_fvd": distance,
            "per_task": {TASK: distance},
            "class_accuracy": correct.float().mean().item(),
            "seconds_per_clip": seconds / len(clips),
        }
