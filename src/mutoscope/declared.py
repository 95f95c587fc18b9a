"""Sizes that files declare, read from their headers and checked before anything is unpacked or allocated.

An archive of a few megabytes may declare gigabytes. Every reader of archives, arrays and weights calls this module
first; it reads headers only, and raises UserError in one sentence.
"""

import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from mutoscope.errors import UserError, reason, shown

MAX_MEMBERS = 65_536  # of an archive: a network of thousands of layers has fewer tensors
MAX_RATIO = 32  # between what an archive of arrays declares and its own size; trained weights reach 2
ALWAYS_FINE = 64 * 2**20  # bytes that any archive may declare
MAX_HEADER = 16 * 2**20  # bytes of a safetensors header: more than 100,000 tensors
LENGTH = struct.Struct("<Q")
END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
END_OF_DIRECTORY_64, LOCATOR_64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
TAIL_64 = END_OF_DIRECTORY_64.size + LOCATOR_64.size
MAX_COMMENT = 2**16


# ------------------------------------------------------------------------------------------------------------ archives


def zip_members(path: Path, stored: bool = False) -> list[zipfile.ZipInfo]:
    """The members of a ZIP archive, whose declared sizes are plausible. Nothing is unpacked.

    stored: the members must not be compressed, as in PyTorch's files, and every reader must find the same list of
    them: Python's takes the one before the record at the end, torch's the one at the offset in that record.
    Raises UserError for an archive that declares far more than it can hold, or more members than a network has tensors,
    and OSError or BadZipFile for another file.
    """
    size = path.stat().st_size
    if (count := _declared_members(path, size)) > MAX_MEMBERS:
        raise UserError(f"{path} declares {count:,} members, at most {MAX_MEMBERS:,} are read.")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if stored:
        _check_directory(path, size)
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{path} holds {len(members):,} members, at most {MAX_MEMBERS:,} are read.")
    declared = sum(member.file_size for member in members)
    if declared > (size if stored else max(MAX_RATIO * size, ALWAYS_FINE)):
        raise UserError(
            f"{path} declares {declared:,} bytes in {size:,} bytes of file, so it is damaged or made to fill memory; "
            "it is not unpacked."
        )
    return members


def _check_directory(path: Path, size: int) -> None:
    """Raises UserError unless an archive ends with its list of members and the record of where that list is."""
    with path.open("rb") as file:
        file.seek(max(size - TAIL_64 - END_OF_DIRECTORY.size, 0))
        tail = file.read()
    at = size - END_OF_DIRECTORY.size
    signature, _, _, _, _, count, offset, comment = END_OF_DIRECTORY.unpack(tail[-END_OF_DIRECTORY.size :])
    before = tail[: -END_OF_DIRECTORY.size]
    is_plain = signature == b"PK\5\6" and comment == 0
    if before[-LOCATOR_64.size :].startswith(b"PK\6\7"):  # of an archive of more than 4 GB
        at -= TAIL_64
        *_, count, offset = END_OF_DIRECTORY_64.unpack(before[: END_OF_DIRECTORY_64.size])
        is_plain = is_plain and before.startswith(b"PK\6\6") and LOCATOR_64.unpack(before[-LOCATOR_64.size :])[2] == at
    if not is_plain or offset + count != at:
        raise UserError(f"{path} has a list of members that two readers would find in two places; it is not read.")


def _declared_members(path: Path, size: int) -> int:
    """Members by the record at the end of an archive, which is read without reading the list of members."""
    with path.open("rb") as file:
        file.seek(max(size - END_OF_DIRECTORY.size - MAX_COMMENT, 0))
        end = file.read()
    at = end.rfind(b"PK\5\6")
    if at < 0 or len(end) - at < END_OF_DIRECTORY.size:
        return 0
    _, _, _, _, count, directory_bytes, _, _ = END_OF_DIRECTORY.unpack_from(end, at)
    return max(count, directory_bytes // 46 if directory_bytes < 2**32 - 1 else 0) if count != 2**16 - 1 else size // 46


# -------------------------------------------------------------------------------------------------------------- arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises UserError for declared sizes that do not fit, and what NumPy raises."""
    zip_members(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                _check_header(cast(BinaryIO, file), member.file_size, f"{path}: {shown(member.filename)}")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, as NumPy reads it. Raises UserError for a declared size that does not fit."""
    check_npy(path)
    return np.load(path, allow_pickle=False)


def check_npy(path: Path) -> None:
    """Raises UserError unless an .npy file holds as many bytes as its header declares."""
    with path.open("rb") as file:
        _check_header(file, path.stat().st_size, str(path))


def _check_header(file: BinaryIO, size: int, where: str) -> None:
    """Checks the header of an array in a file of `size` bytes."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](file)
    except KeyError:
        raise UserError(f"{where} has a header of an unknown version.") from None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise UserError(f"{where} is no array: {reason(error)}.") from None
    declared = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise UserError(f"{where} holds Python objects, which may be programs; only arrays of numbers are read.")
    if min((*shape, 0)) < 0 or declared > size:
        shape_text = shown(shape)
        raise UserError(f"{where} declares an array of {shape_text}, {declared:,} bytes, in a file of {size:,} bytes.")


# --------------------------------------------------------------------------------------------------------- safetensors


def check_safetensors(path: Path) -> None:
    """Raises UserError unless the header of a .safetensors file has a plausible length and describes what follows."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        if len(start) < LENGTH.size:
            raise UserError(f"{path} is no safetensors file: it has {size} bytes.")
        (length,) = LENGTH.unpack(start)
        if length > MAX_HEADER or length + LENGTH.size > size:
            raise UserError(
                f"{path} declares a header too large for it: {length:,} bytes in a file of {size:,} bytes, at most "
                f"{MAX_HEADER:,} are read."
            )
        header = file.read(length)
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a header that is no JSON: {reason(error)}.") from None
    _check_entries(entries, path, size - length - LENGTH.size)


def _check_entries(entries: object, path: Path, data_bytes: int) -> None:
    if not isinstance(entries, dict):
        raise UserError(f"{path} has a header that is no JSON object.")
    if len(entries) > MAX_MEMBERS:
        raise UserError(f"{path} declares {len(entries):,} tensors, at most {MAX_MEMBERS:,} are read.")
    for name, entry in cast(Mapping[str, object], entries).items():
        end = cast(Mapping[str, object], entry).get("data_offsets") if isinstance(entry, dict) else None
        offsets = end if isinstance(end, list) else []
        if name != "__metadata__" and any(isinstance(n, int) and n > data_bytes for n in offsets):
            raise UserError(f"{path} declares tensor {shown(name)} beyond its end; the file is cut off or damaged.")


def too_large_for_memory(path: Path, limit: int | None) -> None:
    """Raises UserError for a file of weights that is larger than all memory."""
    size = path.stat().st_size
    if limit is not None and size > limit:
        raise UserError(f"{path} has {size / 1e9:,.1f} GB, this machine {limit / 1e9:,.1f} GB of memory.")
