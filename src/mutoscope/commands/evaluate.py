"""mutoscope evaluate: a model or a folder of videos against real clips."""

import mutoscope.commands.common as common


def evaluate(
    source: str,
    /,
    *,
    protocol: str = "shapes",
    num_clips: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "cpu",
) -> common.Report:
    """Measure a model, a tokenizer or a folder of videos under a protocol; every figure carries its interval.

    Args:
        source: bundled name, model folder, or a folder of videos
        protocol: shapes (all that fits the source), shapes-generation, shapes-text, shapes-prediction, shapes-tasks,
            shapes-reconstruction, shapes-files
        num_clips: clips on either side (default 256)
        seed: of generation and of the resampling behind the intervals
        batch_size: clips at a time
        device: cpu, cuda, cuda:1, mps ...
    """
    common.check_range("--num-clips", num_clips, low=2)
    common.check_range("--batch-size", batch_size, low=1)
    common.check_seed(seed)
    torch_device = common.parse_device(device)

    from mutoscope.evaluation.evaluate import evaluate as measure

    return measure(
        source,
        protocol,
        num_clips,
        seed,
        batch_size=batch_size,
        device=torch_device,
        progress=common.is_terminal(),
    )


def summary(report: common.Report) -> str:
    lines = [
        f"{report['source']}, protocol {report['protocol']}, {report['num_clips']} clips, {report['seconds']:.1f} s"
    ]
    for name, figure in report["metrics"].items():
        value, ci95 = figure["value"], figure["ci95"]
        spread = f"  [{ci95[0]:.4g}, {ci95[1]:.4g}]" if ci95 else ""
        lines.append(f"  {name:<44} {'–' if value is None else format(value, '.4g')}{spread}")
    return "\n".join(lines)
