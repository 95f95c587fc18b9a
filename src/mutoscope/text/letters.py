"""Words and names in every script: how text is folded before it is compared, and where its words begin and end."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

MAX_WORDS = 2_000  # more than any model reads
# Scripts that write no spaces between words: Thai, Lao, Myanmar, Khmer, kana, bopomofo and Han ideographs.
UNSPACED = re.compile(
    r"[\u0e01-\u0e5b\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Joiners, soft hyphens and the like, and marks that choose between text and emoji or draw a frame around a digit.
INVISIBLE = re.compile(
    "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u20dd-\u20e4\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)


def folded(text: str) -> str:
    """Text without differences of case, width and composition: what looks alike compares equal."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKC", INVISIBLE.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", plain)


def split_words(text: str) -> list[str]:
    """Folded words without punctuation, the first `MAX_WORDS` of them.

    A word is a run of letters, digits and the marks on them, of any script; in scripts without spaces, one letter with
    its marks.
    """
    if text.isascii():
        return [found[0] for found in islice(re.finditer(r"[a-z0-9]+", text.lower()), MAX_WORDS)]
    return list(islice(_words(folded(text)), MAX_WORDS))


def symbols(text: str) -> list[str]:
    """Emoji and other symbols, which belong to no word."""
    return [character for character in INVISIBLE.sub("", text) if unicodedata.category(character) == "So"]


def _words(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind == "M" and word:
            word += character
            continue
        alone = bool(UNSPACED.match(character))
        if word and (kind not in "LN" or alone or UNSPACED.match(word)):
            yield word
            word = ""
        word = word + character if kind in "LN" else ""
    if word:
        yield word
