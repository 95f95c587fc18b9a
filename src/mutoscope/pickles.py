"""PyTorch files, read as a list of declarations: the classes and the bytes that a pickle names.

A pickle is a program. `check_torch_file` walks through it without executing a step: tensors, plain containers and
numbers pass; every other class is refused by name, and so is a tensor that is larger than the storage it is stored in.
Only then may torch read the file.
"""

import io
import math
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from mutoscope.declared import zip_members
from mutoscope.errors import UserError, shown

MAX_PICKLE = 64 * 2**20  # bytes: a file of 25,000 tensors has a pickle of 5 MB
MAX_STEPS = 1_000_000  # of a pickle, each about two microseconds; a tensor takes 35
MAX_VIEWS = 8  # how many times the bytes of its storages the tensors of a file may have together
ARCHIVE = b"PK\3\4"  # begins every file of PyTorch since 1.6
LEGACY_PICKLES = 5  # magic number, protocol, sizes of C types, content, keys of storages

# Functions that only put plain values together.
CONTAINERS = frozenset({"collections OrderedDict", "collections Counter", "builtins set", "__builtin__ set"})
NUMBERS = frozenset({"builtins complex", "__builtin__ complex", "torch Size", "torch device", "_codecs encode"})
VIEWS = frozenset(f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3"))
WRAPPED = frozenset(
    {
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_parameter_with_state",
        "torch._tensor _rebuild_from_type_v2",
    }
    | {"torch.nn.parameter Parameter", "torch.serialization _get_layout"}
)
CALLED = CONTAINERS | NUMBERS | VIEWS | WRAPPED
MENTIONED = re.compile(
    r"torch(\.storage)? \w+Storage|torch (Tensor|b?float\w*|u?int\w*|bool|complex\w*|half|double|long)"
)


# Bytes of one number by the first letters of a dtype's name or of a storage class.
ITEM_BYTES = {
    "float8": 1, "bfloat16": 2, "float16": 2, "float64": 8, "float": 4, "half": 2, "double": 8, "long": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int64": 8, "int": 4, "bool": 1,
    "complex32": 4, "complex64": 8, "complex": 16, "FloatS": 4, "DoubleS": 8, "HalfS": 2, "BFloat16S": 2, "LongS": 8,
    "IntS": 4, "ShortS": 2, "CharS": 1, "ByteS": 1, "BoolS": 1, "UntypedS": 1, "ComplexFloatS": 8, "ComplexDoubleS": 16,
}  # fmt: skip


def item_bytes(name: str) -> int | None:
    """Bytes of one number of a dtype such as "bfloat16" or of a storage class such as "FloatStorage"."""
    short = name.replace("Storage", "S")
    fitting = [start for start in ITEM_BYTES if short.startswith(start)]
    return ITEM_BYTES[max(fitting, key=len)] if fitting else None


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: module and name, with a space between them."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The numbers behind a tensor, somewhere else in the file."""

    key: str
    count: int
    item_bytes: int


@dataclass
class Declared:
    """What a file declares so far."""

    storages: dict[str, int] = field(default_factory=dict[str, int])
    """bytes by key"""
    tensor_bytes: int = 0


class Opaque:
    """Any other value: a list, a dict, a tensor."""


OPAQUE, MARK = Opaque(), Opaque()


def check_torch_file(path: Path, allowed: Collection[str] = ()) -> None:
    """Raises UserError for a PyTorch file that holds more than tensors and plain containers, or declares too much.

    allowed: further classes, each as module and name with a space between them. Reads the pickles alone.
    Which kind of file it is follows from what torch goes by: a file may be several at once.
    """
    with path.open("rb") as file:
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
    if is_archive:
        _check_archive(path, allowed)
    elif tarfile.is_tarfile(path):
        raise UserError(f"{path} is a TAR archive, as PyTorch wrote them before 2017; they are not read.")
    else:
        _check_legacy(path, allowed)


def _check_archive(path: Path, allowed: Collection[str]) -> None:
    found = zip_members(path, stored=True)
    members = {member.filename: member for member in found}
    if len(members) < len(found):
        raise UserError(f"{path} holds two members of one name, so it is no PyTorch file.")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise UserError(f"{path} is a TorchScript archive: it holds a program, and programs in files are never run.")
    names = [name for name in members if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(names) != 1:
        raise UserError(f"{path} is not a PyTorch file: it holds {len(names)} lists of tensors instead of one.")
    if members[names[0]].file_size > MAX_PICKLE:
        raise UserError(f"{path} has a list of tensors of {members[names[0]].file_size:,} bytes, which is not read.")
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read(names[0]))
    declared = _walk(content, path, allowed, Declared())
    folder = names[0].removesuffix("data.pkl")
    for key, count in declared.storages.items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size < count:
            there = "nothing" if member is None else f"{member.file_size:,} bytes"
            raise UserError(f"{path} declares {count:,} bytes of numbers under {shown(key)} and holds {there} there.")
    _check_total(declared, path)


def _check_legacy(path: Path, allowed: Collection[str]) -> None:
    """A file of PyTorch before 1.6: pickles one after the other, then the numbers."""
    size, declared = path.stat().st_size, Declared()
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            _walk(file, path, allowed, declared)
    if (total := sum(declared.storages.values())) > size:
        raise UserError(f"{path} declares {total:,} bytes of numbers in a file of {size:,} bytes.")
    _check_total(declared, path)


def _check_total(declared: Declared, path: Path) -> None:
    stored = sum(declared.storages.values())
    if declared.tensor_bytes > MAX_VIEWS * stored:
        raise UserError(f"{path} declares tensors of {declared.tensor_bytes:,} bytes in {stored:,} bytes of numbers.")


# ---------------------------------------------------------------------------------------------------------- the walk


def _walk(file: BinaryIO, path: Path, allowed: Collection[str], declared: Declared) -> Declared:
    """Walks through one pickle of an open file, which ends after it."""
    walk = _Walk(path, allowed, declared)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_STEPS:
                raise UserError(f"{path} has a list of tensors of more than {MAX_STEPS:,} steps, which is not read.")
            walk.step(opcode.name, argument)
    except UserError:
        raise
    except Exception as error:  # damage shows as wrong bytes, a stack that is empty, or values of other kinds
        found = type(error).__name__
        raise UserError(f"{path} is damaged or cut off ({found}).") from None
    return declared


class _Walk:
    """The stack of one pickle, with numbers, texts and tuples as they are and everything else opaque."""

    def __init__(self, path: Path, allowed: Collection[str], declared: Declared) -> None:
        self.path, self.allowed, self.declared = path, allowed, declared
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.steps = STEPS

    def step(self, name: str, argument: object) -> None:
        if name in VALUES:
            self.stack.append(argument)
        elif name in self.steps:
            self.steps[name](self, argument)
        else:
            raise UserError(f"{self.path} holds {name}, which no PyTorch file needs: it is damaged.")

    def since_mark(self) -> list[object]:
        items: list[object] = []
        while (value := self.stack.pop()) is not MARK:
            items.append(value)
        return items[::-1]

    def named(self, argument: object) -> None:
        """A class or function is named, `argument` being module and name."""
        text = str(argument)
        if text not in CALLED and text not in self.allowed and not MENTIONED.fullmatch(text):
            raise UserError(
                f"{self.path} holds {shortened_name(text)}, which is neither a tensor nor a plain container; nothing "
                "in it was executed."
            )
        self.stack.append(Name(text))

    def called(self, _: object) -> None:
        """A function is called, or an object created."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("no function")
        if function.text not in CALLED and function.text not in self.allowed:
            raise UserError(f"{self.path} calls {shortened_name(function.text)}, which is not needed to hold tensors.")
        self.stack.append(OPAQUE)
        if function.text in VIEWS:
            self.viewed(arguments)

    def viewed(self, arguments: tuple[object, ...]) -> None:
        """A tensor is a view of a storage: offset, size and strides."""
        storage, offset, size, strides = arguments[:4]
        numbers = (offset, *cast(tuple[object, ...], size), *cast(tuple[object, ...], strides))
        if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("no view")
        whole = cast(tuple[int, ...], size)
        pairs = zip(whole, cast(tuple[int, ...], strides), strict=True)
        count, last = math.prod(whole), cast(int, offset) + sum((n - 1) * stride for n, stride in pairs)
        item = storage.item_bytes
        if len(arguments) > 6 and isinstance(dtype := arguments[6], Name):  # an untyped storage of bytes
            item = item_bytes(dtype.text.rpartition(" ")[2]) or item
        if count and (last + 1) * item > storage.count * storage.item_bytes:
            raise UserError(
                f"{self.path} declares a tensor of {shown(whole)} in a storage of {storage.count:,} numbers; the file "
                "is damaged or made to fill memory."
            )
        self.declared.tensor_bytes += count * item

    def stored(self, _: object) -> None:
        """A storage is mentioned: ("storage", class, key, device, count, ...)."""
        kind, name, key, _, count = cast(tuple[object, ...], self.stack.pop())[:5]
        item = item_bytes(name.text.rpartition(" ")[2]) if isinstance(name, Name) else None
        if kind not in ("storage", b"storage") or item is None or type(count) is not int or count < 0:
            raise ValueError("no storage")
        key = key.decode() if isinstance(key, bytes) else str(key)
        self.declared.storages[key] = max(count * item, self.declared.storages.get(key, 0))
        self.stack.append(Storage(key, count, item))

    def joined(self, count: int) -> None:
        """The last `count` values become a tuple."""
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)


def shortened_name(text: str) -> str:
    """A class with its module, as messages name it."""
    name = text.replace(" ", ".")
    return name if len(name) <= 100 else f"{name[:100]}…"


def _drop(count: int) -> "Callable[[_Walk, object], None]":
    def step(walk: _Walk, _: object) -> None:
        del walk.stack[len(walk.stack) - count :]

    return step


def _push(value: object) -> "Callable[[_Walk, object], None]":
    return lambda walk, _: walk.stack.append(value)


def _remember(walk: _Walk, argument: object) -> None:
    walk.memo[cast(int, argument)] = walk.stack[-1]


def _recall(walk: _Walk, argument: object) -> None:
    walk.stack.append(walk.memo[cast(int, argument)])


def _drop_marked(walk: _Walk, _: object) -> None:
    walk.since_mark()


def _nothing(walk: _Walk, argument: object) -> None:
    """Steps without an effect on the stack."""


# Steps that push their own argument; the rest of those that torch's reader knows follow.
VALUES = frozenset("BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING LONG1".split())
STEPS: "dict[str, Callable[[_Walk, object], None]]" = {
    "PROTO": _nothing,
    "STOP": _nothing,
    "MARK": _push(MARK),
    "NONE": _push(None),
    "NEWTRUE": _push(True),
    "NEWFALSE": _push(False),
    "EMPTY_TUPLE": _push(()),
    "EMPTY_LIST": _push(OPAQUE),
    "EMPTY_DICT": _push(OPAQUE),
    "EMPTY_SET": _push(OPAQUE),
    "TUPLE": lambda walk, _: walk.stack.append(tuple(walk.since_mark())),
    "TUPLE1": lambda walk, _: walk.joined(1),
    "TUPLE2": lambda walk, _: walk.joined(2),
    "TUPLE3": lambda walk, _: walk.joined(3),
    "APPEND": _drop(1),
    "APPENDS": _drop_marked,
    "SETITEM": _drop(2),
    "SETITEMS": _drop_marked,
    "BUILD": _drop(1),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "GLOBAL": _Walk.named,
    "REDUCE": _Walk.called,
    "NEWOBJ": _Walk.called,
    "BINPERSID": _Walk.stored,
}
