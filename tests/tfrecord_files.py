"""TFRecord files written field by field, as the tests of their reader need them."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

POLYNOMIAL = 0x82F63B78


def plain_crc32c(data: bytes) -> int:
    """Bit by bit, by the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: Sequence[bytes] | np.ndarray, packed: bool = True) -> bytes:
    if not isinstance(values, np.ndarray):
        return delimited(1, b"".join(delimited(1, value) for value in values))
    if values.dtype == np.float32:
        content = values.astype("<f4").tobytes()
        unpacked = b"".join(varint(1 << 3 | 5) + struct.pack("<f", value) for value in values)
        return delimited(2, delimited(1, content) if packed else unpacked)
    numbers = [varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values]
    return delimited(3, delimited(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers))


def example(features: Mapping[str, Sequence[bytes] | np.ndarray], packed: bool = True) -> bytes:
    entries = [
        delimited(1, delimited(1, name.encode()) + delimited(2, feature(values, packed)))
        for name, values in features.items()
    ]
    return delimited(1, b"".join(entries))


def write_records(path: Path, payloads: Sequence[bytes], crc=plain_crc32c) -> Path:
    """crc: of long payloads the test's own would take seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def masked(data: bytes) -> bytes:
        value = crc(data)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    with path.open("wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + masked(length) + payload + masked(payload))
    return path
