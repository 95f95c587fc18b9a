"""Prompt cleaning as for LlamaGen's training captions: DeepFloyd IF's rules for text from the web, by PixArt.

A model trained on cleaned captions should read cleaned prompts. The rules lower-case the text and remove addresses,
markup, brackets, file names, article numbers and CJK ideographs.

One step differs: the published chain repairs wrongly decoded text with ftfy; this one only converts it to Unicode's
composed form (NFC). For typed prompts the results are equal.
"""

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from mutoscope.errors import UserError

MAX_PROMPT = 20_000  # characters; the rules take quadratic time in the worst case

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
_DASHES += r"\ufe31\ufe32\ufe58\ufe63\uff0d"

# (pattern, replacement), applied in this order in three steps of the chain
BEFORE_MARKUP = [
    ("<person>", "person"),
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN}))", ""),
]
BEFORE_ENTITIES = [
    (r"@[\w\d]+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # CJK strokes to unified ideographs
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.{_FILE}", ""),  # file names
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
]
JOINED_WORDS = re.compile(r"[-_]")  # this-is-my-cat: replaced if there are more than three
AFTER_ENTITIES = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers of several forms
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE}(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second letter is Cyrillic
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
]


def clean_prompt(text: str) -> str:
    """The prompt as LlamaGen's text encoder reads it. The official code applies the rules twice, so this does too.

    Raises UserError for a prompt of more than `MAX_PROMPT` characters.
    """
    if len(text) > MAX_PROMPT:
        raise UserError(f"A prompt holds at most {MAX_PROMPT:,} characters, found {len(text):,}: shorten it.")
    return _clean_once(_clean_once(text))


def _clean_once(text: str) -> str:
    text = _replaced(unquote_plus(text).strip().lower(), BEFORE_MARKUP)
    text = _replaced(_without_markup(text), BEFORE_ENTITIES)
    if len(JOINED_WORDS.findall(text)) > 3:
        text = JOINED_WORDS.sub(" ", text)
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text))).strip()
    return _replaced(text, AFTER_ENTITIES).strip()


def _replaced(text: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


class _Text(HTMLParser):
    """Collects the visible text of a page, without tags, comments, scripts and styles."""

    HIDDEN = ("script", "style", "template")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(self.hidden - (tag in self.HIDDEN), 0)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _without_markup(text: str) -> str:
    if "<" not in text and "&" not in text:
        return text
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)
