"""Weight files of feature networks: accepted formats, and files that are refused with a sentence."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.weights import fit_weights, read_weights


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_every_kind_of_file_gives_the_same_tensors_and_its_hash(tmp_path):
    state = small().state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "nested.pth")
    save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in state.items()})
    for name in ("a.pt", "nested.pth", "a.safetensors", "a.npz"):
        weights, sha256 = read_weights(tmp_path / name, "a network")
        assert set(weights) == set(state) and all(torch.equal(weights[key], state[key]) for key in state), name
        assert sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        fit_weights(small(), weights, name, "a network")


def test_half_precision_is_read_as_float32(tmp_path):
    torch.save({"w": torch.ones(2, dtype=torch.float16)}, tmp_path / "half.pt")
    assert read_weights(tmp_path / "half.pt", "a network")[0]["w"].dtype == torch.float32


def test_a_file_of_another_hash_is_refused(tmp_path):
    torch.save(small().state_dict(), tmp_path / "a.pt")
    right = read_weights(tmp_path / "a.pt", "a network")[1]
    read_weights(tmp_path / "a.pt", "a network", sha256=right.upper())
    with pytest.raises(UserError, match="it is another file"):
        read_weights(tmp_path / "a.pt", "a network", sha256="0" * 64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_in_a_weights_file_is_never_run(tmp_path):
    torch.jit.script(small()).save(tmp_path / "script.pt")
    with pytest.raises(UserError, match="TorchScript archive: it holds a program"):
        read_weights(tmp_path / "script.pt", "a network")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a readable weights file"):
        read_weights(tmp_path / "evil.pt", "a network")
    np.savez(tmp_path / "evil.npz", w=np.array([Evil()], dtype=object))
    with pytest.raises(UserError, match="not a readable weights file"):
        read_weights(tmp_path / "evil.npz", "a network")
    assert not (tmp_path / "written").exists()


def test_what_holds_no_named_tensors_is_explained(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_weights(tmp_path / "missing.pt", "a network")
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable weights file"):
        read_weights(tmp_path / "broken.pt", "a network")
    for number, content in enumerate(({}, [torch.ones(1)], {"w": "text"})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(UserError, match="something other than named tensors"):
            read_weights(tmp_path / f"{number}.pt", "a network")


def test_tensors_that_do_not_fit_are_named():
    state = dict(small().state_dict())
    fit_weights(small(), {name: value for name, value in state.items() if "num_batches" not in name}, "f", "a network")
    with pytest.raises(UserError, match=r"tensor '1.running_var' is missing"):
        fit_weights(small(), {name: value for name, value in state.items() if "var" not in name}, "f", "a network")
    with pytest.raises(UserError, match=r"'0.bias' is \(4,\) instead of \(3,\)"):
        fit_weights(small(), state | {"0.bias": torch.ones(4)}, "f", "a network")
    with pytest.raises(UserError, match="'2.weight' is no part of that network"):
        fit_weights(small(), state | {"2.weight": torch.ones(4)}, "f", "a network")
    with pytest.raises(UserError, match="holds NaN"):
        fit_weights(small(), state | {"0.bias": torch.full((3,), torch.nan)}, "f", "a network")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module.model."])
@pytest.mark.parametrize("container", ["model", "state_dict", "ema"])
def test_wrappers_are_removed(tmp_path, prefix, container):
    state = small().state_dict()
    torch.save({container: {f"{prefix}{name}": value for name, value in state.items()}}, tmp_path / "a.pt")
    fit_weights(small(), read_weights(tmp_path / "a.pt", "a network")[0], "a.pt", "a network")
