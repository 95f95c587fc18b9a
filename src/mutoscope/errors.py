"""The one exception that is the user's to fix, and what exceptions of other libraries add to its message."""

import re
import reprlib
import unicodedata

TERMINAL_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
OPEN_FILES = re.compile(r" <_io\.[^>]*>")  # Pillow prints the object that it reads from
REFUSED_CLASS = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
UNPICKLER, ADVICE = "WeightsUnpickler error:", "Weights only load failed"  # torch's reason comes after its advice
# Switches of other libraries by which a reader would execute or unpack whatever a file holds.
SAFETY_SWITCHES = re.compile(
    r"weights_only|add_safe_globals|allow_pickle|trust_remote_code|max_header_size|MAX_IMAGE_PIXELS|"
    r"set_int_max_str_digits|field_size_limit|huge_tree"
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\[])")
MAX_REASON = 300  # characters
MAX_RUN = 500  # characters without a space: a path or a name, longer ones lose their middle
MAX_HEAD, MAX_TAIL = 2000, 500  # characters kept of a message
JOINERS = "\u200c\u200d"  # letters of some scripts and emoji are joined by them
MAX_SHOWN = 120  # characters of a value


class UserError(ValueError):
    """Bad input or usage. The message is one sentence or two: what is wrong, what was found, what to do.

    The command line prints it without a traceback and exits with status 2. Control characters in it are spelled out
    and overlong names lose their middle, since messages quote files whose content nobody has checked.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(printable(str(message))))


def printable(text: str) -> str:
    """The text with control characters, terminal escapes among them, and marks of direction spelled out: `\\x1b`.

    Line ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else _spelled(character) for character in text)


def _is_harmless(character: str) -> bool:
    if character.isprintable() or character in "\n\t" or character in JOINERS:
        return True
    return unicodedata.category(character) in ("Zs", "Cn", "Co")  # spaces, and letters newer than Python's tables


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def shortened(text: str) -> str:
    """The text without the middle of overlong words, and of itself where it is longer than a message may be."""
    if len(text) <= MAX_RUN:
        return text
    text = re.sub(rf"\S{{{MAX_RUN + 1},}}", lambda run: _without_middle(run[0], MAX_RUN // 2, MAX_RUN // 2), text)
    return text if len(text) <= MAX_HEAD + MAX_TAIL else _without_middle(text, MAX_HEAD, MAX_TAIL)


def _without_middle(text: str, head: int, tail: int) -> str:
    return f"{text[:head]}…{text[-tail:]}"


def shown(value: object) -> str:
    """A value of a file as errors quote it: its repr, shortened before it is built."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = MAX_SHOWN
    short.maxlevel = 3
    text = short.repr(value)
    return text if len(text) <= 2 * MAX_SHOWN else _without_middle(text, MAX_SHOWN, MAX_SHOWN)


def reason(error: BaseException) -> str:
    """The first meaningful sentence of another library's exception, without its full stop, for a `UserError`.

    Terminal escapes, line breaks, advice to developers and error numbers are dropped. An exception without words is
    named by its class.
    """
    text = getattr(error, "strerror", None) or str(error)  # FFmpeg's errors have the attribute of OSError too
    text = OPEN_FILES.sub("", TERMINAL_ESCAPES.sub("", str(text)))
    if refused := REFUSED_CLASS.search(text):
        return f"it holds {shortened(refused[1])}, which is neither a tensor nor a plain container"
    lines = [" ".join(line.split()) for line in text.rpartition(UNPICKLER)[2].splitlines()]
    lines = [line for line in lines if line]
    # A line such as "Error(s) in loading state_dict for ResNet:" announces the one that says what is wrong.
    line = next((line for line in lines if not line.endswith(":") and not line.startswith(ADVICE)), "".join(lines[:1]))
    sentence = SENTENCE_END.split(line)[0].rstrip(".: ")
    if "digits" in sentence and "limit" in sentence:  # of Python's int
        return "it holds a number of thousands of digits"
    if SAFETY_SWITCHES.search(sentence):
        return "it holds more than plain data"
    sentence = "".join(character for character in sentence if character.isprintable())
    if not re.search(r"[^\W\d_]", sentence):  # a KeyError says a key alone, which may be a number
        return f"{type(error).__name__} {sentence}".strip()
    return sentence if len(sentence) <= MAX_REASON else f"{sentence[:MAX_REASON]}…"
