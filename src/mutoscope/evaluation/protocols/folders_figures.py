"""Figures of the protocol "folders", and the caveats that the numbers themselves give rise to."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mutoscope.evaluation.metrics.frechet import frechet_distance_between
from mutoscope.evaluation.metrics.fvd import WIDEST_RESAMPLED, repeated_frechet_figure
from mutoscope.evaluation.metrics.intervals import Figure, Figures, figure, frechet_figure, mean_figure
from mutoscope.evaluation.networks.clip_features import evenly
from mutoscope.evaluation.protocols.published_figures import kvd_figure, score_figure
from mutoscope.evaluation.rows import Rows

CHANGE = ("motion", "flicker")
LEVELS = ("brightness", "contrast", "saturation", "sharpness")
SIMILARITY = ("psnr_db", "psnr_frames_db", "ssim", "lpips_vgg", "lpips_alex")
HALVES, HALVES_REAL = "_halves", "_halves_real"  # suffixes of figures: half against half of the real clips
# Pairs that belong together differ less than others; a ratio of mean squared differences at or above this is chance.
BY_CHANCE = 0.9
LEAST_FOR_CHANCE = 3  # videos


@dataclass(frozen=True)
class Compared:
    """Rows of both sides, and of the pairs. Videos: number of the video of each chosen clip, and of both of each pair.

    network: name of the network that gave the row "features". biased: covariance of FVD over n.
    """

    mine: Rows
    real: Rows | None
    pairs: Rows | None
    mine_videos: tuple[int, ...]
    real_videos: tuple[int, ...]
    pair_videos: tuple[tuple[int, int], ...]
    network: str | None
    biased: bool
    seed: int

    @property
    def num_real(self) -> int:
        return 0 if self.real is None else len(self.real)

    @property
    def num_pairs(self) -> int:
        return 0 if self.pairs is None else len(self.pairs)

    @property
    def num_identical(self) -> int:
        """Pairs of equal pixels, whose PSNR is infinite; averages are over the others."""
        return 0 if self.pairs is None else int(self.pairs["psnr_db"].isinf().sum())

    @property
    def dimension(self) -> int:
        """Width of the feature rows; 0 without a feature network."""
        return self.mine["features"].shape[1] if "features" in self.mine.tensors else 0

    @property
    def has_distance(self) -> bool:
        """Whether there are features, and clips for a covariance on both sides."""
        return self.dimension > 0 and min(len(self.mine), self.num_real) > 1

    @property
    def notes(self) -> list[str]:
        """What the report lacks, and why."""
        if not self.dimension or self.has_distance:
            return []
        return [f"no {self.distance}: it needs 2 clips on each side, found {len(self.mine)} and {self.num_real}"]

    @property
    def distance(self) -> str:
        """Name of the Fréchet distance."""
        return f"frechet-{self.network}"

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Features of mine, of one half of the real videos and of the other: as many clips of each.

        Halves share no video. Clips whose partner is in the other half are not among mine. None if there are too few.
        """
        if self.real is None or not self.dimension:
            return None
        videos = torch.tensor(self.real_videos)[self.real["index"]]
        in_other = torch.isin(videos, videos.unique()[1::2])
        other, partners = set(videos[in_other].tolist()), dict(self.pair_videos)
        own = [self.mine_videos[i] for i in self.mine["index"].tolist()]
        apart = torch.tensor([partners.get(video) not in other for video in own])
        parts = [self.mine["features"][apart], self.real["features"][~in_other], self.real["features"][in_other]]
        count = min(len(part) for part in parts)
        if count < 2:
            return None
        mine, half, rest = (part[evenly(len(part), count)] for part in parts)
        return mine, half, rest

    @property
    def num_of_halves(self) -> int:
        """Clips on each side of the distance between halves; 0 without one."""
        return 0 if self.halves is None else len(self.halves[0])


def figures(compared: Compared) -> Figures:
    """All figures that the rows allow, similarity first."""
    return (
        similarity_figures(compared) | distance_figures(compared) | weights_figures(compared) | change_figures(compared)
    )


