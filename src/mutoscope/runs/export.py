"""Samples of a text-conditional model in the folders that external benchmarks read: VBench, GenEval, DPG-Bench.

The benchmarks' own tools, run in their own environments, compute the scores. The samples are a function of the model,
the prompts, the seed and the sampler's options. `export.json` beside the samples holds these, so that an interrupted
export continues and is never mixed with another one.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mutoscope.data.media import visible_matches
from mutoscope.data.text_files import read_text
from mutoscope.data.video.read import write_video
from mutoscope.errors import UserError, reason
from mutoscope.evaluation.sources.model_clips import call_seed
from mutoscope.hub import check_writable_folder
from mutoscope.json_config import nearest, parse_json, read_json
from mutoscope.ownership import is_temporary, owned
from mutoscope.pipeline import VideoPipeline
from mutoscope.writing import new_folder, write_whole

RECORD = "export.json"
MAX_NAME_BYTES = 200  # of a prompt that becomes part of a file name
Frames = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark. key: stem of the names of its files; line: its entry in the prompts file."""

    key: str
    text: str
    line: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The format of a benchmark. num_samples: per prompt, as in its paper and in NOVA's evaluation.

    files: paths of one prompt's samples, relative to the folder that its tool reads.
    still: images instead of clips. tool: command that starts its tool on the folder FOLDER.
    """

    num_samples: int
    still: bool
    read: Callable[[Path], Iterator[Prompt]]
    files: Callable[[Prompt, int], list[Path]]
    tool: str


# --------------------------------------------------------------------------------------------------------- prompts


def vbench_prompts(path: Path) -> Iterator[Prompt]:
    """VBench_full_info.json (entries with "prompt_en"), or a text file of one prompt per line."""
    if path.suffix == ".json":
        found = _parsed(path, _text(path), 1)
        entries = found if isinstance(found, list) else [None]
        texts = [entry.get("prompt_en") if isinstance(entry, dict) else None for entry in entries]
    else:
        texts = [line.strip() for line in _text(path).splitlines() if line.strip()]
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text:
            raise UserError(f'{path}: entry {number} has no "prompt_en"; give VBench_full_info.json or a .txt file.')
        yield Prompt(_file_name(path, text), text)


def geneval_prompts(path: Path) -> Iterator[Prompt]:
    """evaluation_metadata.jsonl: one object per line, with "prompt" and the objects that its detector looks for."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    for number, line in enumerate(lines):
        entry = _parsed(path, line, number + 1)
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise UserError(f'{path}: line {number + 1} has no "prompt"; give GenEval\'s evaluation_metadata.jsonl.')
        yield Prompt(f"{number:05}", entry["prompt"], line)


def dpg_prompts(path: Path) -> Iterator[Prompt]:
    """The folder of prompts, one text file each, or dpg_bench.csv (columns item_id and text)."""
    if path.is_dir():
        for file in sorted(visible_matches(path, "*.txt")):
            yield Prompt(_file_name(path, file.stem), _text(file).strip())
        return
    rows = list(csv.DictReader(io.StringIO(_text(path))))
    if not rows or not {"item_id", "text"} <= set(rows[0]):
        raise UserError(f"{path} has no columns item_id and text; give dpg_bench.csv or the folder of its prompts.")
    for row in rows:
        yield Prompt(_file_name(path, row["item_id"] or ""), row["text"] or "")


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UserError as error:
        raise UserError(f"The prompts cannot be used: {error}") from None


def _parsed(path: Path, text: str, number: int) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: entry {number} is not JSON ({reason(error)}).") from None


def _file_name(path: Path, text: str) -> str:
    """The text, which the benchmark's tool expects as (part of) a file name."""
    if not text or text.startswith(".") or any(character in text for character in "/\\\0"):
        raise UserError(f"{path}: {text!r} cannot be a file name, as the benchmark needs it.")
    if len(text.encode()) > MAX_NAME_BYTES:
        raise UserError(f"{path}: {text[:40]!r}... is longer than a file name may be ({MAX_NAME_BYTES} bytes).")
    return text


BENCHMARKS = {
    "vbench": Benchmark(
        5,
        False,
        vbench_prompts,
        lambda prompt, count: [Path(f"{prompt.key}-{number}.mp4") for number in range(count)],
        "vbench evaluate --videos_path FOLDER --dimension DIMENSION",
    ),
    "geneval": Benchmark(
        4,
        True,
        geneval_prompts,
        lambda prompt, count: [Path(prompt.key, "samples", f"{number:04}.png") for number in range(count)],
        "python evaluation/evaluate_images.py FOLDER --outfile results.jsonl --model-path DETECTOR",
    ),
    "dpg-bench": Benchmark(
        4,
        True,
        dpg_prompts,
        lambda prompt, count: [Path(f"{prompt.key}.png")],
        "python dpg_bench/compute_dpg_bench.py --image-root-path FOLDER --resolution SIDE --pic-num 4",
    ),
}


