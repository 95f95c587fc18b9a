"""Archives, arrays and weights are refused by what they declare, before anything is unpacked."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hostile.weights import Call, archive, many_members, named, npy, safetensors, stacked, tensor, zeros
from mutoscope.declared import check_safetensors, read_npy, read_npz, zip_members
from mutoscope.errors import UserError
from mutoscope.pickles import check_torch_file
from mutoscope.state_dicts import open_containers, read_torch


def written(folder: Path, content: bytes, name: str = "w.bin") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compressed", [True, False])
def test_plain_archives_of_arrays_are_read(tmp_path: Path, compressed: bool):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(5), "c": np.zeros(200_000)}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert all(np.array_equal(found[name], value) for name, value in arrays.items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zeros({"a.npy": 2**30}), "not unpacked"),
        (stacked(5000), "not unpacked"),
        (many_members(70_000), "members"),
        (zeros({"a.npy": npy("(1000000000000,)")}), "declares an array"),
        (zeros({"a.npy": npy("(4,)", "'|O'", b"xxxx")}), "Python objects"),
    ],
)
def test_archives_that_declare_too_much_are_refused(tmp_path: Path, content: bytes, words: str):
    with pytest.raises(UserError, match=words):
        read_npz(written(tmp_path, content))


@pytest.mark.parametrize("shape", ["(-4,)", "(10**9,)", "(" * 3000 + ")" * 3000, "(1000000000, 1000000000)"])
def test_arrays_that_declare_too_much_are_refused(tmp_path: Path, shape: str):
    with pytest.raises(UserError):
        read_npy(written(tmp_path, npy(shape)))


def test_a_plain_safetensors_file_passes_and_headers_without_end_do_not(tmp_path: Path):
    save_file({"a": torch.ones(3)}, tmp_path / "good.safetensors")
    check_safetensors(tmp_path / "good.safetensors")
    for content in (safetensors(b"{}", length=2**62), safetensors(b'{"a":' * 9000), safetensors([1]), b"abc"):
        with pytest.raises(UserError):
            check_safetensors(written(tmp_path, content))


def test_members_must_be_stored_where_a_reader_says_so(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(10_000))
    assert [member.file_size for member in zip_members(tmp_path / "a.zip")] == [10_000]
    with pytest.raises(UserError, match="not unpacked"):
        zip_members(tmp_path / "a.zip", stored=True)


# ------------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("new", [True, False])
def test_files_that_torch_writes_pass(tmp_path: Path, new: bool):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    shared = torch.arange(10.0)
    state = {
        "model": network.state_dict(), "optimizer": optimizer.state_dict(), "half": torch.ones(3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.ones(2)), "views": [shared, shared[2:5], shared[::2]],
        "size": shared.shape, "set": {1, 2}, "bytes": b"abc", "empty": torch.zeros(0, 3), "dtype": torch.float16,
        "rng": torch.get_rng_state(),
    }  # fmt: skip
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    found = read_torch(tmp_path / "a.pt")
    assert isinstance(found, dict) and torch.equal(found["views"][1], shared[2:5])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(Call("os", "system", ("true",)).program()), "os.system, which is neither a tensor"),
        (archive(Call("builtins", "bytearray", (10**10,)).program()), "builtins.bytearray"),
        (archive(Call("torch", "Tensor", (10**10,)).program()), "calls torch.Tensor"),
        (archive(named(tensor(10**9, (1,), (1,))), {"0": bytes(400)}), "holds 400 bytes there"),
        (archive(named(tensor(100, (10**10,), (1,))), {"0": bytes(400)}), "in a storage of 100 numbers"),
        (archive(named(tensor(100, (10**12,), (0,))), {"0": bytes(400)}), "declares tensors of"),
        (archive(named(tensor(100, (-5,), (1,))), {"0": bytes(400)}), "damaged"),
        (archive(b"\x80\x02(" + b"N" * 2000 + b"t."), "steps"),
        (archive(b"\x80\x02c\x80"), "damaged"),
    ],
)
def test_pickles_that_call_or_declare_more_than_tensors_are_refused(
    tmp_path: Path, monkeypatch, content: bytes, words: str
):
    monkeypatch.setattr("mutoscope.pickles.MAX_STEPS", 1000)
    with pytest.raises(UserError, match=words):
        check_torch_file(written(tmp_path, content))


def test_containers_in_themselves_have_an_end():
    itself: dict[str, object] = {}
    itself["model"] = itself
    assert open_containers(itself) == {}
