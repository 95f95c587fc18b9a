from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mutoscope.errors import UserError
from mutoscope.tokenizers.perceptual import (
    LPIPS,
    VGG16,
    AlexNet,
    Compare,
    Flavor,
    PerceptualLoss,
    ResNet,
    ResNetConfig,
    load_perceptual,
    pad_same,
)

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
def test_equal_clips_have_no_distance_and_different_ones_do(compare: Compare, flavor: Flavor):
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


def test_a_vgg_file_is_recognised_and_its_classifier_ignored(tmp_path):
    network = VGG16()
    torch.save(network.state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg.pth")
    assert isinstance(load_perceptual(tmp_path / "vgg.pth").network, VGG16)


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights in torchvision's and LPIPS' naming."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    torch.save(VGG16().state_dict(), folder / "vgg16.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(VGG16.MAP_WIDTHS)}
    torch.save(heads, folder / "vgg.pth")
    save_file(heads, folder / "vgg.safetensors")
    return {name: folder / name for name in ("vgg16.pth", "vgg.pth", "vgg.safetensors")}


@pytest.mark.parametrize("heads", ["vgg.pth", "vgg.safetensors"])
def test_lpips_follows_its_definition(lpips_files: dict[str, Path], heads: str):
    loss = load_perceptual(lpips_files["vgg16.pth"], heads=lpips_files[heads])
    assert isinstance(loss, LPIPS)
    real, fake = clips()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])  # of LPIPS, for [-1, 1]
    weights = torch.load(lpips_files["vgg.pth"], weights_only=True)
    expected = 0.0
    for sample in range(2):
        for t in range(2):
            x, y = (
                ((2 * clip[sample, :, t] - 1 - shift[:, None, None]) / scale[:, None, None])[None]
                for clip in (real, fake)
            )
            for i, pair in enumerate(maps_of(loss.network, x, y)):
                a, b = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in pair)
                expected += torch.nn.functional.conv2d((a - b) ** 2, weights[f"lin{i}.model.1.weight"]).mean()
    torch.testing.assert_close(loss(real, fake), torch.as_tensor(expected / 4), rtol=1e-4, atol=0)
    assert loss(real, real) == 0


def maps_of(network: VGG16 | AlexNet, *frames: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Feature maps before each pooling, of frames that are normalised already."""
    maps: list[tuple[torch.Tensor, ...]] = []
    for layer in network.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            maps.append(frames)
        frames = tuple(layer(x) for x in frames)
    return [*maps, frames]


def test_an_alexnet_file_is_recognised_and_has_heads_of_its_own(lpips_files: dict[str, Path], tmp_path):
    torch.manual_seed(0)
    network = AlexNet()
    assert sum(p.numel() for p in network.parameters()) == 2_469_696
    torch.save(network.state_dict() | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(AlexNet.MAP_WIDTHS)}
    torch.save(heads, tmp_path / "alex.pth")
    loss = load_perceptual(tmp_path / "alexnet.pth", heads=tmp_path / "alex.pth")
    assert isinstance(loss, LPIPS) and isinstance(loss.network, AlexNet)
    real, fake = torch.rand(2, 3, 1, 64, 64), torch.rand(2, 3, 1, 64, 64)
    layers = loss.per_layer(real[:, :, 0], fake[:, :, 0])
    assert layers.shape == (2, 5) and (layers > 0).all()
    torch.testing.assert_close(loss(real, fake), layers.sum(1).mean())
    with pytest.raises(UserError, match="for AlexNet: lin1 with 192 values"):
        load_perceptual(tmp_path / "alexnet.pth", heads=lpips_files["vgg.pth"])
    torch.save(network.state_dict() | {"features.3.weight": torch.zeros(2, 2)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="does not hold torchvision's AlexNet"):
        load_perceptual(tmp_path / "odd.pth")


def test_gradients_of_lpips_are_finite_even_where_features_vanish(lpips_files: dict[str, Path]):
    loss = load_perceptual(lpips_files["vgg16.pth"], heads=lpips_files["vgg.pth"]).train()
    with torch.no_grad():  # all features of the last map are zero
        loss.network.features[-2].bias.fill_(-100.0)
    real, fake = clips()
    fake.requires_grad_(True)
    loss(real, fake).backward()
    assert fake.grad.isfinite().all() and fake.grad.abs().sum() > 0
    assert not loss.training and all(p.grad is None for p in loss.parameters())


def test_lpips_files_that_do_not_fit_are_refused(lpips_files: dict[str, Path], tmp_path):
    torch.save(ResNet(TINY).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="belong to a VGG-16 or AlexNet"):
        load_perceptual(tmp_path / "resnet.pth", heads=lpips_files["vgg.pth"])
    with pytest.raises(UserError, match="lin0 with 64 values is missing"):
        load_perceptual(lpips_files["vgg16.pth"], heads=tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="no file"):
        load_perceptual(lpips_files["vgg16.pth"], heads=tmp_path / "missing.pth")
    torch.save({"lin0.model.1.weight": "text"}, tmp_path / "text.pth")
    with pytest.raises(UserError, match="named tensors"):
        load_perceptual(lpips_files["vgg16.pth"], heads=tmp_path / "text.pth")


def test_files_of_other_networks_are_refused(tmp_path):
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


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    network = ResNet(TINY)
    torch.save({"state_dict": {f"{prefix}{n}": v for n, v in network.state_dict().items()}}, tmp_path / "x.pth")
    loaded = load_perceptual(tmp_path / "x.pth")
    assert torch.equal(loaded.network.state_dict()["fc.weight"], network.state_dict()["fc.weight"])
