"""What the page and the server say to each other while a world is played: JSON objects with a "type"."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mutoscope.errors import UserError, reason
from mutoscope.json_config import dataclass_from_dict, nearest, parse_json

MAX_TEXT = 64 * 1024  # of one message, in characters


@dataclass(frozen=True)
class Start:
    """Begin a world, or another one."""

    model: str
    class_label: str | int | None = None
    first_frame: str | None = None
    upload: str | None = None
    """name of an uploaded picture that becomes the first frame"""
    seed: int = 0
    sampling: dict[str, object] = field(default_factory=dict[str, object])
    """options of the sampler that differ from the model's"""
    image: str = "webp"
    """webp, png or jpeg"""
    paused: bool = False
    real: bool = False
    """also run the recorded environment, where it is installed"""


@dataclass(frozen=True)
class Act:
    """What is done from the next frame on, until the next message of this kind."""

    id: int
    """sent back with the frames that follow it"""
    action: dict[str, float]
    """by name; absent names are 0"""


@dataclass(frozen=True)
class Pause:
    """Stop after the frame in progress."""


@dataclass(frozen=True)
class Go:
    """Go on."""


@dataclass(frozen=True)
class Step:
    """One frame, and stop again."""


@dataclass(frozen=True)
class Rate:
    """At most this many frames per second."""

    fps: float


@dataclass(frozen=True)
class Rewind:
    """Back to a frame, and stop there."""

    frame: int


@dataclass(frozen=True)
class Reset:
    """From the first frame again."""


@dataclass(frozen=True)
class Shown:
    """A frame was drawn; the server sends no more than two frames ahead of this."""

    frame: int


@dataclass(frozen=True)
class Save:
    """Ask for what was played as a file: mp4, gif, png (contact sheet) or lerobot (ZIP)."""

    format: str


Message = Start | Act | Pause | Go | Step | Rate | Rewind | Reset | Shown | Save
KINDS: Mapping[str, type[Message]] = {
    "start": Start,
    "action": Act,
    "pause": Pause,
    "go": Go,
    "step": Step,
    "rate": Rate,
    "rewind": Rewind,
    "reset": Reset,
    "shown": Shown,
    "save": Save,
}


def json_object(text: str | bytes, most: int = MAX_TEXT) -> dict[str, object]:
    """What a client wrote. Raises UserError for anything but a JSON object of at most `most` characters."""
    if len(text) > most:
        raise UserError(f"A message has at most {most:,} characters, found {len(text):,}.")
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"A message is a JSON object ({reason(error)}).") from None
    if not isinstance(value, dict):
        raise UserError("A message is a JSON object.")
    return value


def read_message(text: str) -> Message:
    """Raises UserError for anything that is no such message."""
    value = json_object(text)
    kind = value.pop("type", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"There is no message of type {str(kind)[:40]!r}: {nearest(str(kind)[:40], KINDS)}")
    return dataclass_from_dict(KINDS[kind], value, f"message {kind}")
