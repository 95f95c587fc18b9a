from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mutoscope.errors import UserError
from mutoscope.interop import magvit_flax
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

TRANSFORMER = MagvitConfig(2, 16, 2, 24, 12, 3, 16, (2, 3, 3), task_token=True)
TOKENIZER = VQ3DConfig(8, (1, 2, 4), 1, (True, False), 6, 10, num_groups=4, padding="zero")


def transformer_checkpoint() -> tuple[Magvit, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Magvit(TRANSFORMER)
    layout = magvit_flax.transformer_layout(TRANSFORMER)
    return model, magvit_flax.to_flax(model.state_dict(), layout, TRANSFORMER.num_heads)


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_layouts_cover_every_parameter():
    layouts = {
        Magvit(TRANSFORMER): magvit_flax.transformer_layout(TRANSFORMER),
        VQ3D(TOKENIZER): magvit_flax.tokenizer_layout(TOKENIZER),
    }
    for module, layout in layouts.items():
        assert sorted(entry.ours for entry in layout) == sorted(module.state_dict())


def test_transformer_round_trip():
    model, flax = transformer_checkpoint()
    assert flax["BertLayer_1/BertAttention_0/self_attention/key/kernel"].shape == (16, 2, 8)
    inferred = magvit_flax.infer_transformer_config(flax, (2, 3, 3), codebook_size=12, num_classes=3)
    assert inferred == TRANSFORMER
    assert_same(magvit_flax.load_transformer(flax, inferred), model)


def test_tokenizer_round_trip():
    torch.manual_seed(0)
    tokenizer = VQ3D(TOKENIZER)
    flax = magvit_flax.to_flax(tokenizer.state_dict(), magvit_flax.tokenizer_layout(TOKENIZER))
    inferred = magvit_flax.infer_tokenizer_config(flax, temporal_downsample=(True, False), num_groups=4)
    assert inferred == TOKENIZER
    assert_same(magvit_flax.load_tokenizer(flax, inferred), tokenizer)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_flat_files_are_read(tmp_path: Path, suffix: str):
    model, flax = transformer_checkpoint()
    path = tmp_path / f"checkpoint{suffix}"
    named = {f"params/{name}": tensor.contiguous() for name, tensor in flax.items()}
    if suffix == ".npz":
        savez = cast(Callable[..., None], np.savez)  # its own signature has an option beside the names of arrays
        savez(path, **{name: tensor.numpy() for name, tensor in named.items()})
    else:
        save_file(named, path)
    assert_same(magvit_flax.load_transformer(magvit_flax.read_flat(path), TRANSFORMER), model)


def test_unfit_checkpoints_are_refused(tmp_path: Path):
    _, flax = transformer_checkpoint()
    with pytest.raises(UserError, match="lacks parameter 'BertEmbed_0/embeddings_ln/bias'"):
        less = {name: tensor for name, tensor in flax.items() if name != "BertEmbed_0/embeddings_ln/bias"}
        magvit_flax.load_transformer(less, TRANSFORMER)
    with pytest.raises(UserError, match="unknown parameter 'pooler'"):
        magvit_flax.load_transformer({**flax, "pooler": torch.zeros(1)}, TRANSFORMER)
    with pytest.raises(UserError, match="shape"):
        magvit_flax.load_transformer({**flax, "BertMlmLayer_0/mlm_bias/bias": torch.zeros(3)}, TRANSFORMER)
    with pytest.raises(UserError, match="do not fit"):
        magvit_flax.infer_transformer_config(flax, (4, 3, 3), codebook_size=12, num_classes=3)
    with pytest.raises(UserError, match="right kind"):
        magvit_flax.infer_tokenizer_config(flax)
    with pytest.raises(UserError, match="no file"):
        magvit_flax.read_flat(tmp_path / "missing.npz")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(UserError, match="neither"):
        magvit_flax.read_flat(tmp_path / "model.pt")


def test_a_damaged_file_is_a_sentence(tmp_path):
    for name in ("x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(UserError, match="not a readable weights file"):
            magvit_flax.read_flat(tmp_path / name)
