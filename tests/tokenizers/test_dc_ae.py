"""DC-AE through diffusers: folders of diffusers and of ours, sizes, and the missing library."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers runs this autoencoder")

from safetensors.torch import save_file

from mutoscope.errors import UserError
from mutoscope.hub import ModelIndex, load_tokenizer, save_pretrained
from mutoscope.tokenizers.dc_ae import DCAE, DCAEConfig
from mutoscope.tokenizers.pretrained import load_vae

ARGUMENTS = {
    "in_channels": 3,
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 16, 32],
    "decoder_block_out_channels": [8, 16, 32],
    "encoder_layers_per_block": [0, 1, 1],
    "decoder_layers_per_block": [0, 1, 1],
    "encoder_qkv_multiscales": [[], [], []],
    "decoder_qkv_multiscales": [[], [], []],
    "decoder_norm_types": ["batch_norm", "batch_norm", "rms_norm"],
    "decoder_act_fns": ["relu", "relu", "silu"],
    "scaling_factor": 0.5,
}


@pytest.fixture(scope="module")
def tokenizer() -> DCAE:
    torch.manual_seed(0)
    return DCAE(DCAEConfig(ARGUMENTS)).eval()


@torch.no_grad()
def test_frames_are_coded_one_by_one_and_latents_are_scaled(tokenizer: DCAE):
    clips = torch.rand(2, 3, 20, 8, 12) * 2 - 1
    latents = tokenizer.encode(clips)
    assert latents.shape == (2, 4, 20, 2, 3) == (2, 4, *tokenizer.spec.latent_shape(20, 8, 12))
    torch.testing.assert_close(tokenizer.encode(clips[:, :, 17:18]), latents[:, :, 17:18], atol=1e-5, rtol=1e-4)
    raw = tokenizer.vae.encode(clips[:, :, 3]).latent
    torch.testing.assert_close(latents[:, :, 3], raw * 0.5, atol=1e-5, rtol=1e-4)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == clips.shape
    torch.testing.assert_close(decoded[:, :, 3], tokenizer.vae.decode(raw).sample, atol=1e-5, rtol=1e-4)


def test_a_folder_of_diffusers_and_one_of_ours_hold_the_same_network(tokenizer: DCAE, tmp_path: Path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", **ARGUMENTS}))
    weights = {name.removeprefix("vae."): value for name, value in tokenizer.state_dict().items()}
    save_file(weights, tmp_path / "published" / "diffusion_pytorch_model.safetensors")
    published = load_vae(tmp_path / "published")
    index = ModelIndex("tokenizer", model=None, num_frames=1, height=8, width=8)
    ours = load_tokenizer(save_pretrained(tmp_path / "ours", index, tokenizer, half=False))
    assert isinstance(ours, DCAE) and ours.config == tokenizer.config
    for found in (published, ours):
        for name, value in tokenizer.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_sizes_that_the_stride_does_not_divide_are_refused(tokenizer: DCAE):
    with pytest.raises(UserError, match="sizes in multiples of 4, found"):
        tokenizer.encode(torch.zeros(1, 3, 1, 8, 10))


def test_settings_that_diffusers_does_not_know_are_refused():
    with pytest.raises(UserError, match="cannot build AutoencoderDC"):
        DCAE(DCAEConfig({"widths": [1, 2]}))


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'mutoscope\[vae\]'"):
        DCAE(DCAEConfig(ARGUMENTS))
