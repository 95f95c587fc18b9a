"""NOVA's comparisons at small scale (arXiv 2412.14169, Tab. 5, ablations, Fig. 12) on the shapes dataset.

Frame by frame against all frames at once, ranks of scaling and shift, the position of the norms, and how far a clip can
be continued: every variant is trained for the same number of updates on the same cached latents and captions, and
generates from the captions of the held-out clips.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Self

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.temporal import mean_squared_motion
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.sources.shapes_clips import real_clips
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.runs.tokenize import CaptionReader, tokenize
from mutoscope.sampling.base import last_of
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, FrameCondition
from mutoscope.studies import claims
from mutoscope.text import load_text_encoder
from mutoscope.text.base import TextFeatures
from mutoscope.text.words import word_config
from mutoscope.training.trainer import Batch
from mutoscope.writing import new_folder

TASK = "text-conditional"
TEXT_LENGTH = 20
BATCH = 32  # clips generated together
WORD_CLIPS = 512  # whose captions hold every word of the dataset
SAMPLING = FrameARSamplerConfig(num_decoding_steps=8, num_diffusion_steps=16, guidance_scale=3.0)


@dataclass(frozen=True)
class ClaimsConfig(claims.ClaimsConfig):
    """`num_layers`: of either encoder. `windows`: clips are continued to this many times the length of training."""

    tokenizer: str = "vae-shapes"
    num_train_clips: int = 4_000
    windows: int = 3


class Measurement(claims.Measurement):
    """Accuracies: share of clips classified as the caption says. movement_over_real: mean squared motion over that of
    real clips. seconds_per_clip: in batches of 32, without decoding to pixels."""

    color_accuracy: float
    shape_accuracy: float
    motion_accuracy: float
    movement_over_real: float
    seconds_per_clip: float
    shapes_fvd_by_window: NotRequired[list[float]]


@dataclass(frozen=True)
class Variant(claims.Variant):
    """One row of the tables; `config` holds fields of the model's configuration.

    `at_once`: the frames of a clip are stacked into one tall frame, so that the spatial encoder generates all of them
    together and the temporal one has no part. `continued`: longer clips than in training are measured too.
    """

    config: tuple[tuple[str, object], ...] = ()
    at_once: bool = False
    continued: bool = False


VARIANTS = (
    Variant("published", "Tab. 5: frame by frame; rank 24; norm after the sub-layer; Fig. 12", continued=True),
    Variant("at-once", "Tab. 5: without temporal autoregression", (("mixer_rank", None),), at_once=True),
    Variant("no-scaling", "scaling and shift: none", (("mixer_rank", None),)),
    Variant("rank-4", "scaling and shift: rank 4", (("mixer_rank", 4),)),
    Variant("full-rank", "scaling and shift: full matrix", (("mixer_rank", -1),)),
    Variant("norm-before", "norm before the sub-layer", (("norm_position", "before"),)),
    Variant("rotary", "rotary positions; Fig. 12", (("positions", "rotary"),), continued=True),
)


@dataclass
class Laboratory(claims.Laboratory[Variant]):
    """Builds, trains and measures the variants. `text`: features of the held-out clips' captions."""

    config: ClaimsConfig
    text: TextFeatures

    settings = ClaimsConfig

    @classmethod
    def variants(cls) -> tuple[Variant, ...]:
        return VARIANTS

    @classmethod
    def open(
        cls, config: claims.ClaimsConfig, out: Path, classifier: ShapesClassifier, device: str | torch.device = "cpu"
    ) -> Self:
        assert isinstance(config, ClaimsConfig)
        tokenizer, data = claims.open_tokenizer(config, device), claims.clip_data(config)
        source = data.open()
        folder = out / "text_encoder"
        if not folder.is_dir():
            new_folder(folder)
            hub.write_json(folder / "config.json", word_config(source[range(WORD_CLIPS)]["caption"]))
        encoder = load_text_encoder(folder, torch.device("cpu"), torch.float32)
        cache = tokenize(
            tokenizer,
            config.tokenizer,
            source,
            out / "tokens",
            num_clips=config.num_train_clips,
            data=data.describe() | {"seed": data.seed},
            text=CaptionReader(encoder, TEXT_LENGTH),
        )
        real = real_clips(data.world(HELD_BACK_SEED).config, 0, config.num_clips)
        text = encoder.encode(real.captions, TEXT_LENGTH)
        return cls(config, out, tokenizer, cache, classifier, real, classifier.read(real.video), text)

    def build(self, variant: Variant, seed: int) -> NOVA:
        """The untrained network; equal seeds give equal weights wherever variants share their shapes."""
        torch.manual_seed(seed)
        config, (channels, t, h, w) = self.config, self.cache.info.clip_shape
        layers, size, heads = config.num_layers, config.hidden_size, config.hidden_size // 32
        plain = NOVAConfig(
            size,
            temporal_layers=layers,
            temporal_heads=heads,
            spatial_layers=layers,
            spatial_heads=heads,
            head_layers=3,
            head_size=size,
            latent_channels=channels,
            latent_shape=(1, t * h, w) if variant.at_once else (t, h, w),
            num_time_slots=None,
            mixer_rank=24,
            text_size=self.text.features.shape[2],
            text_length=TEXT_LENGTH,
        )
        return NOVA(dataclasses.replace(plain, **dict(variant.config)))

    def result(self, variant: Variant, seed: int) -> claims.Result:
        model = self.build(variant, seed)
        recipe = self.recipe(variant.name, model.config, seed, (TASK,))
        loop = dataclasses.replace(recipe.loop, ema_decay=0.998, autocast="bf16")
        recipe = dataclasses.replace(recipe, loop=loop)
        trained = self.trained(model, recipe, lambda batch, step: prepared(batch, variant.at_once))
        assert isinstance(trained, NOVA)
        measured = self.measure(trained, variant, seed)
        if variant.continued:
            measured["shapes_fvd_by_window"] = self.measure_windows(trained, seed)
        return claims.result_of(variant, seed, [measured])

    def measure(self, model: NOVA, variant: Variant, seed: int) -> Measurement:
        """One clip for the caption of every real clip."""
        frames = 1 if variant.at_once else self.cache.info.clip_shape[1]
        clips, seconds, steps = self.generate(model, frames, seed, variant.at_once)
        readings, distance = self.classifier.read(clips), self.distance_of(clips)
        color, shape, motion = (
            readings.correct(head, self.real.attributes).float().mean().item() for head in ("color", "shape", "motion")
        )
        return {
            "num_decoding_steps": steps,
            "shapes_fvd": distance,
            "per_task": {TASK: distance},
            "color_accuracy": color,
            "shape_accuracy": shape,
            "motion_accuracy": motion,
            "movement_over_real": mean_squared_motion(clips) / mean_squared_motion(self.real.video),
            "seconds_per_clip": seconds / len(clips),
        }

    def measure_windows(self, model: NOVA, seed: int) -> list[float]:
        """shapes-FVD of each window of a continued clip against the same window of real clips."""
        data, length = claims.clip_data(self.config), self.cache.info.clip_shape[1]
        long = dataclasses.replace(data.world(HELD_BACK_SEED).config, num_frames=length * self.config.windows)
        real = real_clips(long, 0, self.config.num_clips).video
        clips, _, _ = self.generate(model, length * self.config.windows, seed)
        return [
            frechet_distance_between(self.classifier.read(a).features, self.classifier.read(b).features)
            for a, b in zip(clips.split(length, dim=1), real.split(length, dim=1), strict=True)
        ]

    @torch.inference_mode()
    def generate(
        self, model: NOVA, frames: int, seed: int, at_once: bool = False
    ) -> tuple[UInt8[Tensor, "n t h w 3"], float, int]:
        """A clip for every caption, the seconds without decoding, and the sets of tokens per clip."""
        generator, sampler = torch.Generator().manual_seed(seed), FrameARSampler(sampling_of(model, at_once))
        clips, seconds, steps = [], 0.0, 0
        for features, mask in zip(*(part.split(BATCH) for part in self.text), strict=True):
            begin = self.now()
            text = model.text_prefix(features.to(self.device), mask.to(self.device))
            prefix, count = torch.cat([text, model.null_prefix(1)]), len(features)
            rows = torch.cat([torch.arange(count), torch.full((count,), count)]).to(self.device)
            condition = FrameCondition(model.with_motion(prefix, None), rows, 2, num_frames=frames)
            last = last_of(sampler.sample(model, condition, generator))
            seconds, steps = seconds + self.now() - begin, last.num_steps
            latents = unstacked(last.proposal, self.cache.info.clip_shape[1]) if at_once else last.proposal
            clips.append(self.clips(latents))
        return torch.cat(clips), seconds, steps


def prepared(batch: Batch, at_once: bool) -> Batch:
    """A batch of the cache as the variant's network reads it."""
    kept = {name: value for name, value in batch.items() if name != "conditions"}
    return kept | ({"tokens": rearrange(batch["tokens"], "b c t h w -> b c 1 (t h) w")} if at_once else {})


def unstacked(latents: Float[Tensor, "b c 1 th w"], frames: int) -> Float[Tensor, "b c t h w"]:
    return rearrange(latents, "b c 1 (t h) w -> b c t h w", t=frames)


def sampling_of(model: NOVA, at_once: bool) -> FrameARSamplerConfig:
    """Half as many sets for a clip generated at once as for one generated frame by frame: more hardly matter."""
    if not at_once:
        return SAMPLING
    frames = model.config.latent_shape[1] // model.config.latent_shape[2]
    return dataclasses.replace(SAMPLING, num_decoding_steps=SAMPLING.num_decoding_steps * max(frames // 2, 1))
