"""mutoscope inspect: what a loader will see, and what is broken."""

from pathlib import Path

import mutoscope.commands.common as common


def inspect(path: str, /, *, num_frames: int = 16, frame_stride: int = 1) -> common.Report:
    """Decode every video of a folder, or one video, to its end and report what is there.

    Files that cannot be read are listed with the reason. The status is 0 as long as something can be read.

    Args:
        path: video or folder of videos; sub-folders are classes
        num_frames: frames per clip, for counting clips
        frame_stride: source frames per clip frame
    """
    common.check_range("--num-frames", num_frames, low=1)
    common.check_range("--frame-stride", frame_stride, low=1)
    from mutoscope.data.inspect import inspect as look

    report = look(Path(path).expanduser(), num_frames, frame_stride)
    report["warnings"] = [warning for video in report["videos"] for warning in video["warnings"]]
    if not report["readable"]:
        first = report["broken"][0]
        report["failure"] = f"None of the {report['files']} files can be read; the first: {first['reason']}"
    return report


def summary(report: common.Report) -> str:
    from mutoscope.data.inspect import format_inspection

    # Warnings go to standard error, once.
    return format_inspection({**report, "videos": [{**video, "warnings": []} for video in report["videos"]]})
