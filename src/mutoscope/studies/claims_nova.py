"""NOVA's comparisons at small scale (arXiv 2412.14169, Tab. 5, ablations, Fig. 12) on the built-in world.

Frames one after the other against all at once, ranks of scaling and shift, the place of the norms, and how far a clip
can be continued: every variant is trained for the same number of updates on the same cached latents and captions, and
shows the captions of the held-back clips.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.data.sources.shapes.world import HELD_BACK_SEED
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.protocols.protocol import Judge, real_clips
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.runs.tokenize import CaptionReader, tokenize
from mutoscope.sampling.base import last_of
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig, FrameCondition
from mutoscope.studies import claims
from mutoscope.text import load_text_encoder
from mutoscope.text.base import TextFeatures
from mutoscope.text.words import word_config

TASK = "text-conditional"
TEXT_LENGTH = 20
SAMPLING = FrameARSamplerConfig(num_decoding_steps=8, num_diffusion_steps=16, guidance_scale=3.0)


@dataclass(frozen=True)
class ClaimsConfig(claims.ClaimsConfig):
    """`num_layers`: of either encoder. `windows`: clips are continued to this many times the length of training."""

    tokenizer: str = "vae-shapes"
    num_train_clips: int = 4_000
    windows: int = 3


@dataclass(frozen=True)
class Variant:
    """One row of the tables; `config` holds fields of the model's configuration.

    `at_once`: the frames of a clip stand below each other in one frame, so that the spatial encoder fills in all of
    them together and nothing is left to the temporal one. `continued`: the clip is also made longer than in training.
    """

    name: str
    paper: str
    config: tuple[tuple[str, Any], ...] = ()
    at_once: bool = False
    continued: bool = False


VARIANTS = (
    Variant("published", "Tab. 5: frame by frame; rank 24; norm behind the sub-layer; Fig. 12", continued=True),
    Variant("at-once", "Tab. 5: without temporal autoregression", (("mixer_rank", None),), at_once=True),
    Variant("no-scaling", "scaling and shift: none", (("mixer_rank", None),)),
    Variant("rank-4", "scaling and shift: rank 4", (("mixer_rank", 4),)),
    Variant("full-rank", "scaling and shift: full matrix", (("mixer_rank", -1),)),
    Variant("norm-before", "norm before the sub-layer", (("norm_position", "before"),)),
    Variant("rotary", "rotary positions; Fig. 12", (("positions", "rotary"),), continued=True),
)


@dataclass
class Laboratory(claims.Laboratory):
    """Builds, trains and measures the variants. `text`: features of the held-back clips' captions."""

    config: ClaimsConfig
    text: TextFeatures

    variants, settings = VARIANTS, ClaimsConfig

    @classmethod
    def open(cls, config: claims.ClaimsConfig, out: Path, judge: Judge, device: str | torch.device = "cpu") -> Self:
        assert isinstance(config, ClaimsConfig)
        tokenizer, data = claims.open_tokenizer(config, device), claims.clip_data(config)
        source = data.open()
        folder = out / "text_encoder"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            hub.write_json(folder / "config.json", word_config(source[range(512)]["caption"]))
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
        return cls(config, out, tokenizer, cache, judge, real, judge.read(real.video), text)

    def build(self, variant: Variant, seed: int) -> NOVA:
        """The untrained network; equal seeds give equal weights wherever variants share their shapes."""
        torch.manual_seed(seed)
        config, (channels, t, h, w) = self.config, self.cache.info.clip_shape
        layers, size, heads = config.num_layers, config.hidden_size, config.hidden_size // 32
        fields = {
            "temporal_layers": layers,
            "temporal_heads": heads,
            "spatial_layers": layers,
            "spatial_heads": heads,
            "head_layers": 3,
            "head_size": size,
            "latent_channels": channels,
            "latent_shape": (1, t * h, w) if variant.at_once else (t, h, w),
            "num_time_slots": None,
            "mixer_rank": 24,
            "text_size": self.text.features.shape[2],
            "text_length": TEXT_LENGTH,
        }
        return NOVA(NOVAConfig(size, **fields | dict(variant.config)))

    def result(self, variant: Variant, seed: int) -> dict[str, Any]:
        model = self.build(variant, seed)
        recipe = self.recipe(variant.name, model.config, seed, (TASK,))
        loop = dataclasses.replace(recipe.loop, ema_decay=0.998, autocast="bf16")
        recipe = dataclasses.replace(recipe, loop=loop)
        trained = self.trained(model, recipe, lambda batch, step: prepared(batch, variant.at_once))
        assert isinstance(trained, NOVA)
        measured = self.measure(trained, variant, seed)
        if variant.continued:
            measured["shapes_fvd_by_window"] = self.measure_windows(trained, seed)
        return {"variant": variant.name, "paper": variant.paper, "seed": seed, "results": [measured]}

    def measure(self, model: NOVA, variant: Variant, seed: int) -> dict[str, Any]:
        """shapes-FVD, shares of clips that show what the caption says, movement beside that of real clips, seconds.

        Movement is the mean squared difference of neighbouring frames. Seconds are per clip in batches of 32 and
        include no decoding into pixels.
        """
        frames = 1 if variant.at_once else self.cache.info.clip_shape[1]
        clips, seconds, steps = self.generate(model, frames, seed, variant.at_once)
        read, distance = self.judge.read(clips), self.distance_of(clips)
        heads = ("color", "shape", "motion")
        accuracies = {h: read.correct(h, self.real.attributes).float().mean().item() for h in heads}
        return {
            "num_decoding_steps": steps,
            "shapes_fvd": distance,
            "per_task": {TASK: distance},
            **{f"{head}_accuracy": value for head, value in accuracies.items()},
            "movement_over_real": movement(clips) / movement(self.real.video),
            "seconds_per_clip": seconds / len(clips),
        }

    def measure_windows(self, model: NOVA, seed: int) -> list[float]:
        """shapes-FVD of each window of a continued clip against the same window of real clips."""
        data, length = claims.clip_data(self.config), self.cache.info.clip_shape[1]
        world = dataclasses.replace(data.world(HELD_BACK_SEED).config, num_frames=length * self.config.windows)
        real = real_clips(world, 0, self.config.num_clips).video
        clips, _, _ = self.generate(model, length * self.config.windows, seed)
        return [
            frechet_distance_between(self.judge.read(a).features, self.judge.read(b).features)
            for a, b in zip(clips.split(length, dim=1), real.split(length, dim=1), strict=True)
        ]

    @torch.inference_mode()
    def generate(
        self, model: NOVA, frames: int, seed: int, at_once: bool = False
    ) -> tuple[UInt8[Tensor, "n t h w 3"], float, int]:
        """A clip for every caption, the seconds without decoding, and the sets of tokens per clip."""
        generator, sampler = torch.Generator().manual_seed(seed), FrameARSampler(sampling_of(model, at_once))
        clips, seconds, steps = [], 0.0, 0
        for features, mask in zip(*(part.split(32) for part in self.text), strict=True):
            begin = self.now()
            told = model.text_prefix(features.to(self.device), mask.to(self.device))
            prefix, count = torch.cat([told, model.null_prefix(1)]), len(features)
            rows = torch.cat([torch.arange(count), torch.full((count,), count)]).to(self.device)
            condition = FrameCondition(model.with_motion(prefix, None), rows, 2)
            last = last_of(sampler.sample(model, condition, frames, generator))
            seconds, steps = seconds + self.now() - begin, last.num_steps
            latents = unstacked(last.proposal, self.cache.info.clip_shape[1]) if at_once else last.proposal
            clips.append(self.clips(latents))
        return torch.cat(clips), seconds, steps


def prepared(batch: dict[str, Any], at_once: bool) -> dict[str, Any]:
    """A batch of the cache as the variant's network reads it."""
    kept = {name: value for name, value in batch.items() if name != "conditions"}
    return kept | ({"tokens": rearrange(batch["tokens"], "b c t h w -> b c 1 (t h) w")} if at_once else {})


def unstacked(latents: Float[Tensor, "b c 1 th w"], frames: int) -> Float[Tensor, "b c t h w"]:
    return rearrange(latents, "b c 1 (t h) w -> b c t h w", t=frames)


def sampling_of(model: NOVA, at_once: bool) -> FrameARSamplerConfig:
    """Half the sets for a clip that is made at once as for one made frame by frame: more make little difference."""
    if not at_once:
        return SAMPLING
    frames = model.config.latent_shape[1] // model.config.latent_shape[2]
    return dataclasses.replace(SAMPLING, num_decoding_steps=SAMPLING.num_decoding_steps * max(frames // 2, 1))


def movement(clips: UInt8[Tensor, "n t h w 3"]) -> float:
    """Mean squared difference of neighbouring frames."""
    return clips.float().diff(dim=1).square().mean().item()
