"""I3D: its size, its padding, how it is loaded, and clips it refuses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import CONVENTIONS, convention_named, i3d_input
from mutoscope.evaluation.networks.i3d import I3D, I3DConfig, infer_config, load_i3d, same_padding

NARROW = I3DConfig(stem=(2, 2, 4), mixed=((2, 2, 2, 2, 2, 2),) * 9, num_classes=5)


def varied(config: I3DConfig) -> I3D:
    """A network whose batch norms are not those of a fresh one."""
    torch.manual_seed(0)
    network = I3D(config)
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and ".bn." in name:
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return network


def clip(num_frames: int = 9, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (1, num_frames, height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def full() -> I3D:
    return varied(I3DConfig(eps=1e-5))


def test_the_network_has_the_published_size(full: I3D):
    assert sum(p.numel() for p in full.parameters()) == 12_697_264
    names = [name for name in full.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(names) == 287
    assert infer_config(full.state_dict(), eps=1e-5) == full.config


@given(st.integers(1, 300), st.integers(1, 7), st.integers(1, 3))
def test_same_padding_rounds_lengths_up_and_puts_the_odd_cell_last(size: int, kernel: int, stride: int):
    front, back = same_padding(size, kernel, stride)
    assert 0 <= back - front <= 1
    if kernel >= stride:
        assert (size + front + back - kernel) // stride + 1 == -(-size // stride)


@torch.inference_mode()
def test_folding_leaves_the_function_as_it_is():
    video = i3d_input(clip(), CONVENTIONS["tats"])
    plain = varied(NARROW)
    torch.testing.assert_close(varied(NARROW).fold()(video), plain(video), rtol=1e-4, atol=1e-5)
    assert not plain.train().training


@torch.inference_mode()
def test_logits_are_averaged_over_all_steps():
    video = i3d_input(clip(num_frames=17), CONVENTIONS["tats"])
    steps = varied(NARROW).logits_per_step(video)
    assert steps.shape == (1, 5, 2)
    torch.testing.assert_close(varied(NARROW)(video), steps.mean(2))


def test_clips_below_nine_frames_or_of_another_size_are_refused():
    with pytest.raises(UserError, match="at least 9 frames, found 8"):
        i3d_input(clip(num_frames=8), CONVENTIONS["tats"])
    with pytest.raises(UserError, match="224×224 pixels, found 112×224"):
        varied(NARROW)(torch.zeros(1, 3, 9, 112, 224))


def test_weights_load_with_and_without_counters_and_gammas(full: I3D, tmp_path):
    state = {name: value for name, value in full.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, tmp_path / "i3d.pt")
    loaded, sha256 = load_i3d(tmp_path / "i3d.pt", eps=1e-5)
    video = i3d_input(clip(), CONVENTIONS["tats"])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(video), full(video), rtol=1e-4, atol=1e-4)
    assert len(sha256) == 64
    torch.save({name: value for name, value in state.items() if not name.endswith("bn.weight")}, tmp_path / "tf.pt")
    load_i3d(tmp_path / "tf.pt")
    with pytest.raises(UserError, match="it is another file"):
        load_i3d(tmp_path / "tf.pt", sha256=sha256)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(varied(NARROW).state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(UserError, match="does not hold I3D with Kinetics-400 classes: tensor 'Conv3d_1a"):
        load_i3d(tmp_path / "narrow.pt")
    torch.save({"fc.weight": torch.ones(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="'Conv3d_1a_7x7.conv3d.weight' is missing"):
        load_i3d(tmp_path / "other.pt")


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_gives_square_frames_between_minus_one_and_one(name: str):
    video = clip(height=20, width=30)
    before = video.clone()
    x = i3d_input(video, CONVENTIONS[name])
    assert x.shape == (1, 3, 9, 224, 224) and x.abs().max() <= 1 + 1e-6
    assert torch.equal(video, before)


def test_black_and_white_keep_their_ends_of_the_range():
    video = torch.zeros(1, 9, 16, 16, 3, dtype=torch.uint8)
    assert (i3d_input(video, CONVENTIONS["tf"]) == -1).all()
    torch.testing.assert_close(i3d_input(255 - video, CONVENTIONS["videogpt"]), torch.ones(1, 3, 9, 224, 224))


def test_cropping_leaves_out_the_sides_and_squashing_does_not():
    video = torch.zeros(1, 9, 32, 64, 3, dtype=torch.uint8)
    video[:, :, :, :8] = 255
    assert (i3d_input(video, CONVENTIONS["videogpt"]) == -1).all()
    assert i3d_input(video, CONVENTIONS["tats"]).max() > 0.99


def test_an_intermediate_size_loses_what_is_finer_and_leaves_that_size_as_it_is():
    fine, fitting = clip(height=128, width=128), clip(height=64, width=64)
    direct = replace(CONVENTIONS["tf-64"], through=None)
    assert not torch.equal(i3d_input(fine, CONVENTIONS["tf-64"]), i3d_input(fine, direct))
    torch.testing.assert_close(i3d_input(fitting, CONVENTIONS["tf-64"]), i3d_input(fitting, direct))


def test_unknown_conventions_are_named_with_the_nearest_known_one():
    with pytest.raises(UserError, match="tats"):
        convention_named("tat")
