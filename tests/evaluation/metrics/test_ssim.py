"""SSIM: what it must obey, and that its conventions are different questions."""

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.ssim import ssim_of_clip, ssim_per_frame

pytorch_msssim = pytest.importorskip("pytorch_msssim")
CONVENTIONS = ("magvit", "mcvd", "rgb")


def clips(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (2, 3, 20, 24, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_equal_frames_have_one_and_others_less_whichever_comes_first(convention):
    real, fake = clips(), clips(1)
    assert ssim_per_frame(real, real, convention).shape == (2, 3)
    torch.testing.assert_close(ssim_per_frame(real, real, convention), torch.ones(2, 3, dtype=torch.float64))
    found = ssim_per_frame(real, fake, convention)
    assert (found < 0.5).all()
    torch.testing.assert_close(found, ssim_per_frame(fake, real, convention))
    torch.testing.assert_close(ssim_of_clip(real, fake, convention), found.mean(1))


def test_colours_agree_with_another_implementation():
    real, fake = clips(), (clips().float() * 0.7 + clips(1).float() * 0.3).round().to(torch.uint8)
    planes = [video.flatten(0, 1).movedim(-1, 1).double() / 255 for video in (real, fake)]
    expected = pytorch_msssim.ssim(*planes, data_range=1.0, size_average=False)
    torch.testing.assert_close(ssim_per_frame(real, fake, "rgb").flatten(), expected, atol=1e-6, rtol=0)


def test_floats_in_the_unit_range_count_like_bytes():
    real, fake = clips(), clips(1)
    for convention in CONVENTIONS:
        floats = ssim_per_frame(real.double() / 255, fake.double() / 255, convention)
        torch.testing.assert_close(floats, ssim_per_frame(real, fake, convention))


def test_clips_of_two_shapes_and_small_frames_are_refused():
    with pytest.raises(UserError, match="clips of one shape"):
        ssim_per_frame(clips(), clips()[:, :2])
    with pytest.raises(UserError, match="frames of 8×24"):
        ssim_per_frame(clips()[:, :, :8], clips()[:, :, :8])
