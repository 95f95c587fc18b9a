"""The layout of a plain folder of videos: files, classes, captions, and how many clips a video gives.

Classes are the sub-folders directly below the folder, in alphabetical order. A caption is the text file beside a video
with the same name and the suffix .txt. Hidden files do not count (see `media.files_below`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutoscope.data.media import VIDEO_SUFFIXES, files_below, spread
from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError


@dataclass(frozen=True)
class MediaFile:
    """One video or image of a dataset.

    label: index of its class, -1 without a class. caption: "" without a caption. part: which part of the file is meant,
    "" for the whole file.
    """

    path: Path
    label: int
    caption: str = ""
    part: str = ""

    @property
    def name(self) -> str:
        """The name that reports print."""
        return f"{self.path}#{self.part}" if self.part else str(self.path)


@dataclass(frozen=True)
class FileProblem:
    """A file that is skipped, or read in part, and the reason."""

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
    paths = files_below(folder, VIDEO_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no videos; known suffixes are {' '.join(sorted(VIDEO_SUFFIXES))}")
    labels, classes = class_folders(folder, paths)
    return [MediaFile(path, label, read_caption(path)) for path, label in zip(paths, labels, strict=True)], classes


def class_folders(folder: Path, paths: Sequence[Path]) -> tuple[list[int], list[str]]:
    """The class of every file, -1 for a file outside class folders, and the names of the classes."""
    class_of = {path: path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
    classes = sorted(set(class_of.values()))
    numbers = {name: i for i, name in enumerate(classes)}
    return [numbers[class_of[path]] if path in class_of else -1 for path in paths], classes


def read_caption(path: Path) -> str:
    """Text of the file beside a video or image, "" without such a file. Raises UserError for one in no Unicode."""
    sidecar = path.with_suffix(".txt")
    return read_text(sidecar).strip() if sidecar.is_file() else ""


def clip_span(num_frames: int, frame_stride: int) -> int:
    """Frames of the video from the first to the last frame of a clip."""
    return (num_frames - 1) * frame_stride + 1


def clip_starts(video_frames: int, span: int, step: int) -> Sequence[int]:
    """First frames of the clips of a video: every `step` frames as long as a whole clip fits."""
    return range(0, video_frames - span + 1, step)


__all__ = [
    "FileProblem", "MediaFile", "class_folders", "clip_span", "clip_starts", "find_videos", "read_caption", "spread",
]  # fmt: skip
