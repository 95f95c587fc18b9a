# ruff: noqa: E501 - tables with one case in a line
"""Full disks and file systems that become read-only, at chosen moments of every verb that writes.

    PYTHONPATH=tests python benchmarks/disk_full.py

Needs root and Linux: every case writes to a small tmpfs of its own, which is filled (or remounted read-only) when the
process first opens a file whose path holds a certain text (a model's config.json, before FFmpeg opens the output). Writes benchmarks/results/disk_full.json.
"""

import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostile.harness import prepared
from kill_points import write_inputs

RESULTS = Path(__file__).parent / "results" / "disk_full.json"
MEGABYTES = 24
BALLAST = ".ballast"


@dataclass(frozen=True)
class Moment:
    """A command line that writes below `disk`, and when the disk becomes full: at the first file with `text` in its
    name.
    """

    name: str
    line: str
    text: str
    read_only: bool = False
    by_name_only: bool = False  # takes minutes


TRAIN = (
    "train vq-shapes --out disk/run --device cpu --loop.num-steps 4 --loop.batch-size 2 --loop.checkpoint-every 2 "
    "--optim.warmup-steps 1 --loop.sample-every 2 --loop.log-every 1 --loop.num-workers 0"
)
TUNE = (
    "finetune inputs/nova inputs/clips disk/run --device cpu --optim.warmup-steps 0 --loop.num-steps 4 "
    "--loop.batch-size 2 --loop.checkpoint-every 2 --loop.num-workers 0"
)
SAMPLES = "export inputs/nova geneval inputs/prompts.jsonl disk/samples --num-samples 2 --num-decoding-steps 2 --num-diffusion-steps 2"
CONVERT = (
    "convert magvit-flax inputs/bert.safetensors disk/model --num-frames 8 --height 8 --width 8 --num-classes 3 "
    "--tokenizer inputs/tokenizer --tasks class-conditional"
)
MOMENTS = (
    Moment("generated video", "generate model --out disk/out.mp4", "config.json"),
    Moment("generated image", "generate model --out disk/out.png", "config.json"),
    Moment("reconstruction", "reconstruct tokenizer clip.mp4 disk/out.webm", "config.json"),
    Moment("token cache that does not fit", "tokenize tokenizer shapes disk/cache --num-clips 500000", "none"),
    Moment("token cache, its progress", "tokenize tokenizer shapes disk/cache --num-clips 40", "progress"),
    Moment("recipe of a training", TRAIN, "recipe.json"),
    Moment("log of a training", TRAIN, "log.jsonl"),
    Moment("checkpoint, the second", TRAIN, "step-00000004"),
    Moment("contact sheet of a training", TRAIN, "reconstruction-"),
    Moment("curve of a training", TRAIN, "curve.png"),
    Moment("model of a training", TRAIN, "model_index.json"),
    Moment("recording, an episode", "record mutoscope-test/Dot-v0 disk/rec --episodes 2 --max-frames 6 --policy random", "000001.mp4"),
    Moment("recording, the dataset", "record mutoscope-test/Dot-v0 disk/rec --episodes 2 --max-frames 6 --policy random", "info.json"),
    Moment("finetuning, its tokens", TUNE, "progress"),
    Moment("finetuning, a checkpoint", TUNE, "step-00000004"),
    Moment("finetuning, its model", TUNE, ".model.safetensors."),
    Moment("conversion, the weights", CONVERT, ".config.json."),
    Moment("conversion, the index", CONVERT, ".model_index.json."),
    Moment("exported samples, the record", SAMPLES, ".export.json."),
    Moment("exported samples, an image", SAMPLES, ".0001.png."),
    Moment("exported page", "export inputs/world disk/page --web --runtime inputs/page", "world.json", by_name_only=True),
    Moment("report of an evaluation", "evaluate clips --reference clips --protocol folders --out disk/report.json", "report.json"),
    Moment("generated video, read-only", "generate model --out disk/out.mp4", "config.json", read_only=True),
    Moment("token cache, read-only", "tokenize tokenizer shapes disk/cache --num-clips 40", "config.json", read_only=True),
    Moment("recording, read-only", "record mutoscope-test/Dot-v0 disk/rec --episodes 2 --max-frames 6 --policy random", "000001.mp4", read_only=True),
)  # fmt: skip


