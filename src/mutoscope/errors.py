"""The one exception that is the user's to fix, and what exceptions of other libraries add to its message."""

import re

TERMINAL_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
OPEN_FILES = re.compile(r" <_io\.[^>]*>")  # Pillow prints the object that it reads from
REFUSED_CLASS = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
UNPICKLER, ADVICE = "WeightsUnpickler error:", "Weights only load failed"  # torch's reason comes after its advice
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\[])")
MAX_REASON = 300  # characters


class UserError(ValueError):
    """Bad input or usage. The message is one sentence or two: what is wrong, what was found, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def reason(error: BaseException) -> str:
    """The first meaningful sentence of another library's exception, without its full stop, for a `UserError`.

    Terminal escapes, line breaks, advice to developers and error numbers are dropped. An exception without words is
    named by its class.
    """
    text = getattr(error, "strerror", None) or str(error)  # FFmpeg's errors have the attribute of OSError too
    text = OPEN_FILES.sub("", TERMINAL_ESCAPES.sub("", str(text)))
    if refused := REFUSED_CLASS.search(text):
        return f"it holds {refused[1]}, which is neither a tensor nor a plain container"
    lines = [" ".join(line.split()) for line in text.rpartition(UNPICKLER)[2].splitlines()]
    lines = [line for line in lines if line]
    # A line such as "Error(s) in loading state_dict for ResNet:" announces the one that says what is wrong.
    line = next((line for line in lines if not line.endswith(":") and not line.startswith(ADVICE)), "".join(lines[:1]))
    sentence = SENTENCE_END.split(line)[0].rstrip(".: ")
    sentence = "".join(character for character in sentence if character.isprintable())
    if not re.search(r"[^\W\d_]", sentence):  # a KeyError says a key alone, which may be a number
        return f"{type(error).__name__} {sentence}".strip()
    return sentence if len(sentence) <= MAX_REASON else f"{sentence[:MAX_REASON]}…"
