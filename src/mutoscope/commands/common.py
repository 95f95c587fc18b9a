"""Checks and helpers that several verbs share."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mutoscope.checks import MAX_SEED
from mutoscope.checks import check_range as check_range
from mutoscope.errors import UserError, reason
from mutoscope.ownership import remove_leftovers_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mutoscope.hub import ModelFolder
    from mutoscope.pipeline import VideoPipeline

Report = dict[str, Any]
T = TypeVar("T")

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif")
MAX_SUGGESTIONS = 5
CLIP_SUFFIXES = (*VIDEO_SUFFIXES, ".png")


def check_seed(seed: int) -> None:
    check_range("--seed", seed, low=0, high=MAX_SEED)


def check_output_file(out: str, suffixes: Sequence[str] = CLIP_SUFFIXES) -> Path:
    """The output path, after checking its suffix and that its folder can be written to."""
    from mutoscope.hub import check_writable_folder

    path = Path(out).expanduser()
    if path.suffix.lower() not in suffixes:
        found = f"{path.suffix!r}" if path.suffix else "no suffix"
        raise UserError(f"The output must end in one of {' '.join(suffixes)}, found {found} in {out!r}.")
    if path.is_dir():
        raise UserError(f"{out!r} is a folder; name a file in it.")
    check_writable_folder(path.parent)
    remove_leftovers_of(path)
    return path


def check_input_file(path: str, what: str = "video") -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"There is no {what} {path!r}.")
    if found.is_dir():
        raise UserError(f"{path!r} is a folder; give a {what} file.")
    return found


def parse_device(name: str) -> "torch.device":
    """A torch device that exists on this machine."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name!r} cannot be used here ({reason(error)}). Try cpu.") from None
    if device.type == "meta":
        raise UserError("--device 'meta' holds no numbers. Try cpu.")
    return device


def parse_dtype(name: str) -> "torch.dtype":
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def progress(items: Iterable[T], total: int | None, label: str, unit: str = "frame") -> Iterator[T]:
    """Pass items through a progress bar on standard error; silent where that is not a terminal."""
    from tqdm import tqdm

    yield from tqdm(items, desc=label, total=total, unit=unit, file=sys.stderr, disable=None, leave=False)


@contextlib.contextmanager
def progress_steps(label: str, total: int | None, unit: str = "step") -> Iterator[Callable[[], object]]:
    """A callback that moves a progress bar on standard error on by one; total None: not known."""
    from tqdm import tqdm

    with tqdm(desc=label, total=total, unit=unit, file=sys.stderr, disable=None, leave=False) as bar:
        yield bar.update


DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, mps ..."""
    dtype: DType = "float32"
    """Dtype of the network."""
    weights: Literal["float", "int8"] = "float"
    """int8 rounds the network's matrices to 8 bits, which is faster on the CPU."""
    text_encoder_offload: bool = False
    """Drop the text encoder from memory once the prompts are encoded."""
    text_encoder_dtype: DType | None = None
    """Dtype of the text encoder; default: that of --dtype."""
    tokenizer_dtype: DType = "float32"
    """Dtype of a published autoencoder, for less memory."""
    tokenizer_window: int | None = None
    """Encode and decode frames in blended windows of this many pixels (at least 128), for less memory."""
    capture: bool = False
    """On a CUDA GPU, record the decoding steps and replay them: faster at small batches."""
    compile: bool = False
    """Compile the steps first, which takes minutes once and is kept for the next time: faster at small batches."""


def load_pipeline(model: "str | ModelFolder", options: LoadOptions) -> "VideoPipeline":
    """The pipeline of a model, on a device that exists and in a dtype that works there."""
    from mutoscope.pipeline import VideoPipeline

    check_range("--tokenizer-window", options.tokenizer_window, low=128)
    device, encoder_dtype = parse_device(options.device), options.text_encoder_dtype
    dtypes = {
        "--dtype": options.dtype,
        "--text-encoder-dtype": encoder_dtype,
        "--tokenizer-dtype": options.tokenizer_dtype,
    }
    for name, value in dtypes.items():
        if value == "float16" and device.type == "cpu":
            raise UserError(f"{name} float16 needs a GPU. On the CPU use float32 or bfloat16.")
    return VideoPipeline.from_pretrained(
        model,
        device,
        parse_dtype(options.dtype),
        options.weights,
        text_encoder_offload=options.text_encoder_offload,
        text_encoder_dtype=None if encoder_dtype is None else parse_dtype(encoder_dtype),
        tokenizer_dtype=parse_dtype(options.tokenizer_dtype),
        tokenizer_window=options.tokenizer_window,
        capture=options.capture,
        compile=options.compile,
        on_compiled=compiling() if options.compile else lambda seconds: None,
    )


