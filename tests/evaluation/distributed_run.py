"""Measures rows under torchrun or alone: `python -m evaluation.distributed_run OUT [STATE]`."""

import sys
from pathlib import Path

import torch

from mutoscope.evaluation.metrics.fvd import repeated_frechet_figure
from mutoscope.evaluation.rows import Rows, State, gather_rows, place
from mutoscope.training.distributed import join


def features(numbers: range) -> Rows:
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in numbers]
    rank = torch.full((len(rows),), place()[0])
    return Rows({"value": torch.stack(rows), "rank": rank}, tuple(f"clip {i}" for i in numbers if i == 7))


def main(out: str, folder: str | None = None) -> None:
    join("cpu")
    state = State.open(folder, {"test": True})
    sides = [gather_rows(count, features, label, state, 3) for label, count in (("real", 30), ("made", 20))]
    real, made = sides
    if real is None or made is None:
        assert place()[0] > 0
        return
    figure = repeated_frechet_figure([made["value"]], real["value"] + 1, False, 0)
    torch.save({"figure": figure, "notes": real.notes, "ranks": real["rank"].tolist()}, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
