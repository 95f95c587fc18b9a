"""A report about recordings: a video, a folder, a LeRobot dataset or a copy of a dataset.

It counts episodes and clips for training, names cameras, classes, captions and actions, and lists broken files.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Required, TypedDict

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mutoscope.actions import ActionSpec
from mutoscope.data.action_marks import MIN_WIDTH, marked_frames
from mutoscope.data.action_report import ActionReport, format_actions, report_actions
from mutoscope.data.media import VIDEO_SUFFIXES, spread
from mutoscope.data.sources.datasets.catalog import list_dataset, present_splits, recognise
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import MediaFile, clip_span, clip_starts
from mutoscope.data.sources.folder_recordings import list_folder
from mutoscope.data.sources.lerobot import list_lerobot
from mutoscope.data.sources.lerobot_tables import is_lerobot
from mutoscope.data.sources.readers import ContainerReader, count_frames
from mutoscope.data.sources.survey import survey_listing
from mutoscope.data.video.contact_sheet import contact_sheet
from mutoscope.data.video.read import VideoInfo, iter_frames, probe
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from mutoscope.data.base import Item

FIRST_FRAME_ONLY = 10**9  # a stride: all frames are decoded, one is converted to RGB
SMALL = (8, 8)  # frames are scaled to this size where only reading them matters
SHEET_ROWS, SHEET_FRAMES, SHEET_SIDE = 12, 8, 96
SHEET_FPS = 4  # frames of a row are about a quarter of a second apart
SHOWN_VIDEOS, SHOWN_CAPTIONS = 40, 5  # lines for people; the JSON report has all


class Problem(TypedDict):
    """A file and what is wrong with it."""

    path: str
    reason: str


VideoReport = TypedDict(
    "VideoReport",
    {
        "path": str,
        "frames": int,
        "frames_in_header": int | None,
        "height": int,
        "width": int,
        "fps": float,
        "seconds": float,
        "codec": str,
        "pixel_format": str | None,
        "stream": int,
        "class": str | None,
        "caption": str,
        "clips": int,
        "warnings": list[str],
    },
)
"""One readable video."""


class SplitReport(TypedDict):
    """Counts of one split of a dataset."""

    files: int
    readable: int
    broken: int
    damaged: int
    missing: int
    unlisted: int
    short: int
    clips: int
    class_counts: dict[str, int]


class FolderReport(TypedDict, total=False):
    """A folder of videos, or a dataset; `inspect` explains the keys."""

    files: Required[int]
    readable: Required[int]
    broken: Required[list[Problem]]
    clips: Required[int]
    classes: Required[list[str]]
    format: str
    episodes: int
    cameras: list[str]
    camera: str
    actions: ActionReport | None
    captions: list[str]
    videos: list[VideoReport]
    dataset: str
    missing: list[Problem]
    damaged: list[Problem]
    class_counts: dict[str, int]
    notes: list[str]
    splits: dict[str, SplitReport]


def inspect(
    path: str | Path,
    num_frames: int = 16,
    frame_stride: int = 1,
    headers_only: bool = False,
    tasks_as_classes: bool = False,
) -> FolderReport:
    """Decode every video of a folder, a LeRobot dataset or a copy of a dataset to its end and report the contents.

    Keys: "files" and "readable" (counts), "broken" (list of {"path", "reason"}), "clips" (non-overlapping clips of
    num_frames frames, frame_stride apart, that `ClipDataset` would cut), "classes" (names), "format" ("folder",
    "lerobot v3.0", "bair" ...), "episodes" (readable videos or episodes), "cameras" (names) and "camera" (the one that
    is read), "captions" (distinct texts), "actions" (None, or names, kind, ranges and histograms: see `ActionReport`).
    A folder of videos and a LeRobot dataset add "notes", "missing" (list of {"path", "reason"}: listed files that the
    disk lacks, episodes that are not whole) and "videos" (a dict for each readable file: path, frames,
    frames_in_header (those that should be shown; null where nothing says), height and width upright, fps (the measured
    average), seconds, codec, pixel_format, stream, class, caption, clips, warnings). A dataset (see
    `catalog.recognise`) adds "dataset", "missing", "damaged" (list of {"path", "reason"} of files that are read in
    part), "class_counts", "notes", and "splits": for each split its files, readable, broken, missing, short (videos
    that give no clip), unlisted, clips and class_counts.

    headers_only: believe headers and packets instead of decoding, which takes less time and finds fewer faults.
    tasks_as_classes: the classes of a LeRobot dataset are its tasks (`LeRobotData.tasks_as_classes`).
    Raises UserError where the path is missing, the folder holds no videos, or the single video cannot be read.
    """
    if min(num_frames, frame_stride) < 1:
        raise UserError(f"num_frames and frame_stride must be at least 1; got {num_frames} and {frame_stride}")
    span = clip_span(num_frames, frame_stride)
    path = Path(path)
    if is_lerobot(path):
        return inspect_listing(list_lerobot(path, tasks_as_classes=tasks_as_classes), span, headers_only)
    if tasks_as_classes:
        raise UserError(f"{path} is no LeRobot dataset and has no tasks: omit tasks_as_classes.")
    if (kind := recognise(path)) is not None:
        return inspect_dataset(kind, path, span, headers_only)
    return inspect_listing(list_folder(path), span, headers_only)


def inspect_listing(listing: Listing, span: int, headers_only: bool) -> FolderReport:
    """The report about a folder of videos or a LeRobot dataset; see `inspect`."""
    broken: list[Problem] = []
    videos: list[VideoReport] = []
    for file in tqdm(listing.files, "inspect", disable=None, leave=False):
        try:
            if isinstance(listing.reader, ContainerReader):
                videos.append(inspect_video(file, listing.classes, span, headers_only))
            else:
                videos.append(inspect_episode(file, listing, span, headers_only))
        except UserError as error:
            if listing.folder.is_file():
                raise
            broken.append({"path": file.name, "reason": str(error)})
    missing = [Problem(path=gone.path, reason=gone.reason) for gone in listing.missing]
    return {
        "files": len(listing.files) + (len(missing) if listing.lengths_known else 0),
        "readable": len(videos),
        "broken": broken,
        "clips": sum(video["clips"] for video in videos),
        "classes": listing.classes,
        **described_recordings([listing], len(videos)),
        "missing": missing,
        "notes": list(listing.notes),
        "videos": videos,
    }


class RecordingsReport(TypedDict):
    """The keys that every report has beside the counts of files."""

    format: str
    episodes: int
    cameras: list[str]
    camera: str
    actions: ActionReport | None
    captions: list[str]


def described_recordings(listings: Sequence[Listing], episodes: int) -> RecordingsReport:
    """Format, cameras, captions and actions of the splits of a dataset, or of one folder."""
    first, spec = listings[0], listings[0].action_spec()
    captions = dict.fromkeys(file.caption for listing in listings for file in listing.files if file.caption)
    return {
        "format": first.format,
        "episodes": episodes,
        "cameras": list(first.cameras),
        "camera": first.camera,
        "actions": None if spec is None else report_actions(spec, first.action_rows),
        "captions": list(captions),
    }


def inspect_episode(file: MediaFile, listing: Listing, span: int, headers_only: bool) -> VideoReport:
    """Details of one episode of a dataset with tables of its own; its frames are read one episode at a time."""
    first, _ = listing.reader.read(file, 0, 1, 1, None)
    promised = listing.reader.num_frames(file)
    if not headers_only:
        frames, _ = listing.reader.read(file, 0, promised, 1, SMALL)
        if len(frames) < promised:
            raise UserError(f"{file.name} gives {len(frames)} of its {promised} frames")
    info = probe(file.path) if file.path.suffix.lower() in VIDEO_SUFFIXES else None
    fps = listing.fps or (info.fps if info else 1.0)
    return {
        "path": file.name,
        "frames": promised,
        "frames_in_header": promised,
        "height": first.shape[1],
        "width": first.shape[2],
        "fps": fps,
        "seconds": round(promised / fps, 6),
        "codec": info.codec if info else "images",
        "pixel_format": info.pixel_format if info else None,
        "stream": info.stream if info else 0,
        "class": listing.classes[file.label] if file.label >= 0 else None,
        "caption": file.caption,
        "clips": len(clip_starts(promised, span, span)),
        "warnings": [],
    }


def inspect_video(file: MediaFile, classes: list[str], span: int, headers_only: bool = False) -> VideoReport:
    """Details of one video; span: frames of the video that one clip covers."""
    info: VideoInfo = probe(file.path)
    with iter_frames(file.path, stride=FIRST_FRAME_ONLY, max_frames=1 if headers_only else None) as reader:
        height, width, _ = next(reader).shape
        list(reader)  # to the end: headers may promise frames that are not there
        count, fps = reader.frames_decoded, reader.fps * FIRST_FRAME_ONLY
    if headers_only:
        count, fps = info.num_frames or count_frames(file.path), info.fps
    return {
        "path": str(file.path),
        "frames": count,
        "frames_in_header": info.num_frames or None,
        "height": height,
        "width": width,
        "fps": fps,
        "seconds": round(count / fps, 6),
        "codec": info.codec,
        "pixel_format": info.pixel_format,
        "stream": info.stream,
        "class": classes[file.label] if file.label >= 0 else None,
        "caption": file.caption,
        "clips": len(clip_starts(count, span, span)),
        "warnings": list(reader.warnings),
    }


# -------------------------------------------------------------------------------------------------------- datasets


def inspect_dataset(kind: str, folder: Path, span: int, headers_only: bool) -> FolderReport:
    """Every split of a dataset that the copy holds or lists; see `inspect`."""
    names = present_splits(kind, folder)
    if not names:
        raise UserError(f"{folder} looks like {kind}, but holds none of its splits; docs/datasets.md shows the layout")
    span = 1 if kind == "imagenet" else span
    listings = [list_dataset(kind, folder, name, with_actions=kind == "bair") for name in names]
    problems: dict[str, list[Problem]] = {"broken": [], "missing": [], "damaged": []}
    splits = {listing.split: inspect_split(listing, span, headers_only, problems) for listing in listings}
    classes = next((listing.classes for listing in listings if listing.classes), [])
    counts = sum((Counter(listing.class_counts()) for listing in listings), Counter())
    return {
        "files": sum(split["files"] for split in splits.values()),
        "readable": sum(split["readable"] for split in splits.values()),
        "clips": sum(split["clips"] for split in splits.values()),
        "classes": classes,
        "class_counts": {name: counts[name] for name in classes},
        "dataset": kind,
        **described_recordings(listings, sum(split["readable"] for split in splits.values())),
        "broken": problems["broken"],
        "missing": problems["missing"],
        "damaged": problems["damaged"],
        "splits": splits,
        "notes": list(listings[-1].notes),
    }


def inspect_split(listing: Listing, span: int, headers_only: bool, problems: dict[str, list[Problem]]) -> SplitReport:
    """Counts of one split; broken, damaged and missing files are added to the lists of `problems`."""
    frames: list[int] = []
    broken = damaged = 0
    for file in tqdm(listing.files, listing.split, disable=None, leave=False):
        try:
            count, faults = readable_frames(listing, file, headers_only)
        except UserError as error:
            problems["broken"].append({"path": file.name, "reason": str(error)})
            broken += 1
            continue
        frames.append(count)
        problems["damaged"] += [Problem(path=file.name, reason=fault) for fault in faults]
        damaged += bool(faults)
    problems["missing"] += [Problem(path=gone.path, reason=gone.reason) for gone in listing.missing]
    clips = [len(clip_starts(count, span, span)) for count in frames]
    return {
        "files": len(listing.files),
        "readable": len(frames),
        "broken": broken,
        "damaged": damaged,
        "missing": len(listing.missing),
        "unlisted": listing.unlisted,
        "short": clips.count(0),
        "clips": sum(clips),
        "class_counts": listing.class_counts(),
    }


def readable_frames(listing: Listing, file: MediaFile, headers_only: bool) -> tuple[int, list[str]]:
    """Frames of an entry, and the decoder's messages about damage. Raises UserError for an unreadable entry."""
    promised = listing.reader.num_frames(file)
    if headers_only:
        return promised, []
    if isinstance(listing.reader, ContainerReader):
        with iter_frames(file.path, stride=FIRST_FRAME_ONLY) as reader:
            list(reader)
            return reader.frames_decoded, [text for text in reader.warnings if "damaged" in text or "cut off" in text]
    frames, _ = listing.reader.read(file, 0, promised, 1, SMALL)
    return len(frames), []


