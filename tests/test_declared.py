"""Archives, arrays and weights are refused by what they declare, before anything is unpacked."""

import io
import struct
import tarfile
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


def saved(values: object, new: bool = True) -> bytes:
    content = io.BytesIO()
    torch.save(values, content, _use_new_zipfile_serialization=new)
    return content.getvalue()


GOOD, END = {"good": torch.ones(2)}, struct.Struct("<4s4H2LH")


def two_directories() -> bytes:
    """One archive after the other: Python finds the list of the second one, torch that of the first."""
    first, second = saved({"bomb": torch.zeros(1000)}), saved(GOOD)
    ends = [END.unpack(content[-END.size :]) for content in (first, second)]
    end = END.pack(*ends[1][:6], ends[0][6], 0)
    return first[: -END.size] + second[: -END.size] + end


def legacy_before_archive() -> bytes:
    """Python finds the archive at the end, torch the pickles at the beginning, with a storage of 4 TB."""
    huge = b"\x8a\x06" + (10**12).to_bytes(6, "little")  # in place of 77
    return saved({"a": torch.zeros(77)}, new=False).replace(b"K\x4d", huge) + saved(GOOD)


def tar_of_pickles() -> bytes:
    """An archive of torch before 2017, whose first name is five pickles."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("ab"))
    header = bytearray(content.getvalue())
    header[:25] = b"\x80\x02K\x01." * 5
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (two_directories(), "in two places"),
        (saved(GOOD) + b"more", "in two places"),
        (legacy_before_archive(), "bytes of numbers in a file of"),
        (tar_of_pickles(), "TAR archive"),
    ],
    ids=["two directories", "a tail", "two formats", "tar"],
)
def test_what_is_checked_is_what_torch_reads(tmp_path: Path, content: bytes, words: str):
    with pytest.raises(UserError, match=words):
        check_torch_file(written(tmp_path, content))


def test_archives_with_and_without_the_second_record_of_large_ones_pass(tmp_path: Path):
    """torch writes both records always; other programs write one where it suffices."""
    content = saved(GOOD)
    start, locator = len(content) - END.size - 76, len(content) - END.size - 20
    assert content[start:].startswith(b"PK\6\6") and content[locator:].startswith(b"PK\6\7")
    for whole in (content, content[:start] + content[-END.size :]):
        found = read_torch(written(tmp_path, whole))
        assert isinstance(found, dict) and torch.equal(found["good"], GOOD["good"])
    moved = content[: locator + 8] + struct.pack("<Q", start - 8) + content[locator + 16 :]
    with pytest.raises(UserError, match="in two places"):
        check_torch_file(written(tmp_path, moved))


def test_containers_in_themselves_have_an_end():
    itself: dict[str, object] = {}
    itself["model"] = itself
    assert open_containers(itself) == {}
