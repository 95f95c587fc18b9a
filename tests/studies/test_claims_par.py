"""PAR's ablations run end to end on tiny networks, and their variants differ in what they say they do."""

from dataclasses import replace
from pathlib import Path

import pytest

from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.sampling.parallel_ar import group_starts
from mutoscope.studies.claims import ClaimsConfig, run_claims
from mutoscope.studies.claims_par import VARIANTS, Laboratory


@pytest.mark.slow
def test_variants_are_trained_measured_and_not_repeated(
    config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path
):
    variants = tuple(v for v in VARIANTS if v.name in ("distant-16", "no-sequential-start"))
    report = run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier)
    assert [(row["variant"], row["num_decoding_steps"]) for row in report["rows"]] == [
        ("distant-16", 31), ("no-sequential-start", 64)
    ]  # fmt: skip
    rows: list[dict] = [dict(row) for row in report["rows"]]
    for row in rows:
        assert row["shapes_fvd"] == row["shapes_fvd_per_task"]["class-conditional"]
        assert 3 * row["class_accuracy"] == pytest.approx(round(3 * row["class_accuracy"]), abs=1e-6)  # of three clips
        assert row["seconds_per_clip"] > 0
    assert report["rows"][0]["shapes_fvd"] != report["rows"][1]["shapes_fvd"]
    before = (tmp_path / "distant-16-0.json").stat().st_mtime_ns
    assert run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier) == report
    assert (tmp_path / "distant-16-0.json").stat().st_mtime_ns == before


def test_every_variant_differs_from_the_others_in_order_steps_or_attention(
    config, classifier: ShapesClassifier, tmp_path: Path
):
    lab = Laboratory.open(replace(config, num_train_clips=2), tmp_path, classifier)
    seen = set()
    for variant in VARIANTS:
        model = lab.build(variant, 0)
        steps = len(group_starts(model.latent_shape, model.num_parallel, model.num_start))
        seen.add((tuple(model.token_order().tolist()), steps, model.group_mask(40).sum().item()))
    assert len(seen) == len(VARIANTS)
