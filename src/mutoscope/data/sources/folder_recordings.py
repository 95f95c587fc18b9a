"""A plain folder of videos with all that may be beside them: classes, captions, actions, lists.

Captions and actions are files beside a video (`0001.txt`, `0001.actions.npy`), or columns of a list
(`metadata_files.py`). A file beside the video wins over a list; the two may not contradict each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float32

from mutoscope.actions import Kind
from mutoscope.data.action_tables import ActionTable
from mutoscope.data.sources.action_files import RowCountError, action_files, fitted_rows, read_actions
from mutoscope.data.sources.datasets.listing import Listing, RecordedActions
from mutoscope.data.sources.folder import FileProblem, MediaFile, find_videos
from mutoscope.data.sources.metadata_files import Lists, class_numbers, contradiction, read_lists
from mutoscope.data.sources.readers import ContainerReader
from mutoscope.data.sources.video_times import is_cut
from mutoscope.data.text_files import read_text
from mutoscope.data.video.read import iter_frames
from mutoscope.errors import UserError, reason
from mutoscope.json_config import parse_json

STATED_ACTIONS = "actions.json"
KINDS: tuple[Kind, ...] = ("buttons", "continuous")
COUNT_ONLY = 2**62  # a stride: all frames are decoded, one is converted


@dataclass(frozen=True)
class RecordedVideo(MediaFile):
    """A video and its actions: a file of them, or a table that a list holds."""

    actions: Path | ActionTable | None = field(default=None, compare=False)


@dataclass
class FolderReader(ContainerReader):
    """Videos with actions. names: of the numbers of an action; empty where no video has any."""

    names: tuple[str, ...] = ()

    def num_frames(self, file: MediaFile) -> int:
        """The header's number of frames; where it has none, or the file is cut off, frames are counted."""
        if is_cut(file.path):
            return counted(file.path, file.path.stat().st_mtime_ns)
        return super().num_frames(file)

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        if not self.names:
            return {}
        rows = action_rows(file, self.names)
        unknown = np.full((1, len(self.names)), np.nan, np.float32)
        known = np.concatenate([rows, unknown])  # the last frame may have no row
        return {"actions": known[np.minimum(np.asarray(frames, dtype=np.int64), len(rows))]}


def action_rows(file: MediaFile, names: Sequence[str]) -> Float32[np.ndarray, "t a"]:
    """The actions of a video in the order of `names`, without rows where it has no actions."""
    table, path = _table(file)
    return np.zeros((0, len(names)), np.float32) if table is None else table.ordered(names, path).rows


def list_folder(folder: str | Path) -> Listing:
    """The videos of a folder, or one video file, with classes, captions and actions.

    Files that a list names and the disk lacks are `missing`. Raises UserError where the folder is missing or holds no
    video, where two files contradict each other, or where a file of actions does not fit its video.
    """
    folder = Path(folder)
    files, classes = find_videos(folder)
    if folder.is_file():
        lists, stated = Lists(), StatedActions()
    else:
        lists, stated = read_lists(folder), read_stated_actions(folder / STATED_ACTIONS)
    kept = [file for file in files if file.path in lists.entries or not lists.is_complete]
    kept, classes = _with_classes(kept, classes, lists)
    videos = [_recorded(file, lists) for file in kept]
    names = _action_names(videos, stated)
    reader = FolderReader(names=names)
    fitting, misfits = _check_actions(videos, reader, stated.kind)
    return Listing(
        "folder",
        folder,
        "",
        fitting,
        classes,
        missing=_missing(files, lists) + misfits,
        unlisted=len(files) - len(kept),
        reader=reader,
        notes=tuple(_notes(files, kept, videos, lists, names)),
        frame_fields={"actions": len(names)} if names else {},
        fps=stated.fps,
        unit="videos",
        actions=RecordedActions(names, stated.kind) if names else None,
    )


def _with_classes(files: Sequence[MediaFile], classes: list[str], lists: Lists) -> tuple[list[MediaFile], list[str]]:
    """Classes from the lists, where one names any, else the sub-folders.

    A single sub-folder that holds all listed videos is where they are kept, and no class.
    """
    labels = {path: entry.label for path, entry in lists.entries.items() if entry.label}
    if labels:
        numbers, classes = class_numbers(labels)
        return [replace(file, label=numbers.get(file.path, -1)) for file in files], classes
    if lists.entries and len(classes) == 1 and all(file.label == 0 for file in files):
        return [replace(file, label=-1) for file in files], []
    return list(files), classes


def _recorded(file: MediaFile, lists: Lists) -> RecordedVideo:
    """The video with the caption and the actions of both the files beside it and the lists."""
    entry = lists.entries.get(file.path)
    caption, listed = file.caption, None
    if entry is not None:
        if caption and entry.caption and " ".join(caption.split()) != " ".join(entry.caption.split()):
            sidecar = file.path.with_suffix(".txt")
            raise contradiction(file.path, "caption", f"{sidecar}: {caption!r}", f"{entry.source}: {entry.caption!r}")
        caption, listed = caption or entry.caption, entry.actions
    beside: list[Path | ActionTable] = list(action_files(file.path))
    actions = (*beside, *([listed] if listed is not None and listed not in beside else []))
    for other in actions[1:]:
        one, two = (read_actions(a) if isinstance(a, Path) else a for a in (actions[0], other))
        if not np.array_equal(one.rows, two.rows, equal_nan=True):
            names = [str(a) if isinstance(a, Path) else str(entry and entry.source) for a in (actions[0], other)]
            raise contradiction(file.path, "list of actions", *names)
    return RecordedVideo(file.path, file.label, caption, actions=actions[0] if actions else None)


