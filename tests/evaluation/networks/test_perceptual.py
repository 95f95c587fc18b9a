"""LPIPS of clips from local files."""

from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.perceptual import LPIPSMetric, load_lpips
from mutoscope.tokenizers.perceptual import AlexNet


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> LPIPSMetric:
    folder: Path = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    torch.save(AlexNet().state_dict(), folder / "alexnet.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(AlexNet.MAP_WIDTHS)}
    torch.save(heads, folder / "alex.pth")
    return load_lpips(folder / "alexnet.pth", folder / "alex.pth")


def clips(side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, side, side, 3), generator=generator, dtype=torch.uint8)


def test_every_frame_has_a_distance(metric: LPIPSMetric):
    real = clips()
    fake = real.clone()
    fake[1, 2] = 255 - fake[1, 2]
    found = metric.per_frame(real, fake)
    assert found.shape == (2, 3) and found.dtype == torch.float64
    assert found[1, 2] > 0 and found.sum() == found[1, 2]
    assert metric.trunk == "alex" and len(metric.sha256) == 64


def test_clips_of_two_lengths_and_small_frames_are_refused(metric: LPIPSMetric):
    with pytest.raises(UserError, match="clips of one shape"):
        metric.per_frame(clips(), clips()[:, :2])
    with pytest.raises(UserError, match="at least 64 pixels, found 32"):
        metric.per_frame(clips(32), clips(32))
