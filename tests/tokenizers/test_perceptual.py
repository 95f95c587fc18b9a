import pytest
import torch
from safetensors.torch import save_file

from mutoscope.errors import UserError
from mutoscope.tokenizers.perceptual import VGG16, PerceptualLoss, ResNet, ResNetConfig, load_perceptual, pad_same

TINY = ResNetConfig(blocks=(1, 2), width=4, num_outputs=6)


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 2, 16, 16, generator=generator), torch.rand(2, 3, 2, 16, 16, generator=generator)


def test_resnet_50_has_the_published_parameter_count():
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(ResNetConfig()).parameters()) == 25_557_032
        assert sum(p.numel() for p in VGG16().parameters()) == 14_714_688


@pytest.mark.parametrize("compare", ["logits", "features"])
@pytest.mark.parametrize("flavor", ["torchvision", "released"])
def test_equal_clips_have_no_distance_and_different_ones_do(compare: str, flavor: str):
    torch.manual_seed(0)
    loss = PerceptualLoss(ResNet(ResNetConfig((1, 2), 4, 6, flavor)), compare)
    real, fake = clips()
    assert loss(real, real) == 0 and loss(real, fake) > 0


def test_gradients_reach_the_reconstruction_and_never_the_network():
    torch.manual_seed(0)
    loss = PerceptualLoss(VGG16()).train()
    real, fake = clips()
    fake.requires_grad_(True)
    loss(real, fake).backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert not loss.network.training and all(p.grad is None for p in loss.parameters())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_local_file_in_public_naming(tmp_path, suffix: str):
    torch.manual_seed(0)
    network, path = ResNet(TINY), tmp_path / f"resnet{suffix}"
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_perceptual(path)
    assert isinstance(loaded.network, ResNet) and loaded.network.config == TINY
    assert torch.equal(loaded(*clips()), PerceptualLoss(network)(*clips()))


def test_a_vgg_file_is_recognised_and_its_classifier_left_out(tmp_path):
    network = VGG16()
    torch.save(network.state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg.pth")
    assert isinstance(load_perceptual(tmp_path / "vgg.pth").network, VGG16)


def test_files_that_are_no_such_network_are_explained(tmp_path):
    with pytest.raises(UserError, match="no file"):
        load_perceptual(tmp_path / "missing.pth")
    (tmp_path / "broken.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable weights file"):
        load_perceptual(tmp_path / "broken.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="neither"):
        load_perceptual(tmp_path / "other.pth")
    state = ResNet(TINY).state_dict()
    state.pop("layer2.1.bn2.weight")
    torch.save(state, tmp_path / "incomplete.pth")
    with pytest.raises(UserError, match=r"layer2\.1\.bn2\.weight"):
        load_perceptual(tmp_path / "incomplete.pth")


def test_same_padding_gives_the_rounded_up_size_and_puts_the_odd_cell_last():
    x = torch.ones(1, 1, 5, 6)
    padded = pad_same(x, 3, 2)
    assert padded.shape[-2:] == (7, 7)
    assert padded[0, 0, 0].sum() == 0 and padded[0, 0, 1, 0] == 1 and padded[0, 0, 1, -1] == 0