def _table(file: MediaFile) -> tuple[ActionTable | None, Path]:
    """The actions of a video, and the path that errors name."""
    actions = file.actions if isinstance(file, RecordedVideo) else None
    if isinstance(actions, Path):
        return read_actions(actions), actions
    return actions, file.path


def _action_names(videos: Sequence[RecordedVideo], stated: "StatedActions") -> tuple[str, ...]:
    """As actions.json states them, else as the first file with names does, else action_0, action_1 ..."""
    width = 0
    for video in videos:
        table, _ = _table(video)
        if table is not None:
            if (named := stated.names or table.names) is not None:
                return named
            width = width or table.rows.shape[1]
    return tuple(f"action_{number}" for number in range(width))


def _check_actions(
    videos: Sequence[RecordedVideo], reader: FolderReader, kind: Kind | None
) -> tuple[list[MediaFile], list[FileProblem]]:
    """The videos whose actions fit, and videos cut off, whose actions are of more frames than are there.

    Raises UserError for a file of actions whose rows, columns or values do not fit a whole video.
    """
    fitting: list[MediaFile] = []
    problems: list[FileProblem] = []
    for video in videos:
        reason = None if video.actions is None else _misfit(video, reader, kind)
        if reason is None:
            fitting.append(video)
        else:
            problems.append(FileProblem(video.name, reason))
    return fitting, problems


def _misfit(video: RecordedVideo, reader: FolderReader, kind: Kind | None) -> str | None:
    """Why a video that is cut off does not fit its actions; None where it fits. Raises UserError for a whole one."""
    table, path = _table(video)
    assert table is not None
    rows = table.ordered(reader.names, path).rows
    if kind == "buttons" and not (np.isnan(rows) | (rows == 0) | (rows == 1)).all():
        raise UserError(f"{path} holds numbers beside 0 and 1, but {STATED_ACTIONS} says buttons: correct one.")
    try:
        count = reader.num_frames(video)
        if len(rows) not in (count, count - 1):
            count = counted(video.path, video.path.stat().st_mtime_ns)  # headers may be wrong
        fitted_rows(rows, count, str(path))
    except UserError as error:
        if is_cut(video.path):
            return str(error)
        if isinstance(error, RowCountError):
            raise
    return None  # readers of clips report a video that cannot be read


@lru_cache(maxsize=1024)
def counted(path: Path, changed: int) -> int:
    """The frames of a video that decode."""
    with iter_frames(path, stride=COUNT_ONLY) as reader:
        list(reader)
        return reader.frames_decoded


@dataclass(frozen=True)
class StatedActions:
    """The content of actions.json at the top of a folder; None where it states nothing."""

    names: tuple[str, ...] | None = None
    kind: Kind | None = None
    fps: float | None = None


def read_stated_actions(path: Path) -> StatedActions:
    """Raises UserError for a damaged file."""
    if not path.is_file():
        return StatedActions()
    text = read_text(path)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({reason(error)}).") from None
    if not isinstance(values, dict):
        raise UserError(
            f'{path} must be an object such as {{"names": ["left", "right"], "kind": "buttons", "fps": 9}}.'
        )
    names, kind, fps = (cast(Mapping[str, object], values).get(name) for name in ("names", "kind", "fps"))
    if names is not None and not _are_names(names):
        raise UserError(f'{path}: "names" must be a list of different texts; found {names!r}.')
    if kind is not None and kind not in KINDS:
        raise UserError(f'{path}: "kind" is one of {", ".join(KINDS)}; found {kind!r}.')
    if fps is not None and (not isinstance(fps, int | float) or not 0 < fps < float("inf")):
        raise UserError(f'{path}: "fps" must be a positive number; found {fps!r}.')
    listed = tuple(cast(list[str], names)) if names else None
    return StatedActions(listed, cast(Kind | None, kind), None if fps is None else float(fps))


def _are_names(values: object) -> bool:
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(name, str) and name for name in values) and len(set(values)) == len(values)


def _missing(files: Sequence[MediaFile], lists: Lists) -> list[FileProblem]:
    present = {file.path for file in files}
    absent = [entry for path, entry in lists.entries.items() if path not in present]
    reasons = {True: "it is no video with a known suffix", False: "there is no such file"}
    return [FileProblem(str(e.path), f"{e.source.name} names it, but {reasons[e.path.is_file()]}") for e in absent]


def _notes(
    files: Sequence[MediaFile],
    kept: Sequence[MediaFile],
    videos: Sequence[RecordedVideo],
    lists: Lists,
    names: tuple[str, ...],
) -> Iterator[str]:
    yield from lists.notes
    if len(kept) < len(files):
        yield f"{len(files) - len(kept)} of {len(files)} videos are not in the list of videos and are not read"
    elif lists.entries and (unlisted := sum(file.path not in lists.entries for file in files)):
        yield f"{unlisted} of {len(files)} videos are not in the metadata"
    if names and (silent := sum(video.actions is None for video in videos)):
        yield f"{silent} of {len(videos)} videos have no actions; theirs are unknown"
