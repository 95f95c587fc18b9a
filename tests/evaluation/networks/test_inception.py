"""Inception-v3 as FID uses it: its size, its input, and files it refuses."""

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.inception import InceptionV3, average, load_inception
from mutoscope.meta_device import on_meta_device


def test_the_network_has_the_published_size():
    with on_meta_device():
        network = InceptionV3()
    trunk = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("fc."))
    assert trunk == 21_785_568 and network.fc.weight.shape == (1008, 2048)


def test_means_leave_out_what_lies_outside():
    torch.testing.assert_close(average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_files_of_other_networks_are_refused(tmp_path):
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="does not hold Inception-v3 of 2015-12-05"):
        load_inception(tmp_path / "part.pt")


@pytest.mark.slow
@torch.inference_mode()
def test_frames_of_any_size_give_2048_numbers(tmp_path):
    torch.manual_seed(0)
    network = InceptionV3()
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "inception.pt")
    loaded, sha256 = load_inception(tmp_path / "inception.pt")
    frames = torch.randint(256, (2, 40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert loaded.preprocess(frames).shape == (2, 3, 299, 299) and loaded.preprocess(frames).abs().max() <= 1
    torch.testing.assert_close(loaded.train()(frames), network(frames))
    assert loaded(frames).shape == (2, 2048) and len(sha256) == 64
    torch.save(
        state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "torchvision.pt"
    )
    with pytest.raises(UserError, match=r"'fc.weight' is \(1000, 2048\) instead of \(1008, 2048\)"):
        load_inception(tmp_path / "torchvision.pt")
