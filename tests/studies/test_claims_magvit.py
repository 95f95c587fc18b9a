"""The ablations run end to end on tiny networks, continue where they stopped, and compare like with like."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.studies.claims import keep_settings, run_claims, summarise
from mutoscope.studies.claims_magvit import VARIANTS, Laboratory

FEW = tuple(v for v in VARIANTS if v.name in ("commit", "latent-masking", "prefix", "autoregressive"))


@pytest.mark.slow
def test_every_kind_of_variant_is_trained_measured_and_not_repeated(config, judge, tmp_path: Path):
    variants = tuple(replace(v, steps=v.steps[:2], also=()) for v in FEW)
    report = run_claims(Laboratory, config, tmp_path, variants=variants, judge=judge)
    rows = {(row["variant"], row["num_decoding_steps"]): row for row in report["rows"]}
    assert set(rows) == {
        ("commit", 4), ("commit", 8), ("latent-masking", 12), ("prefix", 12), ("autoregressive", 256)
    }  # fmt: skip
    assert all(row["shapes_fvd"] >= 0 for row in rows.values()) and report["real_against_real"] > 0
    before = (tmp_path / "commit-0.json").stat().st_mtime_ns
    assert run_claims(Laboratory, config, tmp_path, variants=variants, judge=judge) == report
    assert (tmp_path / "commit-0.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "claims.json").read_text())["rows"] == report["rows"]


def test_results_of_other_settings_are_not_mixed_in(config, judge, tmp_path: Path):
    keep_settings(tmp_path / "settings.json", config)
    keep_settings(tmp_path / "settings.json", replace(config, seeds=(0, 7)))
    with pytest.raises(UserError, match="other settings"):
        run_claims(Laboratory, replace(config, num_steps=121), tmp_path, judge=judge)


def test_variants_of_one_seed_start_from_equal_weights(config, judge, tmp_path: Path):
    lab = Laboratory.open(config, tmp_path, judge)
    full, mask_only = (v for v in VARIANTS if v.name in ("commit", "commit-mask"))
    ours, theirs = lab.build(full, 3), lab.build(mask_only, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert ours.config.loss_groups != theirs.config.loss_groups


def test_a_summary_shows_the_mean_and_every_seed():
    result = {"num_decoding_steps": 12, "per_task": {"frame-prediction": 3.0}}
    rows = [
        {"variant": "commit", "paper": "Tab. 5", "seed": seed, "results": [result | {"shapes_fvd": value}]}
        for seed, value in ((0, 3.0), (1, 5.0))
    ]
    [row] = summarise(rows)
    assert row["shapes_fvd"] == 4.0 and row["shapes_fvd_per_seed"] == [3.0, 5.0]


def test_single_task_models_are_also_measured_on_the_other_tasks_with_twelve_steps():
    single = next(v for v in VARIANTS if v.name == "commit")
    assert single.measured(4) == ("frame-prediction",)
    assert single.measured(12)[0] == "frame-prediction" and len(set(single.measured(12))) == 8
    free = next(v for v in VARIANTS if v.name == "commit-unconditional")
    assert "class-conditional" not in free.measured(12) and len(free.measured(12)) == 8
