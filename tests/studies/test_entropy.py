"""The conditional-entropy analysis on tokens whose dependencies are known."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.errors import UserError
from mutoscope.layers.token_order import region_order
from mutoscope.studies.entropy import (
    EntropyConfig,
    Moments,
    analyse,
    conditional_entropy,
    dependency_map,
    draw,
    entropy_increase,
    measure_moments,
)
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer

SIDE = 4


class Chain(ClipSource[ClipBatch]):
    """Clips of one frame whose pixels are a Gaussian field: correlated with their neighbours, less so with distance."""

    def __init__(self, decay: float = 0.8) -> None:
        positions = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
        self.root = torch.linalg.cholesky(decay ** torch.cdist(positions, positions, p=1))

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        noise = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(i)) for i in indices]).double()
        video = (noise @ self.root.T).view(-1, 1, SIDE, SIDE, 1).float().expand(-1, -1, -1, -1, 3)
        return {"video": video, "label": torch.full((len(video),), -1), "caption": [""] * len(video)}


class Through(VideoTokenizer):
    """A pixel's first channel is its code vector."""

    class Quantizer(nn.Module):
        def lookup(self, tokens: Tensor) -> Tensor:
            return tokens

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = self.Quantizer()

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(1, 1, vocab_size=2)

    def from_uint8(self, frames: Tensor) -> Tensor:
        return frames.movedim(-1, 1)

    def encode(self, video: Tensor) -> Tensor:
        return video[:, :1]


@pytest.fixture(scope="module")
def moments() -> Moments:
    return measure_moments(Through(), Chain(), EntropyConfig(num_clips=6000, batch_size=2000))


def test_entropies_are_those_of_the_gaussian_field(moments: Moments):
    alone = 0.5 * math.log(2 * math.pi * math.e)
    assert conditional_entropy(moments, 5, [], 1e-6) == pytest.approx(alone, abs=0.03)
    neighbour = 0.5 * math.log(2 * math.pi * math.e * (1 - 0.8**2))
    assert conditional_entropy(moments, 5, [6], 1e-6) == pytest.approx(neighbour, abs=0.03)


def test_a_map_grows_with_the_distance_from_the_reference(moments: Moments):
    values = dependency_map(moments, 0, 1e-6).view(SIDE, SIDE)
    assert math.isnan(values[0, 0])
    assert values[0, 1] < values[0, 2] < values[0, 3] < values[3, 3]


def test_distant_tokens_cost_less_at_once_than_neighbours(moments: Moments):
    raster = entropy_increase(moments, torch.arange(16), 4, 1e-6)
    regions = entropy_increase(moments, region_order((1, SIDE, SIDE), 4), 4, 1e-6)
    assert raster[:4].abs().max() == 0 and raster.min() > -0.01 and regions.min() > -0.01
    assert regions.mean() < 0.7 * raster.mean()


def test_independent_tokens_cost_nothing_at_once():
    moments = measure_moments(Through(), Chain(decay=1e-9), EntropyConfig(num_clips=6000, batch_size=2000))
    assert entropy_increase(moments, torch.arange(16), 4, 1e-6).abs().max() < 0.02


def test_a_report_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    report = analyse(Through(), Chain(), EntropyConfig(num_clips=200), (SIDE, SIDE))
    assert report["maps"]["corner"][0][0] is None and report["mean_increase"]["regions"] > 0
    draw(report, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5_000
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_what_cannot_be_analysed_is_refused():
    with pytest.raises(UserError, match="too few"):
        measure_moments(Through(), Chain(), EntropyConfig(num_clips=20))
    with pytest.raises(UserError, match="latent frames 0 to 0"):
        measure_moments(Through(), Chain(), EntropyConfig(num_clips=200, frame=1))
    with pytest.raises(UserError, match="regions"):
        analyse(Through(), Chain(), EntropyConfig(num_clips=200, num_parallel=9), (SIDE, SIDE))
    with pytest.raises(UserError, match="discrete"):
        measure_moments(VideoTokenizerWithoutCodes(), Chain(), EntropyConfig(num_clips=200))


class VideoTokenizerWithoutCodes(VideoTokenizer):
    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(1, 1, latent_channels=4)