UPLOAD = Moment("picture for `mutoscope play`", "", "")
INSUFFICIENT = 507  # of HTTP: the server has no space for the request
Run = Callable[[Moment, Path, Path], None]


def main(names: Sequence[str]) -> int:
    """names: parts of the names of moments; without one all are measured and written to the report."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="disk-full-") as name:
        folder = Path(name)
        prepared(folder)
        write_inputs(folder / "inputs")
        for moment in MOMENTS:
            if any(part in moment.name for part in names) or not (names or moment.by_name_only):
                rows.append(measured(moment, folder))
                print(json.dumps(rows[-1]), flush=True)
        if not names or any(part in UPLOAD.name for part in names):
            rows.append(measured(UPLOAD, folder, uploaded))
            print(json.dumps(rows[-1]), flush=True)
    if names:
        return 0
    RESULTS.write_text(json.dumps({"moments": rows, "kept": sum(bool(row["kept"]) for row in rows)}, indent=1) + "\n")
    return 0


def measured(moment: Moment, folder: Path, run: Run | None = None) -> dict[str, object]:
    """Status and message of one moment, and what was left on the disk."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(disk)], check=True)
    try:
        earlier = disk / "earlier.txt"
        earlier.write_text("whole")
        child = os.fork()
        if child == 0:
            (run or command_line)(moment, folder, disk)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        message = (folder / "answer").read_text()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        (disk / BALLAST).unlink(missing_ok=True)
        left = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
        temporary = [name for name in left if name.endswith(".tmp") or ".tmp" in Path(name).name]
        sentence = message.splitlines()[-1] if message.strip() else ""
        says = "read-only" in sentence if moment.read_only else "needed" in sentence and "free" in sentence
        kept = status == 2 and says and not temporary and earlier.read_text() == "whole" and "Traceback" not in message
        return {
            "moment": moment.name, "status": INSUFFICIENT if status == 2 and run else status, "message": sentence.replace(f"{folder}/", ""),
            "temporary_files": temporary, "files_left": len(left), "kept": kept,
        }  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def uploaded(moment: Moment, folder: Path, disk: Path) -> None:
    """In the child: a page whose temporary files are on the disk receives a picture, and again when there is space.

    Its status is 2 if the first answer is HTTP's 507 and the second one a success. Never returns.
    """
    import tempfile

    import httpx
    from PIL import Image

    from playground_server import running

    status = 70
    try:
        os.environ["TMPDIR"] = tempfile.tempdir = str(disk)
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), (9, 90, 200)).save(picture, "PNG")
        with running({"world": folder / "world"}) as served:
            refuse(moment, disk)
            answers = []
            for _ in range(2):
                url = f"{served.http}/api/uploads"
                answers.append(httpx.post(url, content=picture.getvalue(), timeout=120))
                (disk / BALLAST).unlink(missing_ok=True)
            (folder / "answer").write_text(answers[0].json()["detail"])
            status = 2 if [answer.status_code for answer in answers] == [INSUFFICIENT, 200] else 71
    except BaseException as error:
        (folder / "answer").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def command_line(moment: Moment, folder: Path, disk: Path) -> None:
    """In the child: the command line, under a hook that fills the disk. Never returns."""
    status = 70
    try:
        os.chdir(folder)
        answer = os.open("answer", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(answer, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        done: list[bool] = []

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event not in ("open", "os.mkdir") or done:
                return
            path = str(arguments[0])
            if moment.text in path:
                done.append(True)
                refuse(moment, disk)

        sys.addaudithook(hook)
        from mutoscope.cli import main as command

        status = command(shlex.split(moment.line))
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


def refuse(moment: Moment, disk: Path) -> None:
    """Fills the disk, or makes it read-only."""
    if moment.read_only:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=False)
        return
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_bsize
    descriptor = os.open(disk / BALLAST, os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, size)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
