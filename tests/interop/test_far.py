"""Published FAR files: settings by name, sizes by shapes, and files that are something else."""

import json
from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.interop import far
from mutoscope.models.far import FARConfig
from parity.far_support import LOCAL, stored_weights

RELEASED = LOCAL / "ckpt" / "FAR_tiny_release-00000000.pth"


@pytest.mark.parametrize(
    ("name", "frames", "window", "interval", "context", "scale"),
    [
        ("FAR_B_Long_DMLab_Action64-c09441dc.pth", 300, 16, 1, 144, 1.5),
        ("FAR_M_Long_Minecraft_Action128-4c041561.pth", 300, 16, 1, 144, 1.5),
        ("FAR_B_BAIR_Uncond64-1983191b.pth", 30, 30, 1, 2, 1.0),
        ("FAR_B_UCF101_Uncond64-381d295f.pth", 16, 16, 1, 4, 1.0),
        ("FAR_L_UCF101_Cond128-c6f798bf.pth", 16, 16, 3, 0, 2.0),
        ("FAR_XL_UCF101_Uncond256-3594ce6b.pth", 16, 16, 3, 0, 1.0),
    ],
)
def test_names_of_published_files_say_how_they_were_trained(name, frames, window, interval, context, scale):
    assert far.released(Path(name)) == far.Released(frames, window, interval, context, scale)


def test_other_names_say_nothing():
    assert far.released(Path("ema.pth")) is None


@pytest.mark.parametrize(("size", "channels"), [(64, (16, 24, 24)), (16, (4, 6, 6)), (8, (4, 2, 2)), (32, (8, 12, 12))])
def test_a_quarter_of_a_head_rotates_by_frame(size, channels):
    assert far.rotary_channels(size) == channels


def test_sizes_follow_from_shapes():
    config = far.infer_config(stored_weights("long_action", LOCAL), RELEASED, 4, (300, 8, 8), 16)
    assert config == FARConfig(
        hidden_size=32,
        num_layers=2,
        latent_channels=4,
        latent_shape=(300, 8, 8),
        coarse_patch_size=4,
        rotary_channels=(4, 6, 6),
        action_size=4,
        one_action=True,
        rounds_positions=True,
    )


def test_a_checkpoint_of_another_size_is_refused_by_name():
    stored = dict(stored_weights("short_uncond", LOCAL))
    config = far.infer_config(stored, RELEASED, 4, (16, 8, 8), 16)
    stored["transformer_blocks.1.mlp.net.2.bias"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"blocks.1.mlp_out.bias' is \(7,\) in the weights"):
        far.load_transformer(stored, config, RELEASED)


def test_unknown_tensors_are_named():
    with pytest.raises(UserError, match="tensor 'y_embedder.weight' is not part of FAR"):
        far.our_weights({"y_embedder.weight": torch.zeros(1)}, RELEASED)


def test_the_wrong_autoencoder_is_found_by_its_channels():
    with pytest.raises(
        UserError, match="tokens of 4 numbers, which are no square patches of 3 channels: name the auto"
    ):
        far.infer_config(stored_weights("short_uncond", LOCAL), RELEASED, 3, (16, 8, 8), 16)


def test_published_autoencoders_are_recognised_by_their_tensors():
    diffusers = pytest.importorskip("diffusers")
    keys = json.loads((LOCAL / "state_dict_keys.json").read_text())["DCAE_8x"]
    with torch.device("meta"):
        stored = {name: torch.empty(tuple(shape)) for name, shape in keys.items() if isinstance(shape, list)}
        config = far.infer_autoencoder(stored, RELEASED)
        network = diffusers.AutoencoderDC(**config.arguments)
    assert {n: list(v.shape) for n, v in network.state_dict().items()} == {n: list(v.shape) for n, v in stored.items()}
    assert config.arguments["encoder_layers_per_block"] == [0, 4, 8, 2]
    assert config.arguments["decoder_layers_per_block"] == [0, 5, 10, 2]
    assert config.arguments["decoder_norm_types"] == ["batch_norm", "batch_norm", "batch_norm", "rms_norm"]


def test_other_files_are_no_autoencoders():
    with pytest.raises(UserError, match="not a checkpoint of DC-AE"):
        far.infer_autoencoder(stored_weights("short_uncond", LOCAL), RELEASED)
    with pytest.raises(UserError, match="not a checkpoint of FAR"):
        far.infer_config({"x_embedder.weight": torch.zeros(2, 2)}, RELEASED, 2, (1, 1, 1), 1)
