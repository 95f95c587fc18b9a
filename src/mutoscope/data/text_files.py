"""Reading text that people and editors wrote: one rule for byte order marks and encodings.

Torch-free, so that a report about a folder starts fast.
"""

import codecs
from pathlib import Path

from mutoscope.errors import UserError, reason
from mutoscope.json_config import parse_json

# Longer marks first: UTF-32's little-endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

CUT_REASONS = ("unexpected end of data", "truncated data")  # of decoders at the end of a file


def read_text(path: Path, may_be_cut: bool = False) -> str:
    """The text of a file: UTF-8, or what its byte order mark says, which is removed. Lines end in "\\n" alone.

    may_be_cut: the file is still being written, and its last letter may be there in part, which is dropped.
    Raises UserError for a file that cannot be read, or that is in another encoding, such as Latin-1: guessing would
    turn letters into others without a word.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from None
    mark, encoding = next(((m, e) for m, e in BYTE_ORDER_MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if may_be_cut and error.reason in CUT_REASONS:
            return data[len(mark) : len(mark) + error.start].decode(encoding)
        at = f"byte {error.start + len(mark)}"
        raise UserError(f"{path} is not {encoding.upper()} text ({at}): save it as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{path} holds NUL characters, so it is no text in UTF-8: save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json_lines(path: Path) -> list[dict[str, object]]:
    """The objects of a file with one per line. A last line without its end is still being written and does not count.

    Raises UserError for other damage.
    """
    lines = read_text(path, may_be_cut=True).split("\n")  # not splitlines: texts in JSON may hold other line ends
    rows: list[dict[str, object]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not JSON ({reason(error)}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not an object.")
        rows.append(row)
    return rows
