"""The ablations run end to end on tiny networks, continue where they stopped, and compare like with like."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mutoscope.studies.claims import run_claims
from mutoscope.studies.claims_magvit import VARIANTS, Laboratory

FEW = tuple(v for v in VARIANTS if v.name in ("commit", "latent-masking", "prefix", "autoregressive"))


@pytest.mark.slow
def test_every_kind_of_variant_is_trained_and_measured_once(config, classifier, tmp_path: Path):
    variants = tuple(replace(v, steps=v.steps[:2], also=()) for v in FEW)
    report = run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier)
    rows = {(row["variant"], row["num_decoding_steps"]): row for row in report["rows"]}
    assert set(rows) == {
        ("commit", 4), ("commit", 8), ("latent-masking", 12), ("prefix", 12), ("autoregressive", 256)
    }  # fmt: skip
    for row in rows.values():
        assert row["shapes_fvd"] == row["shapes_fvd_per_task"]["frame-prediction"] == row["shapes_fvd_per_seed"][0]
    # Trained for one task alone, the variants differ in their clips and so in their distances.
    assert len({row["shapes_fvd"] for row in rows.values()}) == len(rows)
    before = (tmp_path / "commit-0.json").stat().st_mtime_ns
    assert run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier) == report
    assert (tmp_path / "commit-0.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "claims.json").read_text())["rows"] == report["rows"]


def test_variants_of_one_seed_start_from_equal_weights(config, classifier, tmp_path: Path):
    lab = Laboratory.open(config, tmp_path, classifier)
    full, mask_only = (v for v in VARIANTS if v.name in ("commit", "commit-mask"))
    ours, theirs = lab.build(full, 3), lab.build(mask_only, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert ours.config.loss_groups != theirs.config.loss_groups


def test_single_task_models_are_also_measured_on_the_other_tasks_with_twelve_steps():
    single = next(v for v in VARIANTS if v.name == "commit")
    assert single.measured(4) == ("frame-prediction",)
    assert single.measured(12)[0] == "frame-prediction" and len(set(single.measured(12))) == 8
    free = next(v for v in VARIANTS if v.name == "commit-unconditional")
    assert "class-conditional" not in free.measured(12) and len(free.measured(12)) == 8
