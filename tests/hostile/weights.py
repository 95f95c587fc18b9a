# ruff: noqa: E501 - tables with one case in a line
"""Hostile weights: programs in pickles, and archives and headers that declare far more than they hold."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import save

from hostile.case import MARKER, Case, alone, replaced

CODE = f"open({MARKER!r}, 'w').close()"
SHELL = f"touch {MARKER}"
# module, name, arguments of a call that would leave the marker behind, or is as bad
CALLS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("os", "system", (SHELL,)), ("posix", "system", (SHELL,)), ("nt", "system", (SHELL,)),
    ("builtins", "eval", (CODE,)), ("builtins", "exec", (CODE,)), ("__builtin__", "eval", (CODE,)),
    ("builtins", "open", (MARKER, "w")), ("io", "open", (MARKER, "w")), ("builtins", "__import__", ("os",)),
    ("builtins", "compile", (CODE, "x", "exec")), ("builtins", "getattr", ("", "format")),
    ("subprocess", "Popen", (SHELL, -1, None, None, None, None, None, True, True)),
    ("subprocess", "getoutput", (SHELL,)), ("subprocess", "check_output", (["touch", MARKER],)),
    ("os", "popen", (SHELL,)), ("os", "mkdir", (MARKER,)), ("pathlib", "Path", (MARKER,)),
    ("runpy", "run_path", ("x.py",)), ("importlib", "import_module", ("os",)), ("shutil", "rmtree", (".",)),
    ("pickle", "loads", (pickle.dumps(1),)), ("torch", "load", ("x.pt",)), ("torch.hub", "load", ("a/b", "c")),
    ("torch.jit", "load", ("x.pt",)), ("torch.serialization", "load", ("x.pt",)), ("ctypes", "CDLL", ("x.so",)),
    ("functools", "partial", (print,)), ("operator", "methodcaller", ("system", SHELL)), ("pty", "spawn", ("sh",)),
    ("code", "interact", ()), ("webbrowser", "open", ("http://localhost",)), ("numpy", "save", (MARKER, 1)),
    ("numpy._core.multiarray", "_reconstruct", (np.ndarray, (0,), b"b")), ("timeit", "timeit", (CODE,)),
    ("torch._C", "_jit_script_compile", ()), ("builtins", "bytearray", (10**10,)), ("torch", "FloatTensor", (10**10,)),
    ("torch", "zeros", (10**10,)), ("\x1b[31mred", "e\x1b]0;title\x07vil", ()), ("a" * 10**6, "b", ()),
)  # fmt: skip
ZEROS: dict[str, bytes | int] = {f"a{n}": 2**30 for n in range(3)}
PT = ("convert llamagen w.pt out --tokenizer tokenizer", "convert vq16 w.pt out")


class Call:
    """Pickles as a call of any function, which need not exist."""

    def __init__(self, module: str, name: str, arguments: tuple[object, ...]) -> None:
        self.module, self.name, self.arguments = module, name, arguments

    def program(self) -> bytes:
        """The call as a pickle of protocol 2, inside a dictionary."""
        arguments = pickle.dumps(tuple(a for a in self.arguments if not callable(a)), 2)[2:-1]
        name = f"c{self.module}\n{self.name}\n".encode("utf-8", "surrogatepass")
        return b"\x80\x02}X\x01\x00\x00\x00w" + name + arguments + b"Rs."


def archive(program: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A PyTorch file around a pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
        for key, numbers in (storages or {}).items():
            file.writestr(f"archive/data/{key}", numbers)
    return content.getvalue()


def tensor(
    count: int, size: tuple[int, ...], stride: tuple[int, ...], kind: str = "FloatStorage", offset: int = 0
) -> bytes:
    """Pickled steps that view a storage of `count` numbers under the key "0"."""
    storage = pickle.dumps(("storage", 0, "0", "cpu", count), 2)[2:-1].replace(
        b"K\x00", f"ctorch\n{kind}\n".encode(), 1
    )
    rest = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"Q" + rest + b"\x89ccollections\nOrderedDict\n)RtR"


def named(*values: bytes) -> bytes:
    """A pickle of a dictionary with these values."""
    items = b"".join(b"X\x02\x00\x00\x00" + f"{n % 100:02}".encode() + value for n, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


def legacy(program: bytes, keys: bytes = pickle.dumps(["0"], 2), rest: bytes = b"") -> bytes:
    """A file of PyTorch before 1.6 around a pickle."""
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(value, 2) for value in start) + program + keys + rest


def torch_script() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/constants.pkl", pickle.dumps((), 2))
        file.writestr("archive/code/__torch__.py", CODE)
        file.writestr("archive/data.pkl", pickle.dumps({}, 2))
    return content.getvalue()


@lru_cache
def many_members(count: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for number in range(count):
            file.writestr(str(number), b"")
    return content.getvalue()


@lru_cache
def stacked(count: int) -> bytes:
    """An archive whose directory lists one member many times."""
    member, end = io.BytesIO(), b""
    with zipfile.ZipFile(member, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(2**22))
    data = member.getvalue()
    at = data.index(b"PK\1\2")
    entry = data[at : data.index(b"PK\5\6")]
    entries = b"".join(entry.replace(b"a.npy", f"{n:05}".encode()) for n in range(count))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), at, 0)
    return data[:at] + entries + end


@lru_cache
def squeezed(count: int, bits: int = -15) -> bytes:
    """About that many zeros, compressed: one compressed piece again and again, so that this takes no time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    piece = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece + again * ((count >> 22) - 1) + packer.flush()