def similarity_figures(compared: Compared) -> Figures:
    """PSNR, SSIM and LPIPS of the pairs; those that are equal have no PSNR and count in none of its averages."""
    if compared.pairs is None:
        return {}
    found: Figures = {}
    for name in SIMILARITY:
        if name in compared.pairs.tensors:
            values = compared.pairs[name]
            found[name] = averaged(values[values.isfinite()], compared.seed)
    return found


def distance_figures(compared: Compared) -> Figures:
    """Fréchet distance on the features of the network at hand; on halves also beside real against real.

    A distance grows when there are few clips, so one of real clips compares only with one of as many.
    """
    if compared.real is None or not compared.has_distance:
        return {}
    name, seed = compared.distance, compared.seed
    found = {name: named_distance(compared.mine["features"], compared.real["features"], seed)}
    if compared.halves is not None:
        mine, half, rest = compared.halves
        found[f"{name}{HALVES}"] = named_distance(mine, rest, seed)
        found[f"{name}{HALVES_REAL}"] = named_distance(half, rest, seed)
    return found


def named_distance(x: Tensor, y: Tensor, seed: int) -> Figure:
    """Fréchet distance with its interval; of wide features the value alone."""
    if x.shape[1] > WIDEST_RESAMPLED:
        return figure(frechet_distance_between(x, y), np.nan, np.nan)
    return frechet_figure(x.double(), y.double(), seed)


def weights_figures(compared: Compared) -> Figures:
    """FVD, KVD, FID and the inception score, where the user has the weights."""
    mine, real, seed = compared.mine, compared.real, compared.seed
    if real is None or min(len(mine), len(real)) < 2:
        return {}
    found: Figures = {}
    if "i3d" in mine.tensors:
        found["fvd"] = repeated_frechet_figure([mine["i3d"]], real["i3d"], compared.biased, seed)
        found["kvd"] = kvd_figure(mine["i3d"], real["i3d"])
    if "inception" in mine.tensors:
        found["fid_one_frame_per_clip"] = repeated_frechet_figure([mine["inception"]], real["inception"], False, seed)
    if "c3d" in mine.tensors:
        found["inception_score"] = score_figure(mine["c3d"], 1)
        found["inception_score_real"] = score_figure(real["c3d"], 1)
    return found


def change_figures(compared: Compared) -> Figures:
    """Motion, flicker, levels and their drift, each with that of the real clips."""
    found: Figures = {}
    for name in (*CHANGE, *LEVELS, *(f"{level}_drift" for level in LEVELS)):
        for suffix, rows in (("", compared.mine), ("_real", compared.real)):
            if rows is not None and name in rows.tensors:
                found[f"{name}{suffix}"] = averaged(rows[name], compared.seed)
    return found


def averaged(values: Tensor, seed: int) -> Figure:
    """Mean over clips with its interval; one clip has no interval, none has no value."""
    if len(values) < 2:
        return figure(values.item() if len(values) else np.nan, np.nan, np.nan)
    return mean_figure(values, seed)


def caveats(compared: Compared) -> list[str]:
    """Sentences without which a figure would mislead."""
    return [*_few_clips(compared), *_paired_by_chance(compared)]


def _few_clips(compared: Compared) -> list[str]:
    fewest = min(len(compared.mine), compared.num_real)
    if not compared.has_distance or fewest > compared.dimension:
        return []
    beside = (
        f"compare {compared.distance}{HALVES} with that of real clips" if compared.halves is not None else "add videos"
    )
    return [
        f"{fewest} clips are few for {compared.dimension} features: {compared.distance} is far too high, whatever "
        f"the clips; {beside}."
    ]


def _paired_by_chance(compared: Compared) -> list[str]:
    """Whether clips of one name are no more alike than others: numbered files have equal names by accident."""
    if compared.pairs is None:
        return []
    videos = torch.tensor([compared.pair_videos[i][1] for i in compared.pairs["index"].tolist()])
    if len(videos.unique()) < LEAST_FOR_CHANCE:
        return []
    mine, real = (compared.pairs[name].double() for name in ("thumbnail", "thumbnail_real"))
    distances = torch.cdist(mine, real).square()
    own, others = distances.diagonal().mean(), distances[videos[:, None] != videos].mean()
    if own < BY_CHANCE * others or others == 0:
        return []
    return [
        "Paired clips are no more alike than others, so their names may agree by accident: --pairs none compares "
        "without PSNR and SSIM."
    ]
