"""Measures rows under torchrun or alone: `python -m evaluation.distributed_run OUT [STATE]`."""

import sys
from pathlib import Path

import torch

from mutoscope.evaluation.metrics.fvd import repeated_frechet_figure
from mutoscope.evaluation.rows import Rows, State, chunk_ranges, gather_rows, rank_and_world_size
from mutoscope.training.distributed import join


def features(numbers: range) -> Rows:
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in numbers]
    rank = torch.full((len(rows),), rank_and_world_size()[0])
    return Rows({"value": torch.stack(rows), "rank": rank}, tuple(f"clip {i}" for i in numbers if i == 7))


def main(out: str, folder: str | None = None) -> None:
    join("cpu")
    state = State.open(folder, {"test": True})
    sides = [
        gather_rows(chunk_ranges(count, 3), features, label, state)
        for label, count in (("real", 30), ("generated", 20))
    ]
    real, generated = sides
    if real is None or generated is None:
        assert rank_and_world_size()[0] > 0
        return
    figure = repeated_frechet_figure([generated["value"]], real["value"] + 1, False, 0)
    torch.save({"figure": figure, "notes": real.notes, "ranks": real["rank"].tolist()}, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
