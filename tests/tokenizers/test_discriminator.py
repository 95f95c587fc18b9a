from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.tokenizers.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_loss,
    generator_loss,
    lecam_loss,
    r1_penalty,
)

PAPER = [("B", 128, 15_339_457), ("L", 128, 61_341_569), ("B", 64, 11_734_465), ("L", 64, 46_922_625)]
PAPER_2D = [("B", 5_972_545), ("L", 23_880_833)]


def small(**changes) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(replace(DiscriminatorConfig(4, (2, 2), (5, 8, 6)), **changes))


@pytest.mark.parametrize("size, resolution, count", PAPER)
def test_published_sizes_have_the_published_parameter_counts(
    size: Literal["B", "L"], resolution: Literal[64, 128], count: int
):
    with torch.device("meta"):
        network = Discriminator(DiscriminatorConfig.paper(size, resolution))
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("size, count", PAPER_2D)
def test_the_2d_counterparts_have_the_published_parameter_counts(size: Literal["B", "L"], count: int):
    with torch.device("meta"):
        network = Discriminator(replace(DiscriminatorConfig.paper(size), per_frame=True))
    assert sum(p.numel() for p in network.parameters()) == count


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 9), h=st.integers(1, 9), w=st.integers(1, 9), per_frame=st.booleans())
def test_any_clip_shape_gives_one_logit_per_clip_or_frame(t: int, h: int, w: int, per_frame: bool):
    network = small(clip_shape=(t, h, w), per_frame=per_frame)
    assert network(torch.zeros(2, 3, t, h, w)).shape == (2 * t if per_frame else 2, 1)


def test_a_per_frame_discriminator_ignores_neighbouring_frames():
    network, video = small(per_frame=True), torch.rand(1, 3, 5, 8, 6)
    changed = video.clone()
    changed[:, :, 3] += 0.5
    difference = (network(video) - network(changed)).abs().flatten()
    assert difference[3] > 1e-4 and difference[[0, 1, 2, 4]].max() == 0


def test_another_clip_shape_is_refused():
    with pytest.raises(UserError, match=r"\(5, 8, 6\).*\(5, 8, 8\)"):
        small()(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(UserError, match="at least one stage"):
        DiscriminatorConfig(channel_multipliers=())


def test_the_penalty_is_the_squared_gradient_without_a_half():
    video = torch.rand(3, 3, 2, 4, 4, requires_grad=True)
    weights = torch.rand(3, 2, 4, 4)
    logits = (video * weights).sum(dim=(1, 2, 3, 4))[:, None]
    assert r1_penalty(logits, video).item() == pytest.approx(weights.square().sum().item(), rel=1e-5)


def test_the_penalty_trains_the_discriminator():
    network, video = small(), torch.rand(2, 3, 5, 8, 6, requires_grad=True)
    r1_penalty(network(video), video).backward()
    assert network.conv_in.weight.grad is not None and network.conv_in.weight.grad.abs().sum() > 0


def test_losses_prefer_the_right_answers():
    yes, no = torch.full((4, 1), 3.0), torch.full((4, 1), -3.0)
    for kind in ("non-saturating", "hinge"):
        assert discriminator_loss(yes, no, kind) < discriminator_loss(no, yes, kind)
        assert generator_loss(yes, kind) < generator_loss(no, kind)


def test_lecam_acts_only_beyond_the_averages():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert lecam_loss(zero, one, zero, one) == 0
    assert lecam_loss(one, zero, one, zero) == 2
