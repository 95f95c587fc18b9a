"""Tables of MP4 files are counted before FFmpeg allocates them."""

import struct
from pathlib import Path

import pytest

from hostile.media import fragment, patched
from mutoscope.data.video.read import probe
from mutoscope.data.video.tables import check_tables
from mutoscope.errors import UserError

TABLES = {
    "stsz": struct.pack(">III", 0, 1, 2**30),
    "stts": struct.pack(">IIII", 0, 1, 2**30, 1),
    "ctts": struct.pack(">IIII", 0, 1, 2**30, 1),
    "elst": struct.pack(">II", 0, 100_000),
}


def test_a_plain_file_passes(tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(patched(b"none", b""))
    check_tables(tmp_path / "v.mp4")
    assert probe(tmp_path / "v.mp4").num_frames == 4


@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind != "ctts"])
def test_tables_of_more_frames_than_bytes_are_refused(tmp_path: Path, kind: str):
    (tmp_path / "v.mp4").write_bytes(patched(kind.encode(), TABLES[kind]))
    with pytest.raises(UserError, match=r"declares [\d,]+ (frames|edits) in a file of"):
        probe(tmp_path / "v.mp4")


def test_fragments_of_more_frames_than_bytes_are_refused(tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(fragment(2**30))
    with pytest.raises(UserError, match="declares 1,073,741,824 frames"):
        probe(tmp_path / "v.mp4")
