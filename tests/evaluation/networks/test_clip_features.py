"""Feature networks without a download: what they read, what they are called, and how far they are from clips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.clip_features import (
    EncoderNetwork,
    evenly,
    far_from_shapes,
    open_encoder,
    open_features,
    shapes_familiarity,
)
from mutoscope.evaluation.sources.shapes_clips import real_clips
from mutoscope.hub import load_tokenizer, save_pretrained
from tiny_models import tiny_index, tiny_tokenizer


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """Sixteen clips of the shapes dataset."""
    return real_clips(ShapesConfig(), 0, 16).video


def scene(seed: int) -> Tensor:
    """A smooth picture in many colours that moves, as a recorded video does."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 5, 6))).float()
    picture = torch.nn.functional.interpolate(coarse, (48, 64), mode="bicubic", align_corners=False).clamp(0, 255)
    frames = [picture.roll(shift, dims=3) for shift in range(16)]
    return torch.cat(frames).permute(0, 2, 3, 1).to(torch.uint8)


def test_shapes_clips_are_near_their_data_and_other_scenes_are_far(clips: Tensor):
    assert not shapes_familiarity(clips).is_far and far_from_shapes("these", clips) == []
    noisy = (clips.float() + 8 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    assert not shapes_familiarity(noisy.to(torch.uint8)).is_far
    scenes = torch.stack([scene(seed) for seed in range(4)])
    assert shapes_familiarity(scenes).value < 0.5
    [caveat] = far_from_shapes("these videos", scenes)
    assert "say little about these videos" in caveat and "--reference" in caveat
    assert shapes_familiarity(255 - clips).is_far


def test_a_few_odd_clips_among_shapes_do_not_make_them_far_but_a_third_does(clips: Tensor):
    odd = torch.stack([torch.from_numpy(scene(seed).numpy()[:, :32, :32].copy()) for seed in range(6)])
    assert not shapes_familiarity(torch.cat([clips[:14], odd[:2]])).is_far
    assert shapes_familiarity(torch.cat([clips[:10], odd])).is_far


def test_encoder_features_are_statistics_of_the_latents_of_each_channel(clips: Tensor):
    network = open_encoder("vae-shapes")
    rows = network.read(clips[:2])
    tokenizer = load_tokenizer("vae-shapes")
    with torch.no_grad():
        latents = tokenizer.encode(tokenizer.from_uint8(clips[:2]))  # (2, 4, 16, 8, 8)
    expected = [
        latents.mean((2, 3, 4)),
        latents.std((2, 3, 4), correction=0),
        latents.diff(dim=2).abs().mean((2, 3, 4)),
    ]
    assert torch.allclose(rows, torch.cat(expected, dim=1), atol=1e-5) and rows.shape == (2, 12)
    assert network.read(clips[:2, :1]).shape == (2, 8)  # one frame has no change


def test_a_discrete_tokenizer_gives_its_latents_before_quantization(clips: Tensor):
    network = open_encoder("vq-shapes")
    with torch.no_grad():
        latents = network.tokenizer.encode_to_latents(network.tokenizer.from_uint8(clips[:2, :6]))  # type: ignore
    assert torch.allclose(network.read(clips[:2, :7])[:, :16], latents.mean((2, 3, 4)), atol=1e-5)
    with pytest.raises(UserError, match="encodes clips of 2 frames and more, these have 1"):
        open_features("vq-shapes", 1)


def test_distances_are_named_by_what_made_them(tmp_path: Path):
    names = [open_features(named, 16).name for named in (None, "shapes-features", "vae-shapes", "magi-shapes")]
    assert names == ["shapes-features", "shapes-features", "vae-shapes-encoder", "vae-shapes-encoder"]
    folder = save_pretrained(tmp_path / "mine", tiny_index(model=None, family="tokenizer"), tiny_tokenizer())
    own = open_features(str(folder), 8)
    assert own.name == "mine-encoder" and len(own.sha256) == 64
    assert open_features(None, 1).name == "vae-shapes-encoder"


def test_unknown_names_and_short_clips_are_refused():
    with pytest.raises(UserError, match="Unknown features 'vae-shpes': did you mean 'vae-shapes'"):
        open_features("vae-shpes", 16)
    with pytest.raises(UserError, match="Unknown features 'shapes-feature': did you mean 'shapes-features'"):
        open_features("shapes-feature", 16)
    with pytest.raises(UserError, match="There is no folder"):
        open_features("./none", 16)
    with pytest.raises(UserError, match="reads clips of 8 frames and more, these have 4"):
        open_features("shapes-features", 4)


def test_a_tokenizer_is_far_from_clips_that_it_reconstructs_badly(clips: Tensor):
    bundled = open_encoder("vae-shapes")
    own = replace(bundled, on_shapes=False, name="own-encoder")  # as if trained on clips of the user's
    near, far = own.familiarity(clips[:3]), own.familiarity(255 - clips[:3])
    assert near.value > 30 and not near.is_far and far.is_far
    assert "it reconstructs these clips at" in own.far_note("real", far) and "frechet-own-encoder" in own.far_note(
        "", far
    )
    assert bundled.familiarity(255 - clips).measure.startswith("share of pixels")
    assert isinstance(bundled, EncoderNetwork)


def test_even_choices_include_both_ends():
    assert (
        evenly(5, 9) == [0, 1, 2, 3, 4] and evenly(10, 3) == [0, 4, 9] and evenly(10, 1) == [0] and evenly(3, 0) == []
    )
