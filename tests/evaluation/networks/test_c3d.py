"""C3D, and the inception score from its logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.inception_score import inception_score
from mutoscope.evaluation.networks.c3d import C3D, load_c3d


@pytest.fixture(scope="module")
def small() -> C3D:
    torch.manual_seed(0)
    return C3D(num_classes=3, hidden=4)


def clips(num_frames: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (1, num_frames, 20, 30, 3), generator=generator, dtype=torch.uint8)


def test_the_network_has_the_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in C3D().parameters()) == 78_409_573


def test_clips_are_read_blue_first_and_centred_by_the_mean(small: C3D):
    red = torch.zeros(1, 16, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 255
    small.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = small.preprocess(red)
    assert x.shape == (1, 3, 16, 112, 112)
    assert x.amax((0, 2, 3, 4)).tolist() == pytest.approx([-1, -2, 252], rel=1e-5)


def test_a_score_per_class_comes_out_and_other_lengths_are_refused(small: C3D):
    assert small.train()(clips()).shape == (1, 3) and not small.training
    with pytest.raises(UserError, match="clips of 16 frames, found 15"):
        small(clips(15))


def test_files_without_mean_or_of_other_networks_are_refused(small: C3D, tmp_path):
    torch.save(small.state_dict(), tmp_path / "small.pt")
    with pytest.raises(UserError, match=r"does not hold C3D with UCF-101 classes: tensor 'fc6.weight' is \(4, 8192\)"):
        load_c3d(tmp_path / "small.pt")
    torch.save({name: value for name, value in small.state_dict().items() if name != "mean"}, tmp_path / "no_mean.pt")
    with pytest.raises(UserError, match="lacks the mean cube"):
        load_c3d(tmp_path / "no_mean.pt")
    torch.save(small.state_dict() | {"mean": torch.zeros(5)}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"`mean` has shape \(5,\)"):
        load_c3d(tmp_path / "odd.pt")


def test_equal_answers_score_one_and_sure_varied_ones_the_number_of_classes():
    assert inception_score(torch.randn(1, 7).repeat(9, 1)).item() == pytest.approx(1)
    assert inception_score(torch.eye(5).repeat(4, 1) * 1000).item() == pytest.approx(5)
    assert inception_score(torch.eye(5).repeat(4, 1) * 1e6).item() == pytest.approx(5)


@given(st.integers(0, 2**31), st.integers(4, 40), st.integers(2, 9))
def test_scores_lie_between_one_and_the_number_of_classes(seed: int, n: int, classes: int):
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed)) * 5
    parts = inception_score(logits, splits=2)
    assert parts.shape == (2,) and (parts >= 1 - 1e-9).all() and (parts <= classes + 1e-9).all()


def test_parts_are_consecutive_and_a_generator_shuffles():
    logits = torch.eye(4).repeat_interleave(4, dim=0) * 1000
    assert inception_score(logits, 4).tolist() == pytest.approx([1, 1, 1, 1])
    assert (inception_score(logits, 4, torch.Generator().manual_seed(0)) > 1.5).any()


def test_logits_that_are_not_finite_and_empty_parts_are_refused():
    logits = torch.zeros(4, 3)
    with pytest.raises(UserError, match="5 parts needs as many clips"):
        inception_score(logits, 5)
    logits[1, 1] = torch.nan
    with pytest.raises(UserError, match="Logits of 1 of 4 clips are not finite"):
        inception_score(logits)