def compiling() -> Callable[[float], object]:
    """A progress bar that counts compiled steps. How many a call needs is known once all of them have run."""
    from tqdm import tqdm

    bar = tqdm(desc="compile", unit="step", file=sys.stderr, disable=None, leave=False)
    return lambda seconds: bar.update()


def peak_memory(device: "torch.device") -> int:
    from mutoscope.pipeline import peak_memory_bytes

    return peak_memory_bytes(device)


def machine(device: "torch.device", dtype: str) -> Report:
    """What a speed figure depends on beside the model."""
    import torch

    return {"device": str(device), "dtype": dtype, "threads": torch.get_num_threads()}


def write_sheet(path: Path, clips: "Sequence[np.ndarray]", scale: int = 1) -> tuple[int, int]:
    """Write clips (t, h, w, 3) as one image, a row per clip; returns its height and width."""
    from mutoscope.data.video.read import contact_sheet, write_video

    sheet = contact_sheet(clips, scale=scale)
    write_video(path, sheet[None], 1)
    return sheet.shape[0], sheet.shape[1]


def size_in_file(path: Path, height: int, width: int) -> tuple[int, int]:
    """Height and width the file holds: H.264 in MP4 has even sizes only, so a last row or column is repeated."""
    if path.suffix.lower() == ".mp4":
        return height + height % 2, width + width % 2
    return height, width


def is_terminal() -> bool:
    return sys.stderr.isatty()


def parse_flags(target: Callable[..., T], prog: str, arguments: Sequence[str], **options: Any) -> T:
    """tyro, with its errors as one line instead of a box; --help still prints and exits.

    A flag that is on or off may also name the value that it has already: a run is resumed by the command that began it.
    """
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            # A recipe's configuration may be one of several classes: the one it has is the one its flags change.
            one_each = (tyro.conf.FlagCreatePairsOff,) if {"--help", "-h"} & set(arguments) else ()
            markers = (tyro.conf.AvoidSubcommands, *one_each)
            return tyro.cli(target, prog=prog, args=list(arguments), config=markers, **options)
    except SystemExit as stop:
        if stop.code:
            raise UserError(f"{_with_flag(_flatten(errors.getvalue()))} See {prog} --help.") from None
        raise


def _with_flag(message: str) -> str:
    """Tyro's "Error parsing loop: batch_size must ..." as "--loop.batch-size must ..."."""
    found = re.match(r"Error parsing (\w[\w.]*): ([a-z][\w.-]*)(?:\[\d+\])? must ", message)
    if found is None:
        return message
    group = "" if found[1][0].isupper() else f"{found[1]}."  # a class is the whole configuration
    return f"--{group}{found[2]}".replace("_", "-") + message[found.end(2) :]


def _flatten(box: str) -> str:
    """The message of tyro's box in one line, without help texts."""
    text = "".join(" " if character in "╭╮╰╯│" else character for character in box)
    groups = [" ".join(group.split()) for group in re.split("─+|-{10,}", text)]  # dashes on a plain terminal
    groups = [g for g in groups if g and not g.startswith(("Argument helptext", "For full helptext"))]
    titles = ("Required options", "Unrecognized options", "Invalid choice", "Missing argument")
    kept = [_short(g) for g in groups if g not in titles and not g.endswith(" error")] or groups
    return " ".join(g if g.endswith(".") else f"{g}." for g in kept)


def _short(message: str) -> str:
    """Tyro's suggestions by their names alone, a few of them."""
    message, found, suggestions = message.partition("Perhaps you meant:")
    names = list(dict.fromkeys(re.findall(r"--[\w.-]+", suggestions)))[:MAX_SUGGESTIONS]
    return f"{message}Perhaps you meant {' or '.join(names)}." if found else message


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left; a row that begins with a bracket is a heading and widens nothing."""
    widths = [max(len(cell) for cell in column) for column in zip(*(r for r in rows if r[0][:1] != "["), strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def human_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
