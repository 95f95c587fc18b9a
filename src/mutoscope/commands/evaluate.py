"""mutoscope evaluate: a model or a folder of videos against real clips."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mutoscope.commands.common as common
from mutoscope.commands.options import family_of_folder, help_text, parse_changed_options, sampler_flags
from mutoscope.errors import UserError
from mutoscope.writing import write_whole

if TYPE_CHECKING:
    from mutoscope.pipeline import VideoPipeline

MOST_MINUTES = 1440  # a day


def evaluate(
    source: str,
    /,
    *,
    protocol: str | None = None,
    num_clips: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "cpu",
    compile: bool = False,
    reference: str | None = None,
    split: str | None = None,
    task: str | None = None,
    features: str | None = None,
    pairs: Literal["names", "order", "none"] = "names",
    by_frame: bool = False,
    max_side: int = 256,
    paste_given: bool = False,
    i3d: str | None = None,
    i3d_sha256: str | None = None,
    c3d: str | None = None,
    inception: str | None = None,
    lpips: str | None = None,
    lpips_heads: str | None = None,
    convention: str | None = None,
    minutes: tuple[float, ...] = (1.0, 5.0, 10.0),
    streams: int = 16,
    there: str | None = None,
    back: str | None = None,
    network_steps: int = 1200,
    state: str | None = None,
    out: str | None = None,
    overrides: Sequence[str] = (),
) -> common.Report:
    """Measure a model, a tokenizer or a folder of videos; every figure carries its interval.

    Two folders of videos or images compare without any weights: mutoscope evaluate MINE --reference REAL
    Control and drift of a model of actions: mutoscope evaluate MODEL --protocol world --reference RECORDINGS

    Args:
        source: bundled name, model folder, or a folder of videos or images
        protocol: folders (default where both sides are folders); shapes (default for models; all that fits the source),
            shapes-generation, shapes-text, shapes-prediction, shapes-tasks, shapes-reconstruction, shapes-files;
            shapes-10k for many clips; world for a model of actions that streams; or that of a published table, such as
            ucf101-magvit with --reference (an unknown name lists them)
        num_clips: clips on either side (default 256, or the protocol's number)
        seed: of generation, of random clips and of the resampling behind the intervals
        batch_size: clips at a time
        device: cpu, cuda, cuda:1, mps ...
        compile: of a model, compile its steps first, which takes minutes once and is kept for the next time
        reference: the real videos: a folder, or for a published protocol also a dataset in its own layout
        split: which part of that dataset, where not the protocol's: train, validation or test; of recordings (world),
            which part is evaluated
        task: what a model does, for protocols of several tasks
        features: of two folders, whose features the Fréchet distance compares: shapes-features, or a tokenizer (bundled
            name or folder), whose encoder is read
        pairs: of two folders, which clips are compared one by one (PSNR, SSIM): those of equal names, in order of path,
            or none
        by_frame: of two folders, compare frame by frame where their rates differ, instead of at the lower rate
        max_side: of two folders, most pixels of the longer side of a frame
        paste_given: copy the conditioning region into the generated clips unchanged
        i3d: file with I3D's Kinetics-400 weights, for FVD and KVD
        i3d_sha256: refuse another I3D file than the one with this hash
        c3d: file with C3D's UCF-101 weights, for the inception score
        inception: file with Inception's weights of 2015-12-05, for FID
        lpips: file with VGG-16's or AlexNet's weights, for LPIPS
        lpips_heads: file with LPIPS' linear weights for that network
        convention: resizing, eps and covariance of FVD, where not the protocol's: tats, cd-fvd, videogpt, tf, tf-64,
            stylegan-v, mcvd
        minutes: of world, minutes of playing time after which streams are examined, fractions too
        streams: of world, number of streams
        there: of world, an action or a text of actions that leads away, by default a button named left
        back: of world, the opposite of --there
        network_steps: of world, training steps of the inverse-dynamics network
        state: folder for finished parts; the same command continues from there
        out: also write the report to this file (.json), and under world a contact sheet of the streams beside it (.png)
        overrides: options of the model's sampler, such as --guidance-scale (see mutoscope generate MODEL --help)
    """
    common.check_range("--num-clips", num_clips, low=2)
    common.check_range("--batch-size", batch_size, low=1)
    common.check_range("--max-side", max_side, low=16)
    common.check_range("--streams", streams, low=2)
    common.check_range("--network-steps", network_steps, low=4)
    for value in minutes:
        common.check_range("--minutes", value, low=0, high=MOST_MINUTES)
    common.check_seed(seed)
    torch_device = common.parse_device(device)
    target = None if out is None else common.check_output_file(out, (".json",))

    from mutoscope.evaluation.engine import evaluate as measure
    from mutoscope.evaluation.networks.extractors import WeightFiles
    from mutoscope.evaluation.plan import StreamSettings
    from mutoscope.training.distributed import join, together

    sampling = sampler_options(source, overrides)
    process = join("cpu")  # under torchrun all processes share the clips; rows are exchanged on the CPU
    report = measure(
        _compiled(source, device) if compile else source,
        protocol,
        num_clips=num_clips,
        seed=seed,
        batch_size=batch_size,
        device=torch_device,
        options=sampling,
        reference=reference,
        split=split,
        task=task,
        paste_given=paste_given,
        features=features,
        pairs=pairs,
        by_frame=by_frame,
        max_side=max_side,
        convention=convention,
        files=WeightFiles(i3d, c3d, inception, lpips, lpips_heads, i3d_sha256),
        streams=StreamSettings(
            minutes, streams, there, back, network_steps, None if target is None else target.with_suffix(".png")
        ),
        state=state,
        progress=common.is_terminal(),
        together=partial(together, process),
    )
    return _written({**report, "source": source}, target)


def _compiled(source: str, device: str) -> "VideoPipeline":
    """A model whose steps are compiled. Raises UserError for a source that is no model."""
    _require_model(source, "--compile")
    return common.load_pipeline(source, common.LoadOptions(device, compile=True))


def sampler_options(source: str, arguments: Sequence[str]) -> dict[str, object]:
    """Options of a model's sampler. Raises UserError for a source that has no sampler."""
    from mutoscope import hub

    if not arguments:
        return {}
    _require_model(source, arguments[0])
    return parse_changed_options(hub.open_folder(source), f"mutoscope evaluate {source}", arguments)


def _require_model(source: str, option: str) -> None:
    from mutoscope import hub

    folder = Path(source).expanduser()
    if folder.is_file() or (folder.is_dir() and not (folder / hub.INDEX).is_file()):
        raise UserError(f"{source!r} holds videos; {option} is for models that generate them.")


def print_override_help(source: str | None, overrides: Sequence[str] = ()) -> None:
    """Show the options of the sampler of a model, if one is named."""
    if source is None:
        return
    from mutoscope import hub

    folder = hub.open_folder(source)
    flags = sampler_flags(family_of_folder(folder), folder)
    print(help_text(f"mutoscope evaluate {source} [options]", "Options of the model's sampler:", flags))


def _written(report: common.Report, target: Path | None) -> common.Report:
    """The report, which the first process also writes to a file; the others have no figures."""
    if target is not None and report["metrics"]:
        write_whole(target, f"{json.dumps(report, allow_nan=False, indent=1)}\n")
    return report


def summary(report: common.Report) -> str:
    lines = [f"Caution: {caveat}" for caveat in report.get("caveats", [])]
    lines += comparison(report) if report["protocol"] == "folders" else figures(report)
    return "\n".join(lines)


def figures(report: common.Report) -> list[str]:
    """A line per figure, then what they depend on."""
    lines = [
        f"{report['source']}, protocol {report['protocol']}, {report['num_clips']} clips, {report['seconds']:.1f} s"
    ]
    for name, figure in report["metrics"].items():
        lines.append(f"  {name:<44} {_shown(figure)}")
    for name, numbers in report.get("published", {}).items():
        lines.append(f"  published, {name}: " + ", ".join(f"{key} {value:g}" for key, value in numbers.items()))
    details = report.get("protocol_details", {})
    if made := details.get("generated"):
        lines.append(f"  {made['task']} by the model, weights SHA-256 {made['model_sha256']}")
    for name, sha256 in details.get("weights_sha256", {}).items():
        lines.append(f"  {name} weights: SHA-256 {sha256}")
    if isinstance(details.get("convention"), dict):
        chosen = details["convention"]
        lines.append(f"  convention {chosen['name']} ({chosen['used_by']})")
    if "num_real" in report:
        lines.append(f"  {report['num_real']} real clips: " + "; ".join(details["notes"]))
    return lines


def comparison(report: common.Report) -> list[str]:
    """Two folders side by side: what was compared, the figures in columns, and how they came about."""
    details = report["protocol_details"]
    sides = [(details["mine"], report["num_clips"])]
    sides += [(details["real"], report["num_real"])] if details["real"] else []
    counts = " against ".join(
        f"{_counted(clips, 'clip')} of {_counted(side['videos'], side['kind'])}" for side, clips in sides
    )
    height, width = details["size"]
    rate = "" if details["fps"] is None else f" at {details['fps']:g} frames/s"
    what = f"{_counted(details['num_frames'], 'frame')} of {height}×{width}{rate}"
    lines = [
        f"{' against '.join(side['folder'] for side, _ in sides)}: {counts}, each {what}; {report['seconds']:.1f} s"
    ]
    rows = [["", "mine", "real"] if details["real"] else ["", "mine"], *_rows(report["metrics"], details)]
    lines += [
        f"  {line}" for line in common.table([row + [""] * (len(rows[0]) - len(row)) for row in rows]).splitlines()
    ]
    return lines + [f"  {note}" for note in _how(details)]


def _rows(metrics: dict[str, dict], details: dict) -> Iterator[list[str]]:
    """Name, figure of mine, and the same figure of the real clips if there is one."""
    for name, figure in metrics.items():
        if not name.endswith("_real"):
            real = metrics.get(f"{name}_real")
            yield [name, _shown(figure), *([] if real is None else [_shown(real)])]


def _how(details: dict) -> Iterator[str]:
    """How clips were paired, what the features are, and everything that was adapted."""
    pairing, features = details["pairing"], details["features"]
    if details["real"]:
        pairs = (
            f", {_counted(pairing['clips'], 'clip')} of {_counted(pairing['videos'], 'pair')}"
            if pairing["clips"]
            else ""
        )
        same = f", {pairing['identical_clips']} of them identical, without a PSNR" if pairing["identical_clips"] else ""
        yield f"pairs: {pairing['how']}{pairs}{same}"
    if features:
        mine, real = features["clips"]
        yield (
            f"frechet-{features['name']}: {features['dimension']} features per clip, {mine} clips against {real}; "
            f"{features['features']}"
        )
        yield f"{features['name']} weights: SHA-256 {features['weights_sha256']}"
        if features["clips_of_halves"]:
            yield (
                f"halves: {features['clips_of_halves']} clips against as many real ones; in the column beside, as many "
                "other real ones against the same"
            )
    if details["convention"]:
        yield f"fvd: convention {details['convention']['name']} ({details['convention']['used_by']})"
    for name, sha256 in details["weights_sha256"].items():
        yield f"{name} weights: SHA-256 {sha256}"
    yield from details["notes"]


def _shown(figure: dict) -> str:
    """A value and its interval."""
    value, ci95 = figure["value"], figure["ci95"]
    interval = f"  [{ci95[0]:.4g}, {ci95[1]:.4g}]" if ci95 else ""
    return f"{'–' if value is None else format(value, '.4g')}{interval}"


def _counted(count: int, noun: str) -> str:
    """ "1 clip", "2 clips"."""
    return f"{count} {noun.removesuffix('s')}{'' if count == 1 else 's'}"
