"""Text files of every editor: right, or an error, never other letters."""

from pathlib import Path

import pytest

from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError

TEXT = "ein grüner Kreis, красный круг 红色"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_with_a_mark_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


def test_latin_1_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text .byte 2.: save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_utf_16_without_a_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("grün".encode("utf-16-le"))
    with pytest.raises(UserError, match="UTF-8"):
        read_text(tmp_path / "a.txt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        read_text(tmp_path / "gone.txt")


def test_line_ends_of_every_system_are_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\nthree\n"
