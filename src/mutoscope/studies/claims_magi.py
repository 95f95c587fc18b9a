"""MAGI's comparisons at small scale (arXiv 2501.12389, Tab. 4 and Fig. 5) on the shapes dataset.

Complete against masked teacher forcing, after equally many updates and after equal training time; dynamic intervals and
noise injection on and off. Every variant predicts held-out clips from their first frame, continues them to eight times
the length of training, and is measured frame by frame.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, TypedDict

import torch
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from mutoscope.data.sources.shapes.world import COLORS, HELD_BACK_SEED, ShapesWorld
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.temporal import mean_squared_motion
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.networks.shapes_detector import shapes_agree
from mutoscope.evaluation.sources.shapes_clips import real_clips
from mutoscope.models.magi import MAGI, FrameConditions, MAGIConfig
from mutoscope.runs.tokenize import tokenize
from mutoscope.sampling.base import last_of
from mutoscope.sampling.frame_history import StreamCondition
from mutoscope.sampling.frame_stream import FrameStreamSampler, FrameStreamSamplerConfig
from mutoscope.studies import claims
from mutoscope.training.config import ModelRecipe
from mutoscope.training.trainer import Batch

TASK = "frame-prediction"
SAMPLING = FrameStreamSamplerConfig(num_decoding_steps=5, num_diffusion_steps=12, sample_range=4.0)
CONTEXT = 4  # frames that determine the rest of a clip, so that errors against the real one are meaningful
IMAGE_FRAMES = (1, 5, 10, 15)  # frames that are scored as images
FEW_CLIPS = 128  # clips for errors and for scores of images
BATCH = 128  # clips generated together
DECODE_BATCH = 4  # clips decoded together
STEPS_OF_TIMING = 5  # denoising steps of timed clips: the ratio of seconds hardly depends on them


@dataclass(frozen=True)
class ClaimsConfig(claims.ClaimsConfig):
    """`max_interval`: of the clips that dynamic intervals are trained on. `num_rollouts` clips are continued to
    `windows` times the length of training. `equal_time`: updates of masked teacher forcing in the time of one update of
    complete teacher forcing.
    """

    tokenizer: str = "vae-shapes"
    seeds: tuple[int, ...] = (0, 1, 2)
    num_steps: int = 1_000
    batch_size: int = 8
    num_train_clips: int = 4_000
    num_clips: int = 512
    num_layers: int = 2
    hidden_size: int = 64
    num_heads: int = 4
    max_interval: int = 3
    num_rollouts: int = 100
    windows: int = 8
    timed_lengths: tuple[int, ...] = (16, 64, 128)
    equal_time: float = 1.42


@dataclass(frozen=True)
class Variant(claims.Variant):
    """One row of the tables. `longer`: trained for the time that complete teacher forcing takes."""

    teacher_forcing: str = "complete"
    interval: bool = True
    noise: bool = True
    longer: bool = False


VARIANTS = (
    Variant("ctf", "Tab. 4: complete teacher forcing, both strategies"),
    Variant("mtf", "Tab. 4: masked teacher forcing, equal updates", "masked"),
    Variant("mtf-equal-time", "Tab. 4: masked teacher forcing, equal time", "masked", longer=True),
    Variant("ctf-no-strategy", "Fig. 5: neither strategy", interval=False, noise=False),
    Variant("ctf-interval-only", "Fig. 5: dynamic intervals only", noise=False),
    Variant("ctf-noise-only", "Fig. 5: noise injection only", interval=False),
)


class Measurement(claims.Measurement):
    """Squared errors are of pixels in [0, 1], in frames after several context frames, beside those of repeating the
    last context frame. `picture_distance_by_frame`: shapes-FVD of single frames. By window of a long clip: shapes-FVD,
    mean squared motion over that of real clips, and the share of clips whose last frame shows the right shapes.
    """

    error_by_frame: list[float]
    error_of_copying_by_frame: list[float]
    picture_distance_by_frame: list[float]
    shapes_fvd_by_window: list[float]
    movement_over_real_by_window: list[float]
    detected_by_window: list[float]
    detected_in_real_by_window: list[float]
    num_updates: int


class CacheSeconds(TypedDict):
    """Seconds for one clip. `formula`: ratio predicted by counting passes of frames."""

    num_frames: int
    cached_seconds: float
    uncached_seconds: float
    ratio: float
    formula: float


def reduction(rows: Sequence[claims.SummaryRow], other: str) -> float | None:
    """Mean over seeds of 1 − FVD of complete / FVD of masked teacher forcing; None if one of them is missing."""
    found = {row["variant"]: row["shapes_fvd_per_seed"] for row in rows}
    if "ctf" not in found or other not in found:
        return None
    pairs = list(zip(found["ctf"], found[other], strict=True))
    return sum(1 - complete / masked for complete, masked in pairs) / len(pairs)


@dataclass
class Laboratory(claims.Laboratory[Variant]):
    """Builds, trains and measures the variants.

    `plain`: the cache of clips at interval 1. `long`: real clips for rollouts; `colors`: the colours of their shapes.
    """

    config: ClaimsConfig
    plain: TokenCache
    long: UInt8[Tensor, "n t h w 3"]
    colors: Bool[Tensor, "n colors"]

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
        plain, varied = (
            tokenize(
                tokenizer,
                config.tokenizer,
                kind.open(),
                out / name,
                num_clips=config.num_train_clips,
                data=kind.describe() | {"seed": kind.seed},
                fields=("interval",),
            )
            for name, kind in (
                ("tokens-plain", data),
                ("tokens", dataclasses.replace(data, max_interval=config.max_interval)),
            )
        )
        real = real_clips(data.world(HELD_BACK_SEED).config, 0, config.num_clips)
        length = plain.info.clip_shape[1] * config.windows
        rollout = dataclasses.replace(data.world(HELD_BACK_SEED).config, num_frames=length)
        clips = [ShapesWorld(rollout, HELD_BACK_SEED).clip(i) for i in range(config.num_rollouts)]
        colors = torch.zeros(len(clips), len(COLORS), dtype=torch.bool)
        for row, clip in zip(colors, clips, strict=True):
            row[[shape.color for shape in clip.objects]] = True
        long = torch.stack([torch.from_numpy(clip.frames) for clip in clips])
        readings = classifier.read(real.video)
        return cls(config, out, tokenizer, varied, classifier, real, readings, plain, long, colors)

    def build(self, variant: Variant, seed: int) -> MAGI:
        """The untrained network; equal seeds give equal weights."""
        torch.manual_seed(seed)
        config, (channels, *shape) = self.config, self.cache.info.clip_shape
        return MAGI(
            MAGIConfig(
                config.hidden_size,
                config.num_layers,
                config.num_heads,
                head_layers=2,
                head_size=config.hidden_size,
                latent_channels=channels,
                latent_shape=(shape[0], shape[1], shape[2]),
                teacher_forcing="complete" if variant.teacher_forcing == "complete" else "masked",
                noise_levels=5 if variant.noise else 0,
                dropout=0.0,
            )
        )

    def result(self, variant: Variant, seed: int) -> claims.Result:
        model = self.build(variant, seed)
        recipe = self.recipe(variant.name, model.config, seed, (TASK,))
        steps = round(recipe.loop.num_steps * (self.config.equal_time if variant.longer else 1))
        loop = dataclasses.replace(recipe.loop, num_steps=steps, ema_decay=0.99, autocast="bf16")
        recipe = dataclasses.replace(recipe, loop=loop)
        trained = self.trained_on(self.cache if variant.interval else self.plain, model, recipe)
        return claims.result_of(variant, seed, [self.measure(trained, seed, steps)])

    def trained_on(self, cache: TokenCache, model: MAGI, recipe: ModelRecipe) -> MAGI:
        lab = dataclasses.replace(self, cache=cache)
        trained = lab.trained(model, recipe, without_conditions)
        assert isinstance(trained, MAGI)
        return trained

    def conclusions(self, rows: Sequence[claims.SummaryRow]) -> dict[str, object]:
        """Relative reduction of shapes-FVD by complete teacher forcing, and seconds with and without a cache."""
        return {
            "ctf_vs_mtf_fvd_reduction": reduction(rows, "mtf"),
            "ctf_vs_mtf_fvd_reduction_equal_time": reduction(rows, "mtf-equal-time"),
            "seconds_by_length": seconds_by_length(self.build(VARIANTS[0], 0).eval(), self.config.timed_lengths),
        }

    # --------------------------------------------------------------------------------------------------- measures

    def measure(self, model: MAGI, seed: int, num_updates: int) -> Measurement:
        """Predictions from one and from several context frames, and rollouts."""
        length, real = self.cache.info.clip_shape[1], self.real.video
        clips = self.generate(model, real[:, :1], length, seed)
        distance = self.distance_of(clips)
        after = self.generate(model, real[:FEW_CLIPS, :CONTEXT], length, seed)
        long = self.generate(model, self.long[:, :1], self.long.shape[1], seed)
        windows = list(zip(long.split(length, dim=1), self.long.split(length, dim=1), strict=True))
        few = slice(0, FEW_CLIPS)
        return {
            "num_decoding_steps": SAMPLING.num_decoding_steps,
            "shapes_fvd": distance,
            "per_task": {TASK: distance},
            "error_by_frame": error_by_frame(after, real[few]),
            "error_of_copying_by_frame": error_by_frame(real[few, CONTEXT - 1 : CONTEXT].expand_as(after), real[few]),
            "picture_distance_by_frame": [
                frechet_distance_between(self.still(clips[few, t]), features)
                for t, features in zip(IMAGE_FRAMES, self.real_images, strict=True)
            ],
            "shapes_fvd_by_window": [
                frechet_distance_between(self.classifier.read(generated).features, features)
                for (generated, _), features in zip(windows, self.real_windows, strict=True)
            ],
            "movement_over_real_by_window": [mean_squared_motion(a) / mean_squared_motion(b) for a, b in windows],
            "detected_by_window": [shapes_agree(a[:, -1], self.colors).float().mean().item() for a, _ in windows],
            "detected_in_real_by_window": [
                shapes_agree(b[:, -1], self.colors).float().mean().item() for _, b in windows
            ],
            "num_updates": num_updates,
        }

    @cached_property
    def real_windows(self) -> list[Float64[Tensor, "n d"]]:
        """Features of the windows of long real clips."""
        windows = self.long.split(self.cache.info.clip_shape[1], dim=1)
        return [self.classifier.read(window).features for window in windows]

    @cached_property
    def real_images(self) -> list[Float64[Tensor, "n d"]]:
        """Features of single frames of real clips."""
        return [self.still(self.real.video[:FEW_CLIPS, t]) for t in IMAGE_FRAMES]

    def still(self, frames: UInt8[Tensor, "n h w 3"]) -> Float64[Tensor, "n d"]:
        """Features of single frames, each repeated to a clip without motion."""
        length = self.cache.info.clip_shape[1]
        return self.classifier.read(frames[:, None].expand(-1, length, -1, -1, -1)).features

    @torch.inference_mode()
    def generate(
        self,
        model: MAGI,
        context: UInt8[Tensor, "n k h w 3"],
        frames: int,
        seed: int,
        sampling: FrameStreamSamplerConfig = SAMPLING,
    ) -> UInt8[Tensor, "n t h w 3"]:
        """Clips of `frames` latent frames that begin with the context frames."""
        generator, clips = torch.Generator().manual_seed(seed), []
        for part in context.split(BATCH):
            interval = FrameConditions(torch.ones(len(part), dtype=torch.int64, device=self.device))
            first = self.tokenizer.encode(self.video(part))
            sampler = FrameStreamSampler(sampling)
            condition = StreamCondition(lambda frame, c=interval: c, len(part), frames, first)
            events = sampler.sample(model, condition, generator)
            latents = last_of(events).proposal
            clips += [self.clips(x) for x in latents.split(DECODE_BATCH)]
        return torch.cat(clips)


def without_conditions(batch: Batch, step: int) -> Batch:
    """The batch with latents and intervals only."""
    return {name: batch[name] for name in ("tokens", "interval") if name in batch}


def error_by_frame(generated: UInt8[Tensor, "n t h w 3"], real: UInt8[Tensor, "n t h w 3"]) -> list[float]:
    """Mean squared error of every frame after the context frames."""
    error = (generated.float() - real.float()).div(255).square().mean((0, 2, 3, 4))
    return error[CONTEXT:].tolist()


def seconds_by_length(model: MAGI, lengths: tuple[int, ...], repeats: int = 1) -> list[CacheSeconds]:
    """Seconds for unconditional clips of several lengths with all frames as history, with and without a cache.

    Counting passes of frames predicts a ratio of (K/(K + 1)) · (N + 1)/2 for N frames of K sets each.
    """
    rows: list[CacheSeconds] = []
    for length in lengths:
        taken: dict[bool, float] = {}
        for use_cache in (True, False):
            config = dataclasses.replace(
                SAMPLING, window_mode="growing", use_cache=use_cache, num_diffusion_steps=STEPS_OF_TIMING
            )
            taken[use_cache] = min(_seconds(model, config, length) for _ in range(repeats))
        sets = SAMPLING.num_decoding_steps
        formula = sets / (sets + 1) * (length + 1) / 2
        rows.append(
            {
                "num_frames": length,
                "cached_seconds": taken[True],
                "uncached_seconds": taken[False],
                "ratio": taken[False] / taken[True],
                "formula": formula,
            }
        )
    return rows


def _seconds(model: MAGI, config: FrameStreamSamplerConfig, length: int) -> float:
    interval = FrameConditions(torch.ones(1, dtype=torch.int64))
    begin = time.perf_counter()
    condition = StreamCondition(lambda frame: interval, 1, length)
    for _event in FrameStreamSampler(config).sample(model, condition, torch.Generator().manual_seed(0)):
        pass
    return time.perf_counter() - begin
