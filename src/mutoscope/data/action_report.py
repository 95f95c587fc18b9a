"""What the actions of recordings look like: names, kind, ranges and histograms."""

from collections.abc import Callable, Iterable
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from mutoscope.actions import ActionSpec, Kind

BINS = 16
LEVELS = "▁▂▃▄▅▆▇█"


class ActionReport(TypedDict):
    """The actions of all episodes. Each list has one entry per number of an action."""

    names: list[str]
    kind: Kind
    buttons: list[bool]
    """which numbers are buttons"""
    rows: int
    """frames with a known action"""
    unknown: int
    """frames without one"""
    minimum: list[float]
    maximum: list[float]
    mean: list[float]
    histogram: list[list[int]]
    """counts of 16 equal parts from the minimum to the maximum"""


Rows = Float[np.ndarray, "_t a"]


def report_actions(spec: ActionSpec, episodes: Callable[[], Iterable[Rows]]) -> ActionReport:
    """Reads the episodes twice, one at a time: for the ranges, then for the histograms."""
    low, high = np.full(spec.size, np.inf), np.full(spec.size, -np.inf)
    total, known, unknown = np.zeros(spec.size), 0, 0
    for rows in episodes():
        kept = rows[~np.isnan(rows).any(axis=1)].astype(np.float64)
        known, unknown = known + len(kept), unknown + len(rows) - len(kept)
        if len(kept):
            low, high = np.minimum(low, kept.min(axis=0)), np.maximum(high, kept.max(axis=0))
            total += kept.sum(axis=0)
    if not known:
        low, high = np.zeros(spec.size), np.zeros(spec.size)
    counts = np.zeros((spec.size, BINS), dtype=np.int64)
    for rows in episodes():
        kept = rows[~np.isnan(rows).any(axis=1)]
        for number in range(spec.size):
            counts[number] += np.histogram(kept[:, number], BINS, (low[number], high[number]))[0]
    return {
        "names": list(spec.names),
        "kind": spec.kind,
        "buttons": list(spec.is_button),
        "rows": known,
        "unknown": unknown,
        "minimum": low.tolist(),
        "maximum": high.tolist(),
        "mean": (total / max(1, known)).tolist(),
        "histogram": counts.tolist(),
    }


def format_actions(report: ActionReport) -> list[str]:
    """The actions as lines of text for people."""
    unknown = f", {report['unknown']} frames without" if report["unknown"] else ""
    lines = [f"  actions: {report['kind']}, {len(report['names'])} numbers in {report['rows']} frames{unknown}"]
    width = max(map(len, report["names"]))
    for number, name in enumerate(report["names"]):
        low, high, mean = (report[key][number] for key in ("minimum", "maximum", "mean"))
        if report["buttons"][number]:
            lines.append(f"    {name:<{width}}  button, pressed in {mean:.0%} of the frames")
        else:
            histogram = sparkline(report["histogram"][number])
            lines.append(f"    {name:<{width}}  {low:.4g} to {high:.4g}, mean {mean:.4g}  {histogram}")
    return lines


def sparkline(counts: Iterable[int]) -> str:
    """A histogram as one line of blocks; a space where a part is empty."""
    values = list(counts)
    top = max(values, default=0)
    return "".join(LEVELS[(value * len(LEVELS) - 1) // top] if value else " " for value in values) if top else ""
