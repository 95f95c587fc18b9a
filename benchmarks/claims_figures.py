"""Plots of the papers' comparisons at small scale, from the reports of `mutoscope bench claims`.

    python benchmarks/claims_figures.py benchmarks/results/par_claims.json docs/images/par_claims.png [OMIT ...]

A bar per variant, a dot per seed, and the distance between real clips; variants named as OMIT are not drawn. A second
panel, if the report has the figures, plots shapes-FVD against the number of decoding steps or against the frames of a
continued clip.
"""

import json
import sys
from pathlib import Path
from typing import NotRequired, TypedDict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

USUAL_STEPS = 12  # decoding steps of MAGVIT's main results (arXiv 2212.05199, §4)


class Row(TypedDict):
    """One variant of a report."""

    variant: str
    num_decoding_steps: int
    shapes_fvd: float
    shapes_fvd_per_seed: list[float]
    shapes_fvd_by_window: NotRequired[list[float]]


def bars(axis: Axes, rows: list[Row], real: float) -> None:
    """One bar per row, one dot per seed."""
    names = [row["variant"] for row in rows]
    axis.barh(names, [row["shapes_fvd"] for row in rows], color="#9db8d9")
    for height, row in enumerate(rows):
        axis.plot(row["shapes_fvd_per_seed"], [height] * len(row["shapes_fvd_per_seed"]), "k.", markersize=5)
    axis.axvline(real, color="k", linestyle=":", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("shapes-FVD (dotted: real clips)")


def by_steps(axis: Axes, rows: list[Row]) -> None:
    """shapes-FVD of one variant against its number of decoding steps."""
    steps = [row["num_decoding_steps"] for row in rows]
    values = np.array([row["shapes_fvd_per_seed"] for row in rows])  # (steps, seeds)
    axis.plot(steps, values.mean(1), marker="o")
    axis.plot(steps, values, "k.", markersize=4)
    axis.set_xlabel(f"decoding steps of {rows[0]['variant']}")


def by_window(axis: Axes, rows: list[Row]) -> None:
    """shapes-FVD of clips continued beyond the length of training, by window of 16 frames."""
    for row in rows:
        values = row.get("shapes_fvd_by_window", [])
        axis.plot(16 * np.arange(1, 1 + len(values)), values, marker="o", label=row["variant"])
    axis.set_xlabel("up to frame")
    axis.legend(fontsize=8)


def main(report: Path, out: Path, omitted: list[str]) -> None:
    found = json.loads(report.read_text())
    kept: list[Row] = [row for row in found["rows"] if row["variant"] not in omitted]
    groups: dict[str, list[Row]] = {}
    for row in kept:
        groups.setdefault(row["variant"], []).append(row)
    usual = [
        next((row for row in rows if row["num_decoding_steps"] == USUAL_STEPS), rows[-1]) for rows in groups.values()
    ]
    stepped = next((rows for rows in groups.values() if len(rows) > 1), [])
    continued = [row for row in usual if "shapes_fvd_by_window" in row]
    panels = 1 + bool(stepped or continued)
    figure, axes = plt.subplots(1, panels, figsize=(6 + 4 * (panels - 1), 3.4), squeeze=False, layout="constrained")
    bars(axes[0, 0], usual, found["real_against_real"])
    if stepped:
        by_steps(axes[0, 1], stepped)
    elif continued:
        by_window(axes[0, 1], continued)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
