"""What a loader will see in a video or a folder of videos, and what is broken."""

from pathlib import Path
from typing import Any

from mutoscope.data.folder import MediaFile, clip_span, clip_starts, find_videos
from mutoscope.data.video_io import VideoInfo, iter_frames, probe
from mutoscope.errors import UserError

FIRST_FRAME_ONLY = 10**9  # a stride: all frames are decoded, one is converted to RGB


def inspect(path: str | Path, num_frames: int = 16, frame_stride: int = 1) -> dict[str, Any]:
    """Decode every video of a folder (or one video) to its end and report what is there.

    Keys: "files" and "readable" (counts), "broken" (list of {"path", "reason"}), "clips" (non-overlapping clips of
    num_frames frames, frame_stride apart, that `ClipDataset` would cut), "classes" (names of the sub-folders), "videos"
    (a dict for each readable file: path, frames, frames_in_header, height and width upright, fps, seconds, codec,
    pixel_format, stream, class, caption, clips, warnings).
    Raises UserError where the path is missing, the folder holds no videos, or the single video cannot be read.
    """
    if min(num_frames, frame_stride) < 1:
        raise UserError(f"num_frames and frame_stride must be at least 1; got {num_frames} and {frame_stride}")
    files, classes = find_videos(path)
    span = clip_span(num_frames, frame_stride)
    broken, videos = [], []
    for file in files:
        try:
            videos.append(inspect_video(file, classes, span))
        except UserError as error:
            if Path(path).is_file():
                raise
            broken.append({"path": str(file.path), "reason": str(error)})
    return {
        "files": len(files),
        "readable": len(videos),
        "broken": broken,
        "clips": sum(video["clips"] for video in videos),
        "classes": classes,
        "videos": videos,
    }


def inspect_video(file: MediaFile, classes: list[str], span: int) -> dict[str, Any]:
    """Details of one video; span: frames of the video that one clip covers."""
    info: VideoInfo = probe(file.path)
    with iter_frames(file.path, stride=FIRST_FRAME_ONLY) as reader:
        height, width, _ = next(reader).shape
        list(reader)  # to the end: headers may promise frames that are not there
        count = reader.frames_decoded
    return {
        "path": str(file.path),
        "frames": count,
        "frames_in_header": info.num_frames or None,
        "height": height,
        "width": width,
        "fps": info.fps,
        "seconds": round(count / info.fps, 6),
        "codec": info.codec,
        "pixel_format": info.pixel_format,
        "stream": info.stream,
        "class": classes[file.label] if file.label >= 0 else None,
        "caption": file.caption,
        "clips": len(clip_starts(count, span, span)),
        "warnings": list(reader.warnings),
    }


def format_inspection(report: dict[str, Any]) -> str:
    """The report of `inspect` as lines of text for people."""
    lines = [
        f"{report['readable']} of {report['files']} files readable, {report['clips']} clips, "
        f"{len(report['classes'])} classes"
    ]
    for video in report["videos"]:
        size, rate = f"{video['height']}x{video['width']}", f"{video['fps']:.5g} fps"
        kind = f"{video['codec']} {video['pixel_format']}"
        name = f"{video['class']}: " if video["class"] else ""
        lines.append(
            f"  {name}{video['path']}: {video['frames']} frames {size}, {rate}, {kind}, {video['clips']} clips"
        )
        lines += [f"    warning: {warning}" for warning in video["warnings"]]
    lines += [f"  broken: {entry['path']}: {entry['reason']}" for entry in report["broken"]]
    return "\n".join(lines)
