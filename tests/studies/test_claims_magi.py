"""MAGI's comparisons run end to end on tiny networks."""

from pathlib import Path

import pytest
import torch

from mutoscope import hub
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.studies.claims import SummaryRow, run_claims
from mutoscope.studies.claims_magi import VARIANTS, ClaimsConfig, Laboratory, reduction, seconds_by_length
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig
from small_shapes_model import small_index
from tiny_magi import tiny_magi


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClaimsConfig:
    """Frames of 32×32 to 4×4 latents of 2 channels."""
    torch.manual_seed(0)
    sizes = Causal3DConfig(4, (1, 1, 1, 1), 1, (False, False, False), 2, "kl", latent_channels=2, per_frame=True)
    folder = tmp_path_factory.mktemp("models") / "vae"
    hub.save_pretrained(folder, small_index("tokenizer", ()), Causal3D(sizes).eval())
    small = {"num_train_clips": 4, "num_clips": 3, "num_layers": 1, "hidden_size": 32}
    return ClaimsConfig(
        str(folder), (0,), num_steps=120, batch_size=1, windows=2, num_rollouts=2, timed_lengths=(2,), **small
    )


@pytest.mark.slow
def test_variants_are_trained_and_measured(config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path):
    variants = tuple(v for v in VARIANTS if v.name in ("ctf", "mtf-equal-time"))
    report = run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier)
    rows: list[dict] = [dict(row) for row in report["rows"]]
    complete, masked = rows
    assert masked["num_updates"] > complete["num_updates"] == 120
    for row in rows:
        assert len(row["error_by_frame"]) == len(row["error_of_copying_by_frame"])
        assert len(row["shapes_fvd_by_window"]) == len(row["detected_by_window"]) == 2
        # The detector finds the shapes of real clips, and none in the grey frames of an untrained tokenizer.
        assert min(row["detected_in_real_by_window"]) > max(row["detected_by_window"]) == 0
    conclusions: dict[str, object] = dict(report)
    assert conclusions["ctf_vs_mtf_fvd_reduction"] is None
    assert conclusions["ctf_vs_mtf_fvd_reduction_equal_time"] is not None
    assert run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier)["rows"] == report["rows"]


def test_variants_differ_in_training(config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path):
    lab = Laboratory.open(config, tmp_path, classifier)
    models = [lab.build(variant, 0).config for variant in VARIANTS]
    assert {(m.teacher_forcing, m.noise_levels) for m in models} == {("complete", 5), ("complete", 0), ("masked", 5)}
    assert "interval" in lab.cache[[0]]
    assert "interval" not in lab.plain[[0]]


def summary(variant: str, values: list[float]) -> SummaryRow:
    return {
        "variant": variant,
        "paper": "",
        "num_decoding_steps": 5,
        "shapes_fvd": sum(values) / len(values),
        "shapes_fvd_per_seed": values,
        "shapes_fvd_per_task": {},
    }


def test_the_reduction_is_a_mean_over_seeds():
    rows = [summary("ctf", [50.0, 30.0]), summary("mtf", [100.0, 120.0])]
    assert reduction(rows, "mtf") == pytest.approx((0.5 + 0.75) / 2)
    assert reduction(rows, "mtf-equal-time") is None


def test_seconds_are_measured_with_and_without_a_cache_beside_the_formula():
    (row,) = seconds_by_length(tiny_magi(), (3,))
    assert row["num_frames"] == 3
    assert row["ratio"] == pytest.approx(row["uncached_seconds"] / row["cached_seconds"])
    assert row["formula"] == pytest.approx(5 / 6 * 2)
