"""What becomes of a run whose output vanishes, that gets a signal, or that is not alone in its folder.

    python benchmarks/run_faults.py --out benchmarks/results/run_faults.json

Every row is a process of its own: `mutoscope train` of a small network on the dataset "shapes" (or `mutoscope
tokenize`), to which one thing happens after its first update. The row states whether the run finished, its exit status,
the last line of its messages where somebody could read them, and the lines of `run.log` that say what happened.
"""

import argparse
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 1_800.0
STEPS = 20  # of a run that finishes
TIMES = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
CLIPS = ("--data.num-frames", "8", "--data.height", "16", "--data.width", "16", "--loop.num-workers", "0")
LOOP = (
    "--loop.batch-size",
    "1",
    "--loop.log-every",
    "1",
    "--loop.checkpoint-every",
    "1000",
    "--optim.warmup-steps",
    "0",
)
TOKENIZER = ("train", "vae-shapes", *CLIPS, *LOOP, "--tokenizer.filters", "4", "--loop.validation-share", "0")
MODEL = (
    "train", "magvit-shapes", "--loop.num-workers", "0", *LOOP, "--model.num-layers", "1", "--model.hidden-size", "32",
    "--model.num-heads", "2", "--model.mlp-size", "32", "--cache-clips", "8", "--loop.validation-share", "0",
)  # fmt: skip
CACHE = ("tokenize", "vq-shapes", "shapes")


@dataclass(frozen=True)
class Row:
    """One thing that happened, and what became of the run."""

    case: str
    outcome: str
    status: int
    message: str
    run_log: list[str]
    as_promised: bool


class Run:
    """`mutoscope` as a process that writes into `out`."""

    def __init__(self, arguments: Sequence[str], out: Path, steps: int | None, **options: object):
        self.out = out
        named = ("--loop.num-steps", str(steps), "--out", str(out)) if steps is not None else (str(out),)
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mutoscope", *arguments, *named]
        self.process = subprocess.Popen(command, env=environment, **options)  # type: ignore[call-overload]

    def started(self) -> "Run":
        """Waits for the first update."""
        deadline = time.monotonic() + SECONDS
        while not (log := self.out / "log.jsonl").exists() or not log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return self

    def row(self, case: str, expected: int) -> Row:
        """The end of the process."""
        _, err = self.process.communicate(timeout=SECONDS)
        journal = self.out / "run.log"
        lines = [TIMES.sub("", line) for line in journal.read_text().splitlines()] if journal.exists() else []
        lines = [line for line in lines if "so far, of which" not in line and "updates/s" not in line]
        messages = (err or b"").decode(errors="replace").replace("\r", "\n").split("\n")
        messages = [line for line in messages if line.startswith("mutoscope: ")]
        finished = (self.out / "model_index.json").exists()
        checkpoints = sorted(path.name for path in self.out.glob("checkpoints/step-*.pt"))
        outcome = (
            "finished" if finished else f"stopped, newest checkpoint {checkpoints[-1]}" if checkpoints else "refused"
        )
        status = self.process.returncode
        message = (messages or ["(nothing that could be read)" if err is None else ""])[-1]
        return Row(case, outcome, status, message.replace(str(self.out.parent), "…"), lines, status == expected)


def closed(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


def rows(root: Path) -> Iterator[Row]:
    number = iter(range(100))

    def run(arguments: Sequence[str] = TOKENIZER, steps: int = STEPS, **options: object) -> Run:
        return Run(arguments, root / f"run-{next(number)}", steps, **options)

    yield run(stderr=None, preexec_fn=closed(2)).row("standard error closed", 0)
    missing = run(stdin=None, stdout=None, stderr=None, preexec_fn=closed(0, 1, 2))
    yield missing.row("descriptors 0, 1 and 2 missing", 0)
    yield reader_gone(run)
    yield reader_silent(run)
    yield terminal_closed(run, ignored=False)
    yield terminal_closed(run, ignored=True)
    for name in ("SIGHUP", "SIGUSR1", "SIGTERM", "SIGINT", "SIGUSR2"):
        signalled = run(steps=100_000 if name != "SIGUSR2" else STEPS).started()
        signalled.process.send_signal(getattr(signal, name))
        yield signalled.row(name, 0 if name == "SIGUSR2" else 130)
    yield from twice(root)


def reader_gone(run: Callable[..., Run]) -> Row:
    started = run().started()
    assert started.process.stderr is not None
    started.process.stderr.close()
    started.process.stderr = None
    return started.row("reader of the pipe gone", 0)


def reader_silent(run: Callable[..., Run]) -> Row:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(4096))
    started = run(stderr=writer)
    os.close(writer)
    row = started.row("reader of a full pipe never reads", 0)
    os.close(reader)
    return row


def terminal_closed(run: Callable[..., Run], ignored: bool) -> Row:
    """A terminal that goes away; `ignored`: the run was started with nohup."""
    master, slave = pty.openpty()

    def controlling() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    started = run(steps=STEPS if ignored else 100_000, stdin=slave, stdout=slave, stderr=slave, preexec_fn=controlling)
    os.close(slave)
    started.started()
    os.close(master)
    return started.row("terminal closed" + (", started with nohup" if ignored else ""), 0 if ignored else 130)


def twice(root: Path) -> Iterator[Row]:
    """A second run into the folder of a first one."""
    pairs = (
        ("the same model recipe", MODEL, MODEL),
        ("another recipe", MODEL, TOKENIZER),
        ("the same tokenizer recipe", TOKENIZER, TOKENIZER),
    )
    for case, one, other in pairs:
        out = root / re.sub(r"\W+", "-", case)
        first = Run(one, out, 100_000).started()
        yield refused(Run(other, out, STEPS), case)
        first.process.send_signal(signal.SIGTERM)
        yield first.row(f"two at once, {case}: the first", 130)
    out = root / "tokens"
    first = Run(CACHE, out, None)
    while not (root / "tokens.partial").exists() and first.process.poll() is None:
        time.sleep(0.05)
    yield refused(Run(CACHE, out, None), "the same token cache")
    _, err = first.process.communicate(timeout=SECONDS)
    status = first.process.returncode
    outcome = "finished" if (out / "metadata.json").exists() else "no cache"
    last = err.decode().strip().split("\n")[-1]
    yield Row("two at once, the same token cache: the first", outcome, status, last, [], status == 0)


def refused(second: Run, case: str) -> Row:
    row = second.row(f"two at once, {case}: the second", 2)
    return Row(row.case, "refused", row.status, row.message, [], row.as_promised and "being written by" in row.message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the table")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mutoscope-run-faults-"))
    try:
        table = []
        for row in rows(root):
            print(f"{row.case}: {row.outcome}, status {row.status}; {row.message} {row.run_log}", flush=True)
            table.append(asdict(row))
            options.out.write_text(json.dumps({"rows": table}, indent=2, ensure_ascii=False) + "\n")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
