"""NOVA's autoencoders (arXiv 2412.14169) against their official implementation: `v_vae` of the nova vectors."""

from functools import cache

import pytest
import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.tokenizers.autoencoder_kl import AutoencoderKL, TileOptions
from mutoscope.tokenizers.pretrained import load_vae
from mutoscope.tokenizers.quantizers import diagonal_gaussian
from parity.cases import Tolerance, assert_close
from parity.nova_support import files, index, tensors, weights_folder

FILES = files("v_vae")
PARTS = [
    (file, part)
    for file in FILES
    for part in ("osp", "kl")
    if any(name.startswith(f"{part}.") for name in tensors(file))
]
TOLERANCE: Tolerance = {"atol": 1e-4, "rtol": 1e-3}


def tensors_named(prefix: str) -> list[tuple[str, str]]:
    """(file, tensor name) of all tensors whose name begins like this."""
    return [(file, name) for file in FILES for name in tensors(file) if name.startswith(prefix)]


def each(*prefixes: str) -> pytest.MarkDecorator:
    found = [pair for prefix in prefixes for pair in tensors_named(prefix)]
    return pytest.mark.parametrize("file, name", found, ids=[name for _, name in found])


@cache
def vae(file: str, part: str) -> AutoencoderKL:
    """The autoencoder of a part; frames that fill no tile are dropped, as in the official code."""
    tokenizer = load_vae(weights_folder(file, part), TileOptions(partial="drop"))
    assert isinstance(tokenizer, AutoencoderKL)
    return tokenizer


def as_clip(x: Tensor) -> Tensor:
    """Single images, (b, c, h, w), as clips of one frame."""
    return x if x.ndim == 5 else x.unsqueeze(2)


def normalized(tokenizer: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents as `decode` takes them; the vectors hold them as the official decoder does."""
    return (latents - tokenizer.config.shift_factor) * tokenizer.config.scaling_factor


def test_every_tensor_is_used_here():
    known = ("osp.", "kl.", "gauss.")
    assert all(name.startswith(known) for file in FILES for name in tensors(file))


@pytest.mark.parametrize("file, part", PARTS, ids=[part for _, part in PARTS])
def test_parameters_are_counted_alike(file: str, part: str):
    counts = index()["files"][file].get("param_count", {})
    if part in counts:
        assert sum(p.numel() for p in vae(file, part).parameters()) == counts[part]


@each("osp.z", "kl.z")
@torch.no_grad()
def test_decoding(file: str, name: str):
    part, case = name.split(".")
    stored, tokenizer = tensors(file), vae(file, part)
    other = f"{part}.decoded_{case.removeprefix('z_')}"
    expected = stored[other if other in stored else f"{part}.decoded"]
    video = tokenizer.decode(as_clip(normalized(tokenizer, stored[name])))
    assert_close(video if expected.ndim == 5 else video.squeeze(2), expected, **TOLERANCE, what=name)


@each("osp.x", "kl.x")
@torch.no_grad()
def test_moments(file: str, name: str):
    part, case = name.split(".")
    stored = tensors(file)
    expected = stored[name.replace(".x", ".moments")]
    moments = vae(file, part).moments(as_clip(stored[name]))
    assert_close(moments if expected.ndim == 5 else moments.squeeze(2), expected, **TOLERANCE, what=case)


@each("osp.z_T", "osp.x_F")
@torch.no_grad()
def test_tiles_computed_together_and_decoded_as_a_stream_give_the_same(file: str, name: str):
    stored, tokenizer = tensors(file), vae(file, "osp")
    together = AutoencoderKL(tokenizer.config, TileOptions(at_once=8, partial="drop")).eval()
    together.load_state_dict(tokenizer.state_dict())
    if ".x_" in name:
        expected = stored[name.replace(".x_", ".moments_")]
        assert_close(together.moments(stored[name]), expected, **TOLERANCE, what=name)
        return
    latents, expected = normalized(tokenizer, stored[name]), stored[name.replace(".z_", ".decoded_")]
    assert_close(together.decode(latents), expected, **TOLERANCE, what=name)
    streamed = torch.cat(list(tokenizer.stream_decode(latents.split(1, dim=2))), dim=2)
    assert_close(streamed, expected, **TOLERANCE, what=name)


@each("osp.z_T")
def test_what_is_dropped_officially_is_refused_here_by_default(file: str, name: str):
    stored, tokenizer = tensors(file), vae(file, "osp")
    refusing = AutoencoderKL(tokenizer.config).eval()
    refusing.load_state_dict(tokenizer.state_dict())
    latents = stored[name]
    every = 1 + tokenizer.spec.temporal_stride * (latents.shape[2] - 1)
    if stored[name.replace(".z_", ".decoded_")].shape[2] < every:
        with pytest.raises(UserError, match=f"found {latents.shape[2]}"):
            refusing.decode(latents)


@each("osp.scale_in")
def test_scaling(file: str, name: str):
    stored, tokenizer = tensors(file), vae(file, "osp")
    scale, shift = tokenizer.config.scaling_factor, tokenizer.config.shift_factor
    assert_close(normalized(tokenizer, stored[name]), stored["osp.scaled"], **TOLERANCE)
    assert_close(stored[name] / scale + shift, stored["osp.unscaled"], **TOLERANCE)


@each("gauss.moments")
def test_draws_from_the_distribution_of_latents(file: str, name: str):
    stored = tensors(file)
    mean, std = diagonal_gaussian(stored[name])
    assert_close(mean + std * stored["gauss.noise"], stored["gauss.sample"], **TOLERANCE)