def zeros(members: dict[str, bytes | int]) -> bytes:
    """An archive of compressed members; a number is that many zeros."""
    body, directory = b"", b""
    for name, value in members.items():
        data = squeezed(value) if isinstance(value, int) else zlib.compress(value, 9)[2:-4]
        size, crc = (value, 0) if isinstance(value, int) else (len(value), zlib.crc32(value))
        fields = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, crc, len(data), size, len(name), 0)
        directory += (
            b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + name.encode()
        )
        body += b"PK\3\4" + fields + name.encode() + data
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


def npy(shape: str, dtype: str = "'<f4'", body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with any header."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(header)) + header + body


def safetensors(header: bytes | object, body: bytes = b"", length: int | None = None) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + body


def pickles() -> Iterator[Case]:
    for number, (module, name, arguments) in enumerate(CALLS):
        program = Call(module, name, arguments).program()
        label = f"{module[:30]}.{name[:30]}"
        yield Case(f"pt calls {label!r}", "pickle", alone("w.pt", archive(program)), PT)
        if number % 4 == 0:
            yield Case(f"old pt calls {label!r}", "pickle", alone("w.pt", legacy(program)), PT[:1])
            yield Case(f"bare pickle calls {label!r}", "pickle", alone("w.pt", program), PT[:1])
            yield Case(
                f"checkpoint calls {label!r}", "pickle", alone("run/checkpoints/step-00000001.pt", archive(program)),
                ("train vq-shapes --out run --resume --device cpu",),
            )  # fmt: skip
            yield Case(
                f"metric weights call {label!r}", "pickle", alone("w.pt", archive(program)),
                ("evaluate model --protocol folders --i3d w.pt --reference clips --num-clips 2", "evaluate clips --reference clips --i3d w.pt"),
            )  # fmt: skip


def torch_bombs() -> Iterator[Case]:
    many = named(*(tensor(1000, (1000,), (1,)) for _ in range(20_000)))
    itself = b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."
    programs = {
        "a storage larger than its member": archive(named(tensor(10**9, (10**9,), (1,))), {"0": bytes(400)}),
        "a tensor larger than its storage": archive(named(tensor(100, (10**10,), (1,))), {"0": bytes(400)}),
        "a tensor repeated by stride 0": archive(named(tensor(100, (10**12,), (0,))), {"0": bytes(400)}),
        "a negative size": archive(named(tensor(100, (-5,), (1,))), {"0": bytes(400)}),
        "an offset beyond the storage": archive(named(tensor(100, (5,), (1,), offset=10**9)), {"0": bytes(400)}),
        "twenty thousand views": archive(many, {"0": bytes(4000)}),
        "compressed zeros": zeros({"archive/data.pkl": named(tensor(2**28, (2**28,), (1,))), "archive/data/0": 2**30}),
        "a container in itself": archive(itself),
        "three million steps": archive(b"\x80\x02(" + b"}."[:1] * 3_000_000 + b"t."),
        "three million values": archive(b"\x80\x02](" + b"N" * 3_000_000 + b"e."),
        "a memo of billions": archive(b"\x80\x02Nr\xff\xff\xff\x7f."),
        "a text of gigabytes": archive(b"\x80\x02\x8d" + struct.pack("<Q", 2**40) + b"."),
        "lists nested a million deep": archive(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."),
        "tuples nested deep": archive(b"\x80\x02)" + b"\x85" * 500_000 + b"."),
        "an unknown storage": archive(named(tensor(100, (5,), (1,), kind="EvilStorage")), {"0": bytes(400)}),
        "two members of one name": archive(named(), {}) + b"",
        "TorchScript": torch_script(),
        "a hundred thousand members": many_members(70_000),
        "one member listed often": stacked(5000),
        "a storage of exabytes, old": legacy(named(tensor(2**60, (2**60,), (1,)))),
        "a storage of gigabytes, old": legacy(named(tensor(2**31, (2**31,), (1,))), rest=struct.pack("<q", 2**31)),
        "no pickle at all": b"\x00" * 1000,
        "half an archive": archive(named(tensor(100, (5,), (1,))), {"0": bytes(400)})[:300],
        "a bytearray of ten gigabytes in the keys": legacy(named(), Call("builtins", "bytearray", (10**10,)).program()),
    }
    for name, content in programs.items():
        lines = PT
        yield Case(f"pt with {name}", "PyTorch", alone("w.pt", content), lines)


def safetensors_cases() -> Iterator[Case]:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    contents = {
        "a header of exabytes": safetensors(b"{}", length=2**63 - 1),
        "a header of 90 MB": struct.pack("<Q", 90_000_000) + b"{}",
        "a header of 20 MB of spaces": safetensors(b"{" + b" " * 20_000_000 + b"}"),
        "a header nested deep": safetensors(b'{"a":' * 100_000),
        "a header that is a list": safetensors([1, 2]),
        "a header that is no JSON": safetensors(b"{'a': 1}"),
        "a tensor of exabytes": safetensors({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}, bytes(4)),
        "a size that overflows": safetensors({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}, bytes(4)),
        "a negative size": safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        "an unknown dtype": safetensors({"a": one | {"dtype": "EVIL"}}, bytes(4)),
        "overlapping tensors": safetensors({"a": one, "b": one}, bytes(4)),
        "seventy thousand tensors": safetensors({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(70_000)}),
        "a name of a megabyte": safetensors({"n" * 10**6: one}, bytes(4)),
        "a name with escapes": safetensors({"\x1b[2J\x1b]0;evil\x07": one}, bytes(4)),
        "an axis for every letter": safetensors({"a": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}, bytes(4)),
        "text": b"hello",
        "nothing": b"",
        "other tensors": save({"w": torch.zeros(3)}),
    }  # fmt: skip
    for name, content in contents.items():
        lines = (
            "generate model --out out.png",
            "finetune model clips out --loop.num-steps 400",
            "evaluate model --num-clips 2",
        )
        yield Case(
            f"safetensors with {name}", "safetensors", replaced("model", "model/model.safetensors", content), lines
        )
        if len(name) % 2:
            lines = ("reconstruct tokenizer clip.mp4 out.mp4", "tokenize tokenizer clips out --num-clips 2")
            file = replaced("tokenizer", "tokenizer/model.safetensors", content)
            yield Case(f"tokenizer with {name}", "safetensors", file, lines)


def array_cases() -> Iterator[Case]:
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    arrays = {
        "exabytes": npy("(1000000000000, 1000000000)"),
        "four gigabytes": npy("(1000000000,)"),
        "a negative size": npy("(-4,)"),
        "Python objects": objects.getvalue(),
        "a dtype of gigabytes": npy("()", "'V2000000000'"),
        "letters of gigabytes": npy("(3,)", "'<U500000000'"),
        "a header of parentheses": npy("(" * 5000 + ")" * 5000),
        "a header of megabytes": npy("(1,)" + " " * 3_000_000, version=b"\x02\x00"),
        "a header that computes": npy("(10**9,)"),
        "a header that calls": npy(f"({CODE})"),
        "version 3": npy("(1,)", version=b"\x03\x00", body=bytes(4)),
        "an unknown version": npy("(1,)", version=b"\x09\x00", body=bytes(4)),
        "a million fields": npy("(1,)", str([(f"f{n}", "<f4") for n in range(500)])),
        "half an array": npy("(100,)", body=bytes(20)),
        "text": b"hello",
    }
    for name, content in arrays.items():
        lines = ("generate world --out out.mp4 --actions w.npy",)
        yield Case(f"npy with {name}", "array", alone("w.npy", content), lines)
        packed = zeros({"w.npy": content})
        yield Case(f"npz with {name}", "array", alone("w.npz", packed), ("convert magvit-flax w.npz out",))
    big = npy("(268435456,)")
    packed = {
        "a gigabyte of zeros": zeros({"a.npy": big, "b": 2**30}),
        "three gigabytes of zeros": zeros(ZEROS),
        "seventy thousand members": many_members(70_000),
        "one member listed often": stacked(5000),
        "no directory": zlib.compress(bytes(10**6)),
    }
    for name, content in packed.items():
        yield Case(f"npz with {name}", "array", alone("w.npz", content), ("convert magvit-flax w.npz out",))


def weight_cases() -> Iterator[Case]:
    """All of them."""
    for cases in (pickles, torch_bombs, safetensors_cases, array_cases):
        yield from cases()
