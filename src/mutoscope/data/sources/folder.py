"""A folder of videos as data sets see it: which files, which classes, which captions, how many clips.

Classes are the sub-folders directly below the folder, in alphabetical order. A caption is the text file beside a video
with the same name and the suffix .txt. Hidden files are left out: unfinished videos are written under hidden names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutoscope.data.video.decode import VIDEO_SUFFIXES
from mutoscope.errors import UserError


@dataclass(frozen=True)
class MediaFile:
    """One video or image of a data set. label: position of its class, -1 for one without class.

    caption: "" without one. part: which part of the file it is, "" for all of it.
    """

    path: Path
    label: int
    caption: str = ""
    part: str = ""

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.path}#{self.part}" if self.part else str(self.path)


@dataclass(frozen=True)
class FileProblem:
    """A file that is not used, or not to its end, and why."""

    path: str
    reason: str


def find_videos(folder: str | Path) -> tuple[list[MediaFile], list[str]]:
    """All videos below a folder in order of path, and the class names. A single video file counts as a folder of one.

    Raises UserError where the folder is missing or holds no video.
    """
    folder = Path(folder)
    if folder.is_file():
        return [MediaFile(folder, -1, read_caption(folder))], []
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path")
    paths = sorted(path for path in folder.rglob("*") if is_video(path.relative_to(folder)) and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no videos; known suffixes are {' '.join(sorted(VIDEO_SUFFIXES))}")
    labels, classes = class_folders(folder, paths)
    return [MediaFile(path, label, read_caption(path)) for path, label in zip(paths, labels, strict=True)], classes


def class_folders(folder: Path, paths: Sequence[Path]) -> tuple[list[int], list[str]]:
    """The class of every file, -1 for one that lies outside class folders, and the names of the classes."""
    class_of = {path: path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
    classes = sorted(set(class_of.values()))
    numbers = {name: i for i, name in enumerate(classes)}
    return [numbers[class_of[path]] if path in class_of else -1 for path in paths], classes


def is_video(path: Path) -> bool:
    """By its name: a known suffix, and no part of the path hidden."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def read_caption(path: Path) -> str:
    """Text of the sidecar file, "" without one."""
    sidecar = path.with_suffix(".txt")
    return sidecar.read_text(encoding="utf-8", errors="replace").strip() if sidecar.is_file() else ""


def clip_span(num_frames: int, frame_stride: int) -> int:
    """Frames of the video from the first to the last frame of a clip."""
    return (num_frames - 1) * frame_stride + 1


def clip_starts(video_frames: int, span: int, step: int) -> Sequence[int]:
    """First frames of the clips of a video: every `step` frames as long as a whole clip fits."""
    return range(0, video_frames - span + 1, step)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread."""
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]
