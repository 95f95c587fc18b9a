import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.data.sources.datasets.tfrecord import (
    LANES,
    crc32c,
    index_records,
    masked_crc32c,
    parse_example,
    read_record,
)
from mutoscope.errors import UserError
from tfrecord_files import example, plain_crc32c, write_records


def test_the_checksum_of_the_standard_message():
    assert crc32c(b"123456789") == 0xE3069283
    assert masked_crc32c(bytes(8)) == 0x07980329  # a header of length 0


@given(data=st.binary(max_size=200))
def test_checksums_of_short_messages_follow_the_definition(data: bytes):
    assert crc32c(data) == plain_crc32c(data)


def test_checksums_of_long_messages_follow_the_definition():
    data = np.random.default_rng(0).integers(0, 256, LANES * 9 + 77, dtype=np.uint8).tobytes()
    assert crc32c(data) == plain_crc32c(data)


@given(
    texts=st.lists(st.binary(max_size=20), max_size=4),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    reals=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    packed=st.booleans(),
)
def test_examples_come_back_as_written(texts, numbers, reals, packed):
    features = {"é/t": texts, "n": np.array(numbers, np.int64), "x": np.array(reals, np.float32)}
    found = parse_example(example(features, packed))
    assert list(found["é/t"]) == texts
    np.testing.assert_array_equal(found["n"], features["n"])
    np.testing.assert_array_equal(found["x"], features["x"])


@given(data=st.binary(max_size=60), cut=st.integers(0, 60))
def test_damaged_messages_raise_value_errors_only(data: bytes, cut: int):
    whole = example({"a": [b"text"], "b": np.arange(3, dtype=np.float32)})
    for damaged in (data, whole[:cut] + data):
        with contextlib.suppress(ValueError):  # of which bad UTF-8 is one
            parse_example(damaged)


def test_records_are_found_and_read(tmp_path: Path):
    path = write_records(tmp_path / "x.tfrecords", [b"one", b"", b"three"])
    records, problem = index_records(path)
    assert [read_record(path, record) for record in records] == [b"one", b"", b"three"] and problem is None


def test_a_file_that_is_cut_off_keeps_its_whole_records(tmp_path: Path):
    path = write_records(tmp_path / "x.tfrecords", [b"one", b"two"])
    whole = path.read_bytes()
    for cut, reason in {len(whole) - 1: "ends inside record 1", 25: "ends inside the header of record 1"}.items():
        path.write_bytes(whole[:cut])
        records, problem = index_records(path)
        assert len(records) == 1 and problem == reason
    path.write_bytes(b"")
    assert index_records(path) == ([], "holds no record")


def test_changed_bytes_are_noticed(tmp_path: Path):
    path = write_records(tmp_path / "x.tfrecords", [b"one", b"two"])
    whole = bytearray(path.read_bytes())
    whole[12] ^= 1
    path.write_bytes(whole)
    records, problem = index_records(path)
    assert problem is None and read_record(path, records[1]) == b"two"
    with pytest.raises(UserError, match="does not match its checksum"):
        read_record(path, records[0])
    whole[0] ^= 1
    path.write_bytes(whole)
    assert index_records(path) == ([], "the length of record 0 does not match its checksum")
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_record(path, records[1])