def read_prompts(benchmark: str, path: str | Path) -> list[Prompt]:
    """The prompts of a benchmark's own file, each once. Raises UserError for another kind of file."""
    unique: dict[str, Prompt] = {}
    for prompt in _benchmark(benchmark).read(Path(path)):
        unique.setdefault(prompt.key, prompt)
    prompts = list(unique.values())
    if not prompts:
        raise UserError(f"{str(path)!r} holds no prompts.")
    if empty := [prompt.key for prompt in prompts if not prompt.text]:
        raise UserError(f"{str(path)!r}: the prompt of {empty[0]!r} is empty.")
    return prompts


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise UserError(f"Unknown benchmark {name!r}: {nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


# --------------------------------------------------------------------------------------------------------- samples


class Record(TypedDict):
    """Contents of `export.json`: everything the samples depend on."""

    benchmark: str
    model: str
    seed: int
    num_samples: int
    options: dict[str, object]
    prompts_sha256: str


def export(
    pipeline: VideoPipeline,
    model: str,
    benchmark: str,
    prompts_path: str | Path,
    out: str | Path,
    *,
    num_prompts: int | None = None,
    num_samples: int | None = None,
    seed: int = 1337,
    options: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Write samples for every prompt (or the first `num_prompts`) into `out`/`benchmark`; returns a report.

    The samples of prompt number i come from one call, seeded by `seed` and i alone, so that interruptions do not change
    them. Existing files are kept. `options` go to the pipeline.
    Raises UserError for prompts of another benchmark, a model that reads no text, or a folder with other contents.
    """
    kind = _benchmark(benchmark)
    prompts = read_prompts(benchmark, prompts_path)
    count = num_samples or kind.num_samples
    if benchmark == "dpg-bench" and count != kind.num_samples:
        raise UserError(f"DPG-Bench reads {kind.num_samples} samples on one image; omit the number of samples.")
    requested = {name: value for name, value in (options or {}).items() if value is not None}
    if kind.still and pipeline.index.num_frames != 1:
        requested["num_frames"] = 1
    record: Record = {
        "benchmark": benchmark, "model": model, "seed": seed, "num_samples": count, "options": requested,
        "prompts_sha256": hashlib.sha256("\n".join(f"{p.key}\t{p.text}" for p in prompts).encode()).hexdigest(),
    }  # fmt: skip
    chosen = prompts[:num_prompts]
    # Options that do not fit are refused before the folder is created.
    pipeline.prepare(prompt=chosen[0].text, num_samples=count, seed=seed, **requested)
    with owned(out, "export"):
        folder = claim(Path(out), record) / benchmark
        written, warnings = _write_samples(pipeline, benchmark, chosen, folder, record)
    tool = kind.tool.replace("FOLDER", str(folder)).replace("SIDE", str(pipeline.index.height))
    return {
        **record,
        "output": str(folder),
        "prompts": len(chosen),
        "written": written,
        "tool": tool,
        "warnings": list(warnings),
    }


def _write_samples(
    pipeline: VideoPipeline, benchmark: str, chosen: Sequence[Prompt], folder: Path, record: Record
) -> tuple[int, Sequence[str]]:
    """The samples of all prompts that are missing; returns the number of files written, and warnings."""
    kind, count, requested = _benchmark(benchmark), record["num_samples"], record["options"]
    written, warnings = 0, []
    for number, prompt in enumerate(tqdm(chosen, benchmark, unit="prompt", disable=None, leave=False)):
        paths = [folder / file for file in kind.files(prompt, count)]
        if all(path.exists() for path in paths):
            written += _write_line(folder, benchmark, prompt)
            continue
        call = {"prompt": prompt.text, "num_samples": count, "seed": call_seed(record["seed"], number)}
        clips = pipeline.generate(on_step=lambda event: None, **call, **requested).clips
        frames = [clip.frames for clip in clips]
        frames = [grid(frames)] if len(paths) == 1 and count > 1 else frames
        for path, clip in zip(paths, frames, strict=True):
            if not path.exists():
                new_folder(path.parent)
                warnings = write_video(path, clip[:1] if kind.still else clip, 1 if kind.still else pipeline.index.fps)
                written += 1
        written += _write_line(folder, benchmark, prompt)
    return written, warnings


def claim(out: Path, record: Record) -> Path:
    """`out` as the folder of this export: new or empty, or claimed by it before. Raises UserError for other folders."""
    mark, own = out / RECORD, cast(dict[str, object], json.loads(json.dumps(record)))
    if mark.is_file():
        found = read_json(mark)
        different = [name for name in own if found.get(name) != own[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{str(out)!r} holds an export with another {name}: {found.get(name)!r} there, {own[name]!r} here. "
                "Name another folder, or remove this one."
            )
        return out
    if out.exists() and (not out.is_dir() or any(not is_temporary(entry) for entry in out.iterdir())):
        raise UserError(f"{str(out)!r} holds files that are no export. Name an empty or a new folder.")
    check_writable_folder(out)
    write_whole(new_folder(out) / RECORD, json.dumps(record, indent=2) + "\n")
    return out


def _write_line(folder: Path, benchmark: str, prompt: Prompt) -> int:
    """Write the metadata that GenEval's detector reads beside the samples; returns the number of files written."""
    path = folder / prompt.key / "metadata.jsonl"
    if benchmark != "geneval" or path.exists():
        return 0
    write_whole(path, f"{prompt.line}\n")
    return 1


def grid(clips: list[Frames]) -> UInt8[np.ndarray, "t height width 3"]:
    """Four clips as one, in two rows of two."""
    top, bottom = (np.concatenate(clips[start : start + 2], axis=2) for start in (0, 2))
    return np.concatenate([top, bottom], axis=1)