def sheet(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """A contact sheet of some videos from all over a folder or dataset: a row each of the frames a loader gives.

    Raises UserError where no video can be read.
    """
    from mutoscope.data.sources.clips import ClipDataset  # imports torch, which the report alone does not need

    path = Path(path)
    kind = None if is_lerobot(path) else recognise(path)
    if kind is not None:
        split = present_splits(kind, path)[0]
        listing = list_dataset(kind, path, split, with_actions=kind == "bair")
    else:
        listing = list_lerobot(path) if is_lerobot(path) else list_folder(path)
    survey = survey_listing(listing, fps=1.0)
    length = 1 if survey.frames is None else survey.frames[1]
    stride = max(1, min(round(survey.fps / SHEET_FPS), (length - 1) // (SHEET_FRAMES - 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report beside the contact sheet lists the same files
        size = sheet_size(survey.height, survey.width)
        dataset = ClipDataset(listing, SHEET_FRAMES, *size, stride, windows=1, short="loop")
        rows = [dataset[item] for item in spread(len(dataset), SHEET_ROWS)]
    labels = [_label(row, dataset.classes) for row in rows]
    return contact_sheet(_marked(rows, dataset.actions), labels=labels)


def sheet_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of a frame on a contact sheet: as tall as SHEET_SIDE, and wide enough for the names of actions."""
    scale = max(SHEET_SIDE / height, MIN_WIDTH / width)
    return min(4 * SHEET_SIDE, round(height * scale)), min(4 * SHEET_SIDE, round(width * scale))


def _marked(rows: "list[Item]", actions: ActionSpec | None) -> list[UInt8[np.ndarray, "_t _h _w 3"]]:
    """The frames of each row, with their actions below."""
    videos = [row["video"].numpy() for row in rows]
    if actions is None:
        return videos
    values = [row["actions"].numpy() for row in rows]
    seen = np.abs(np.nan_to_num(np.concatenate(values)))
    largest = seen.max(axis=0).tolist()
    return [marked_frames(video, value, actions, largest) for video, value in zip(videos, values, strict=True)]


def _label(row: "Item", classes: list[str]) -> str:
    name = classes[row["label"]] if row["label"] >= 0 else ""
    return "  ".join(part for part in (Path(row["path"]).name, name, row["caption"]) if part)


# ------------------------------------------------------------------------------------------------------- for people


def format_inspection(report: FolderReport) -> str:
    """The report of `inspect` as lines of text for people."""
    recorded = report.get("format", "folder")
    kind = "" if recorded == "folder" else f"{recorded}: "
    unit = "episodes" if recorded.startswith("lerobot") else "files"
    lines = [
        f"{kind}{report['readable']} of {report['files']} {unit} readable, {report['clips']} clips, "
        f"{len(report['classes'])} classes"
    ]
    lines += _recorded_lines(report)
    lines += [_split_line(name, split) for name, split in report.get("splits", {}).items()]
    lines += [f"  note: {note}" for note in report.get("notes", [])]
    videos = report.get("videos", [])
    for video in videos[:SHOWN_VIDEOS]:
        lines.append(_video_line(video))
        lines += [f"    warning: {warning}" for warning in video["warnings"]]
    lines += [f"  ... and {len(videos) - SHOWN_VIDEOS} more"] if len(videos) > SHOWN_VIDEOS else []
    lists = {"broken": report["broken"], "damaged": report.get("damaged", []), "missing": report.get("missing", [])}
    for name, entries in lists.items():
        lines += [f"  {name}: {entry['path']}: {entry['reason']}" for entry in entries]
    return "\n".join(lines)


def _recorded_lines(report: FolderReport) -> list[str]:
    """Rates, cameras, captions and actions, each where there is one."""
    lines = []
    if rates := sorted({video["fps"] for video in report.get("videos", [])}):
        frames = sum(video["frames"] for video in report["videos"])
        shown = f"{rates[0]:.5g}" if len(rates) == 1 else f"{rates[0]:.5g} to {rates[-1]:.5g}"
        lines.append(f"  {report['readable']} episodes, {frames} frames, {shown} fps")
    if cameras := report.get("cameras"):
        lines.append(f"  cameras: {', '.join(cameras)} (read: {report.get('camera')})")
    if captions := report.get("captions"):
        more = f" ... and {len(captions) - SHOWN_CAPTIONS} more" if len(captions) > SHOWN_CAPTIONS else ""
        lines.append(f"  captions: {'; '.join(captions[:SHOWN_CAPTIONS])}{more}")
    actions = report.get("actions")
    return lines if actions is None else lines + format_actions(actions)


def _split_line(name: str, split: SplitReport) -> str:
    faults = {key: split[key] for key in ("missing", "broken", "damaged", "short", "unlisted")}
    parts = [f"{split['readable']} readable", f"{split['clips']} clips"]
    parts += [f"{count} {key}" for key, count in faults.items() if count]
    filled = [count for count in split["class_counts"].values() if count]
    if filled:
        parts.append(f"{len(filled)} classes of {min(filled)} to {max(filled)}")
    return f"  {name}: {', '.join(parts)}"


def _video_line(video: VideoReport) -> str:
    size, rate = f"{video['height']}x{video['width']}", f"{video['fps']:.5g} fps"
    kind = " ".join(part for part in (video["codec"], video["pixel_format"]) if part)
    name = f"{video['class']}: " if video["class"] else ""
    return f"  {name}{video['path']}: {video['frames']} frames {size}, {rate}, {kind}, {video['clips']} clips"
