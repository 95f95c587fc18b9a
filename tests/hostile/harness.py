"""Opens hostile files in processes whose address space is limited, and says what each cost.

Every command line runs in a process of its own, which is forked from one that has imported everything: memory and
seconds are those of the file alone.
"""

import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hostile.case import MARKER, Case

MEMORY = 2**30  # bytes of address space above those of the process before
SECONDS = 5.0  # of processor time
PATIENCE = 60  # seconds after which a process is ended
LONGEST = 3200  # characters of an answer
SWITCHES = "weights_only allow_pickle trust_remote_code add_safe_globals set_int_max_str_digits MAX_IMAGE_PIXELS"
ADVICE = re.compile("|".join(SWITCHES.split()))
WARM = ("inspect clips", "generate model --out warm.png", "reconstruct tokenizer clip.mp4 warm.mp4", "train none")
TALKS = ("train", "finetune")  # they say what they adapt to before they refuse anything
RED = np.full((6, 8, 8, 3), (200, 0, 0), np.uint8)


@dataclass(frozen=True)
class Outcome:
    """What one command line did with one hostile file."""

    case: Case
    line: str
    status: int
    message: str
    """on standard error"""
    printed: str
    """on standard output"""
    executed: bool
    memory: int
    """bytes above those before, at their highest"""
    seconds: float
    """of processor time"""

    @property
    def faults(self) -> list[str]:
        """What was promised and not kept."""
        lines = self.message.splitlines()
        reported = self.status == 0 and self.case.reports and self.line.startswith("inspect")
        found = {
            "executed something": self.executed,
            f"status {self.status}": self.status != 2 and not reported,
            f"{self.memory >> 20} MB": self.memory > MEMORY,
            f"{self.seconds:.1f} s": self.seconds > SECONDS,
            "no sentence": not reported and (not lines or not lines[-1].startswith("mutoscope: ")),
            "other lines": self.line.split()[0] not in TALKS and any(not s.startswith("mutoscope: ") for s in lines),
            "ran out of memory": "Not enough memory" in self.message or "MemoryError" in self.message,
            "a traceback": "Traceback" in self.message,
            "escapes": any(not c.isprintable() and c != "\n" for c in self.message + self.printed),
            "a long answer": max(map(len, lines), default=0) > LONGEST,
            "advice to switch safety off": ADVICE.search(self.message) is not None,
        }
        return [name for name, wrong in found.items() if wrong]


def prepared(folder: Path) -> None:
    """Saves the models that the cases refer to, and imports whatever the verbs import."""
    import torch

    from mutoscope.cli import main
    from mutoscope.data.video.read import write_video
    from tiny_magi import save_tiny_magi
    from tiny_models import save_tiny_model, save_tiny_par, save_tiny_tokenizer
    from tiny_nova import save_tiny_nova
    from worlds.toy import register

    torch.set_num_threads(1)
    register()
    save_tiny_model(folder / "model")
    save_tiny_tokenizer(folder / "tokenizer")
    save_tiny_magi(folder / "world")
    save_tiny_par(folder / "par")
    save_tiny_nova(folder / "nova")
    write_video(folder / "clip.mp4", RED, 8)
    (folder / "clips").mkdir()
    for name in "ab":
        shutil.copy(folder / "clip.mp4", folder / "clips" / f"{name}.mp4")
    here = Path.cwd()
    os.chdir(folder)
    try:
        with silent():
            for line in WARM:
                main(shlex.split(line))
    finally:
        os.chdir(here)
    preload()


def preload() -> None:
    """Imports libraries that a verb imports late."""
    import importlib

    for name in (
        "transformers", "diffusers", "pyarrow.parquet", "mutoscope.runs.train", "mutoscope.runs.finetune",
        "mutoscope.runs.tokenize", "mutoscope.evaluation.engine", "mutoscope.worlds.record", "mutoscope.text.t5",
        "mutoscope.playground.reading", "mutoscope.commands.converters.registry", "mutoscope.tokenizers.pretrained",
        "transformers.models.t5.modeling_t5", "torch.distributed", "mutoscope.tokenizers.autoencoder_kl",
    ):  # fmt: skip
        try:
            importlib.import_module(name)
        except ImportError:
            continue


@contextmanager
def silent() -> Iterator[None]:
    saved = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, target)
            os.close(copy)
        os.close(nothing)


def outcomes(case: Case, models: Path) -> Iterator[Outcome]:
    """Opens one hostile file with each of its command lines, in a new folder each."""
    for line in case.lines:
        with tempfile.TemporaryDirectory(prefix="hostile-") as name:
            folder = Path(name)
            for model in models.iterdir():
                (folder / model.name).symlink_to(model)
            case.write(folder)
            yield outcome(case, line, folder)


def outcome(case: Case, line: str, folder: Path) -> Outcome:
    answer, pages = folder / ".answer", folder / ".memory"
    child = os.fork()
    if child == 0:
        run(line, folder, answer, pages)
    deadline, ended = time.monotonic() + PATIENCE, (0, 0, None)
    while not ended[0] and time.monotonic() < deadline:
        ended = os.wait4(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.wait4(child, 0)
    usage = ended[2]
    assert usage is not None
    memory = int(pages.read_text()) if pages.exists() and pages.read_text() else 0
    return Outcome(
        case, line, os.waitstatus_to_exitcode(ended[1]),
        text_of(answer), text_of(folder / ".printed"),
        any((place / MARKER).exists() for place in (folder, Path.cwd())),
        memory, usage.ru_utime + usage.ru_stime,
    )  # fmt: skip


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def run(line: str, folder: Path, answer: Path, pages: Path) -> None:
    """In the child: the command line, with its standard error in a file. Never returns."""
    status = 70
    try:
        os.chdir(folder)
        out = os.open(answer, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 2)
        os.dup2(os.open(folder / ".printed", os.O_WRONLY | os.O_CREAT), 1)
        Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
        before = kilobytes("VmRSS")
        limit = 1024 * kilobytes("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        status = command(line)
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        pages.write_text(str(1024 * max(kilobytes("VmHWM") - before, 0)))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}"[:500].encode())
    finally:
        os._exit(status)


def command(line: str) -> int:
    """The status of a command line; "upload FILE" is what the playground does with a file from outside."""
    from mutoscope.cli import main
    from mutoscope.data import loader
    from mutoscope.errors import UserError

    def accepted(*arguments: object, **options: object) -> None:
        raise RuntimeError("the input was accepted")

    loader.DataLoader = accepted  # type: ignore[assignment]
    verb, *arguments = shlex.split(line)
    if verb != "upload":
        return main([verb, *arguments])
    from mutoscope.playground.limits import Limits
    from mutoscope.playground.reading import read_upload

    warnings.simplefilter("ignore")
    try:
        read_upload(Path(arguments[0]), 64, 512, Limits().upload_pixels, Limits().upload_seconds)
    except UserError as error:
        print(f"mutoscope: {error}", file=sys.stderr)
        return 2
    return 0


def kilobytes(name: str) -> int:
    """A line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0
