"""mutoscope inspect: recordings, their actions and captions, clips for training, and broken files."""

from pathlib import Path
from typing import cast

import mutoscope.commands.common as common


def inspect(
    path: str,
    /,
    *,
    num_frames: int = 16,
    frame_stride: int = 1,
    headers_only: bool = False,
    tasks_as_classes: bool = False,
    sheet: str | None = None,
) -> common.Report:
    """Decode recordings to their end and report their contents: a folder of videos, a LeRobot dataset, one video.

    Episodes, cameras, rates, classes, captions, and actions with names, ranges and histograms are reported.
    The layouts of UCF-101, BAIR, Kinetics-600, Something-Something v2, nuScenes, Objectron and ImageNet are recognised:
    their splits, classes and missing files are reported too.
    Files that cannot be read are listed with the reason. The status is 0 as long as something can be read.

    Args:
        path: video or folder of videos, whose sub-folders are classes; or the folder of a dataset (LeRobot and others)
        num_frames: frames per clip, for counting clips
        frame_stride: source frames per clip frame
        headers_only: believe headers instead of decoding everything; faster, and finds fewer faults
        tasks_as_classes: the tasks of a LeRobot dataset are its classes, as --data.tasks-as-classes trains them
        sheet: also write a contact sheet (.png) of some videos from all over the folder, a row each, with the actions
            of each frame below it
    """
    common.check_range("--num-frames", num_frames, low=1)
    common.check_range("--frame-stride", frame_stride, low=1)
    target = None if sheet is None else common.check_output_file(sheet, (".png",))
    from mutoscope.data.inspect import inspect as look
    from mutoscope.data.inspect import sheet as draw

    folder = Path(path).expanduser()
    report: common.Report = {**look(folder, num_frames, frame_stride, headers_only, tasks_as_classes)}
    report["warnings"] = [warning for video in report.get("videos", []) for warning in video["warnings"]]
    if not report["readable"]:
        report["failure"] = f"None of the {report['files']} files can be read; the first: {_first_reason(report)}"
    elif target is not None:
        from mutoscope.data.video.read import write_video

        write_video(target, draw(folder)[None], 1)
        report["sheet"] = str(sheet)
    return report


def _first_reason(report: common.Report) -> str:
    return next(entry["reason"] for entry in [*report["broken"], *report.get("missing", [])])


def summary(report: common.Report) -> str:
    from mutoscope.data.inspect import FolderReport, format_inspection

    # Warnings go to standard error, once.
    videos = [{**video, "warnings": []} for video in report.get("videos", [])]
    lines = format_inspection(cast(FolderReport, {**report, "videos": videos}))
    return f"{lines}\n{report['sheet']}" if "sheet" in report else lines
