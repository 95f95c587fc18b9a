"""Counters of a server in the text format that Prometheus reads."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds


@dataclass
class Histogram:
    """How often a time was at most each of `BOUNDS`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass
class Metrics:
    """What has happened since the server began."""

    frames: int = 0
    clips: int = 0
    uploads: int = 0
    refused: int = 0
    connections: int = 0
    """open now"""
    frame_seconds: Histogram = field(default_factory=Histogram)


def exposition(metrics: Metrics, gauges: Mapping[str, float]) -> str:
    """All numbers as text."""
    counters = {
        "frames_total": ("Frames of played worlds.", metrics.frames),
        "clips_total": ("Clips generated.", metrics.clips),
        "uploads_total": ("Files read.", metrics.uploads),
        "refused_total": ("Requests that were refused.", metrics.refused),
    }
    lines: list[str] = []
    for name, (text, value) in counters.items():
        lines += [f"# HELP mutoscope_{name} {text}", f"# TYPE mutoscope_{name} counter", f"mutoscope_{name} {value}"]
    for name, value in {"connections": metrics.connections, **gauges}.items():
        lines += [f"# TYPE mutoscope_{name} gauge", f"mutoscope_{name} {value:g}"]
    name, below = "mutoscope_frame_seconds", 0
    lines += [f"# HELP {name} Sampling and decoding of one frame.", f"# TYPE {name} histogram"]
    for bound, count in zip((*BOUNDS, float("inf")), metrics.frame_seconds.counts, strict=True):
        below += count
        label = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f'{name}_bucket{{le="{label}"}} {below}')
    lines += [f"{name}_sum {metrics.frame_seconds.total:g}", f"{name}_count {below}"]
    return "\n".join(lines) + "\n"
