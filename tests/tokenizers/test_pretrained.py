import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mutoscope.errors import UserError
from mutoscope.hub import ModelIndex, load_tokenizer, save_pretrained
from mutoscope.pipeline import VideoPipeline
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL, TileOptions
from mutoscope.tokenizers.autoencoder_kl_network import AutoencoderKLConfig
from mutoscope.tokenizers.pretrained import DiffusersVAE, DiffusersVAEConfig, load_vae, vae_config

PUBLISHED = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": None,
    "force_upcast": True,
    "latents_mean": None,
}


def save_published(folder: Path, name: str = "diffusion_pytorch_model.safetensors", **changes) -> AutoencoderKL:
    """A folder as published, with random weights; returns the network they belong to."""
    values = PUBLISHED | changes
    torch.manual_seed(0)
    network = AutoencoderKL(vae_config(values))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    if name.endswith(".bin"):
        torch.save(network.state_dict(), folder / name)
    else:
        save_file(network.state_dict(), folder / name)
    return network


def clip(frames: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
@torch.no_grad()
def test_a_published_folder_is_loaded_from_itself_or_from_its_pipeline(tmp_path, name: str):
    network = save_published(tmp_path / "vae", name)
    for folder in (tmp_path, tmp_path / "vae"):
        loaded = load_vae(folder, TileOptions(at_once=4))
        assert isinstance(loaded, AutoencoderKL) and not loaded.training and loaded.tiles.at_once == 4
        torch.testing.assert_close(loaded.encode(clip(2)), network.encode(clip(2)))


def test_the_video_class_has_its_own_defaults():
    values = {"_class_name": "AutoencoderKLOpenSora", "shift_factor": 0.25}
    config = vae_config(values)
    assert (config.down_dims, config.up_dims, config.shift_factor) == ((2, 2, 3, 3), (3,) * 4, 0.25)
    assert vae_config({"_class_name": "AutoencoderKL"}) == AutoencoderKLConfig()


def test_attention_weights_under_their_old_names_are_loaded(tmp_path):
    network = save_published(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in network.state_dict().items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        weights[name] = value
    assert any("proj_attn" in name for name in weights)
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = load_vae(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "AutoencoderKLVan"}, "did you mean 'AutoencoderKLWan'"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"blok_out_channels": [1]}, "unknown key 'blok_out_channels'"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, "unknown block type"),
        ({"norm_num_groups": 3}, "num_groups 3"),
        ({"layers_per_block": 2}, "config.json requires"),
    ],
)
def test_unknown_keys_and_values_of_a_folder_are_named(tmp_path, changes, message):
    save_published(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | changes))
    with pytest.raises(UserError, match=message):
        load_vae(tmp_path)


def test_missing_damaged_and_dangerous_weights_are_refused(tmp_path):
    save_published(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_vae(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="none of"):
        load_vae(tmp_path)
    torch.save({"encoder.conv_in.weight": torch.nn.Linear(1, 1)}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="more than tensors"):
        load_vae(tmp_path)
    torch.save([1], tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="something else"):
        load_vae(tmp_path)


# Networks of diffusers, as small as they can be.
WAN = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, 0.2, 0.3, 0.4],
    "latents_std": [1.0, 2.0, 3.0, 4.0],
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 4,
}
LTX = {
    "latent_channels": 8,
    "block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "down_block_types": ["LTXVideoDownBlock3D"] * 2,
    "layers_per_block": [1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "spatio_temporal_scaling": [True, True],
    "decoder_spatio_temporal_scaling": [True, True],
    "decoder_inject_noise": [False, False, False],
    "upsample_residual": [False, False],
    "upsample_factor": [1, 1],
    "patch_size": 1,
    "patch_size_t": 1,
}
COSMOS = {
    "encoder_block_out_channels": [8, 8, 8, 8],
    "decode_block_out_channels": [8, 8, 8, 8],
    "latent_channels": 4,
    "attention_resolutions": [4],
    "resolution": 16,
    "num_layers": 1,
    "latents_mean": [0.5] * 8,
    "latents_std": [2.0] * 8,
}
HUNYUAN = {
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["HunyuanVideoDownBlock3D"] * 3,
    "up_block_types": ["HunyuanVideoUpBlock3D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
}
SMALL = {
    "AutoencoderKLWan": (WAN, (4, 4)),
    "AutoencoderKLLTXVideo": (LTX, (4, 4)),
    "AutoencoderKLCosmos": (COSMOS, (8, 8)),
    "AutoencoderKLHunyuanVideo": (HUNYUAN, (4, 4)),
}


def save_diffusers(folder: Path, name: str):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**SMALL[name][0])
    if name == "AutoencoderKLLTXVideo":
        network.latents_mean.fill_(0.5)
        network.latents_std.fill_(2.0)
    network.save_pretrained(folder)
    return network.eval()


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_autoencoders_of_diffusers_accept_any_number_of_frames_of_any_size(tmp_path, name: str):
    network = save_diffusers(tmp_path, name)
    tokenizer = load_vae(tmp_path)
    strides = SMALL[name][1]
    assert (tokenizer.spec.temporal_stride, tokenizer.spec.spatial_stride) == strides
    for frames, height, width in ((1, 16, 16), (9, 16, 24), (6, 15, 18)):
        video = clip(frames, height, width)
        latents = tokenizer.encode(video)
        assert latents.shape == (1, tokenizer.spec.latent_channels, *tokenizer.spec.latent_shape(*video.shape[-3:]))
        assert tokenizer.reconstruct(video).shape == video.shape
    video = clip(9, 16, 16)
    latents = network.encode(video).latent_dist.mode()
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(video)), network.decode(latents).sample)
    if name == "AutoencoderKLHunyuanVideo":
        torch.testing.assert_close(tokenizer.encode(video), latents * network.config.scaling_factor)
    elif name == "AutoencoderKLWan":
        mean, std = (torch.tensor(WAN[key]).view(1, 4, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        torch.testing.assert_close(tokenizer.encode(video), (latents - mean) / std)
    else:
        torch.testing.assert_close(tokenizer.encode(video), (latents - 0.5) / 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLLTXVideo"])
def test_autoencoders_of_diffusers_are_saved_in_our_folders_too(tmp_path, name: str):
    save_diffusers(tmp_path / "published", name)
    tokenizer = load_vae(tmp_path / "published")
    index = ModelIndex(family="tokenizer", model=None, num_frames=9, height=16, width=16)
    save_pretrained(tmp_path / "ours", index, tokenizer, half=False)
    loaded = load_tokenizer(tmp_path / "ours")
    assert isinstance(loaded, DiffusersVAE)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(clip(5, 16, 16)), tokenizer.encode(clip(5, 16, 16)))
    frames = torch.zeros(20, 13, 16, 3, dtype=torch.uint8).numpy()
    assert VideoPipeline.from_pretrained(tmp_path / "ours").reconstruct(frames).frames.shape == frames.shape


def test_without_diffusers_the_message_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'mutoscope\[vae\]'"):
        DiffusersVAE(DiffusersVAEConfig("AutoencoderKLWan"))


@pytest.mark.slow
def test_arguments_that_diffusers_does_not_know_are_refused():
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match="cannot build AutoencoderKLWan"):
        DiffusersVAE(DiffusersVAEConfig("AutoencoderKLWan", {"base_dime": 8}))
    with pytest.raises(UserError, match="Unknown autoencoder"):
        DiffusersVAEConfig("Autoencoder")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    network = save_published(tmp_path)
    weights = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = load_vae(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
