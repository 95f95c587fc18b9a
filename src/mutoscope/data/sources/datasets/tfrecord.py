"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

A record is: length as uint64, masked CRC32C of these 8 bytes, payload, masked CRC32C of the payload; numbers are
little-endian. A payload is a protobuf message Example {1: Features}, Features {1: map entry {1: name, 2: Feature}},
Feature {1: BytesList, 2: FloatList, 3: Int64List}, each list {1: values}, numbers packed or one by one.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mutoscope.errors import UserError, reason

HEADER_BYTES, FOOTER_BYTES = 12, 4
POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
MASK = 0xA282EAD8
LANES = 2048  # parts of a long message whose checksums are computed side by side
VARINT, EIGHT_BYTES, LENGTH_DELIMITED, FOUR_BYTES = 0, 1, 2, 5

Values = list[bytes] | np.ndarray


@dataclass(frozen=True)
class Record:
    """Position of a payload in its file, in bytes."""

    offset: int
    length: int


# ------------------------------------------------------------------------------------------------------- checksums


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli) of the bytes.

    A checksum is linear, so that a long message is cut into LANES parts of equal length that one numpy loop reads at
    once; the parts' checksums are then joined in order.
    """
    message = np.frombuffer(data, np.uint8)
    length = len(message) // LANES
    state = 0xFFFFFFFF
    if length > 8:
        for part in _advance(np.zeros(LANES, np.uint32), message[: LANES * length].reshape(LANES, length)).tolist():
            state = _after_zeros(state, length) ^ part
        message = message[LANES * length :]
    table = _table_list()
    for byte in message.tolist():
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TFRecord files store it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """State after one byte from state 0, for all 256 bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(POLYNOMIAL), table >> np.uint32(1))
    return table


@lru_cache(maxsize=1)
def _table_list() -> list[int]:
    return _table().tolist()


def _advance(states: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """States (n,) after the bytes of messages (n, length)."""
    table = _table()
    for byte in np.ascontiguousarray(messages.T):
        states = table[(states ^ byte) & np.uint32(0xFF)] ^ states >> np.uint32(8)
    return states


@lru_cache(maxsize=64)
def _zeros_tables(length: int) -> list[list[int]]:
    """State after `length` zero bytes, for each of the four bytes of the state before."""
    bits = _advance(np.uint32(1) << np.arange(32, dtype=np.uint32), np.zeros((32, length), np.uint8))
    chosen = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)  # (256, 8)
    tables = [np.bitwise_xor.reduce(np.where(chosen, bits[8 * i : 8 * i + 8], 0), axis=1) for i in range(4)]
    return [table.tolist() for table in tables]


def _after_zeros(state: int, length: int) -> int:
    first, second, third, fourth = _zeros_tables(length)
    return first[state & 0xFF] ^ second[state >> 8 & 0xFF] ^ third[state >> 16 & 0xFF] ^ fourth[state >> 24]


# --------------------------------------------------------------------------------------------------------- records


def index_records(path: Path) -> tuple[list[Record], str | None]:
    """Positions of all whole records, and the fault of the file after them; None if it ends as it should.

    Reads headers only; payloads are checked when they are read. Raises UserError where the file cannot be opened.
    """
    records: list[Record] = []
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            offset = 0
            while offset < size:
                file.seek(offset)
                header = file.read(HEADER_BYTES)
                where = f"record {len(records)}"
                if len(header) < HEADER_BYTES:
                    return records, f"ends inside the header of {where}"
                length, crc = struct.unpack("<QI", header)
                if masked_crc32c(header[:8]) != crc:
                    return records, f"the length of {where} does not match its checksum"
                end = offset + HEADER_BYTES + length + FOOTER_BYTES
                if end > size:
                    return records, f"ends inside {where}"
                records.append(Record(offset + HEADER_BYTES, length))
                offset = end
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None
    return records, None if records else "holds no record"


def read_record(path: Path, record: Record) -> bytes:
    """The payload of a record. Raises UserError where the file is gone, shorter or does not match its checksum."""
    try:
        with path.open("rb") as file:
            file.seek(record.offset)
            data = file.read(record.length + FOOTER_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None
    payload, footer = data[: record.length], data[record.length :]
    if len(footer) < FOOTER_BYTES:
        raise UserError(f"{path} ends inside the record at byte {record.offset}; the file is cut off")
    if masked_crc32c(payload) != int.from_bytes(footer, "little"):
        raise UserError(f"{path}: the record at byte {record.offset} does not match its checksum; it is damaged")
    return payload


# -------------------------------------------------------------------------------------------------------- messages


def parse_example(payload: bytes) -> dict[str, Values]:
    """Features of a `tf.train.Example` by name: a list of bytes, or a float32 or int64 array (n,).

    Raises ValueError where the bytes are no such message.
    """
    found: dict[str, Values] = {}
    for features in _messages(memoryview(payload), 1):
        for entry in _messages(features, 1):
            names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
            if names and values:
                found[str(names[-1], "utf-8")] = _feature(values[-1])
    return found


def _feature(message: memoryview) -> Values:
    for kind, value in _fields(message):
        if not isinstance(value, memoryview) or kind not in (1, 2, 3):
            raise ValueError("a feature holds neither bytes nor numbers")
        if kind == 1:
            return [bytes(item) for item in _messages(value, 1)]
        return _floats(value) if kind == 2 else _integers(value)
    return []


def _floats(message: memoryview) -> np.ndarray:
    parts = [np.frombuffer(part, "<f4") for _, part in _fields(message) if isinstance(part, memoryview)]
    return np.concatenate([np.empty(0, "<f4"), *parts]).astype(np.float32)


def _integers(message: memoryview) -> np.ndarray:
    values: list[int] = []
    for _, value in _fields(message):
        if isinstance(value, int):
            values.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            values.append(number)
    return np.array(values, dtype=np.uint64).astype(np.int64)


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Contents of all length-delimited fields of this number."""
    for found, value in _fields(message):
        if found == number and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of every field of a message: an int for varints, else the bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == LENGTH_DELIMITED:
            length, position = _varint(message, position)
        elif wire in (FOUR_BYTES, EIGHT_BYTES):
            length = 4 if wire == FOUR_BYTES else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position + length > len(message):
            raise ValueError("the message ends inside a field")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("the message ends inside a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError("a number is longer than ten bytes")
