"""Names and containers that wrappers of networks leave in weight files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mutoscope.errors import UserError
from mutoscope.state_dicts import has_averaged, open_containers, read_stored, without_wrappers

NAMES = ("embedding.weight", "layers.0.model.weight", "layers.0.module.bias")
PREFIXES = st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "_forward_module."]), max_size=4)


@given(PREFIXES)
def test_nested_prefixes_are_removed_whatever_their_order(prefixes: list[str]):
    wrapped = {"".join(prefixes) + name: i for i, name in enumerate(NAMES)}
    assert without_wrappers(wrapped) == {name: i for i, name in enumerate(NAMES)}


def test_a_prefix_that_some_names_lack_stays():
    weights = {"model.a": 1, "b": 2}
    assert without_wrappers(weights) == weights


def test_a_prefix_that_belongs_to_the_network_stays():
    own = {"model.a": 1, "model.b": 2}
    assert without_wrappers(own, known=own) == own
    assert without_wrappers({f"module.{name}": value for name, value in own.items()}, known=own) == own


def test_compiled_and_sharded_parts_inside_a_network_lose_their_marks():
    weights = {"layers.0._orig_mod.a": 1, "_fsdp_wrapped_module.layers.1._checkpoint_wrapped_module.a": 2}
    assert without_wrappers(weights) == {"layers.0.a": 1, "layers.1.a": 2}
    collision = {"a._orig_mod.b": 1, "a.b": 2}
    assert without_wrappers(collision) == collision


def test_the_wrappers_of_torch_itself_are_removed():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for wrapped in (AveragedModel(network), nn.DataParallel(network)):
        assert set(without_wrappers(wrapped.state_dict())) == set(network.state_dict())


@pytest.mark.parametrize("name", ["model", "state_dict", "module", "ema", "model_state_dict"])
def test_containers_are_opened_however_deep(name: str):
    inner = {"a": torch.zeros(1)}
    assert open_containers({name: inner, "epoch": 3}) == inner
    assert open_containers({"state_dict": {name: inner}}) == inner
    assert open_containers(inner) == inner
    assert open_containers([1]) == {}


def test_averaged_weights_are_taken_on_request():
    stored = {"model": {"a": 1}, "ema": {"a": 2}}
    assert open_containers(stored) == {"a": 1} and open_containers(stored, averaged=True) == {"a": 2}
    assert has_averaged(stored) and not has_averaged({"model": {"a": 1}})


def test_every_format_is_read_and_whatever_else_is_refused(tmp_path: Path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", a=np.ones(2, np.float32))
    for name in ("a.pt", "a.safetensors", "a.npz"):
        found = open_containers(read_stored(tmp_path / name))["a"]
        assert isinstance(found, torch.Tensor) and found.tolist() == [1, 1]
    for name in ("b.pt", "b.safetensors", "b.npz"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(UserError, match="not a readable weights file of X: it ") as caught:
            read_stored(tmp_path / name, what="X")
        assert "\n" not in str(caught.value)
