"""Reading text that people and editors wrote: one rule for byte order marks and encodings.

Torch-free, so that a report about a folder starts fast.
"""

import codecs
from pathlib import Path

from mutoscope.errors import UserError

# Longer marks first: UTF-32's little-endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says, which is removed. Lines end in "\\n" alone.

    Raises UserError for a file that cannot be read, or that is in another encoding, such as Latin-1: guessing would
    turn letters into others without a word.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    mark, encoding = next(((m, e) for m, e in BYTE_ORDER_MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = f"byte {error.start + len(mark)}"
        raise UserError(f"{path} is not {encoding.upper()} text ({at}): save it as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{path} holds NUL characters, so it is no text in UTF-8: save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
