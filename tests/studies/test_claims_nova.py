"""NOVA's comparisons run end to end on tiny networks."""

from pathlib import Path

import pytest
import torch

from mutoscope import hub
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.studies.claims import run_claims
from mutoscope.studies.claims_nova import VARIANTS, ClaimsConfig, Laboratory, prepared, unstacked
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig
from small_shapes_model import small_index


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClaimsConfig:
    """Frames of 32×32 to 4×4 latents of 2 channels."""
    torch.manual_seed(0)
    sizes = Causal3DConfig(4, (1, 1, 1, 1), 1, (False, False, False), 2, "kl", latent_channels=2, per_frame=True)
    folder = tmp_path_factory.mktemp("models") / "vae"
    index = small_index("tokenizer", ())
    hub.save_pretrained(folder, index, Causal3D(sizes).eval())
    small = {"num_train_clips": 4, "num_clips": 3, "num_layers": 1, "hidden_size": 64}
    return ClaimsConfig(str(folder), (0,), num_steps=120, batch_size=1, windows=2, **small)


@pytest.mark.slow
def test_variants_are_trained_and_measured(config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path):
    variants = tuple(v for v in VARIANTS if v.name in ("published", "at-once"))
    report = run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier)
    rows: list[dict] = [dict(row) for row in report["rows"]]
    published, at_once = rows
    assert len(published["shapes_fvd_by_window"]) == 2 and "shapes_fvd_by_window" not in at_once
    assert at_once["num_decoding_steps"] < published["num_decoding_steps"]
    for row in rows:
        assert row["shapes_fvd"] == row["shapes_fvd_per_task"]["text-conditional"]
        assert row["seconds_per_clip"] > 0 and row["movement_over_real"] > 0
        counts = [3 * row[f"{head}_accuracy"] for head in ("color", "shape", "motion")]  # of three clips
        assert counts == pytest.approx([round(count) for count in counts], abs=1e-6)
    assert published["shapes_fvd"] != at_once["shapes_fvd"]
    assert run_claims(Laboratory, config, tmp_path, variants=variants, classifier=classifier) == report


def test_variants_differ_in_what_they_say(config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path):
    lab = Laboratory.open(config, tmp_path, classifier)
    models = [lab.build(variant, 0) for variant in VARIANTS]
    seen = {(m.config.latent_shape, m.config.mixer_rank, m.config.norm_position, m.config.positions) for m in models}
    assert len(seen) == len(VARIANTS)


def test_frames_below_each_other_come_apart_again():
    tokens = torch.randn(2, 3, 4, 5, 6)
    stacked = prepared({"tokens": tokens, "conditions": {}}, at_once=True)["tokens"]
    assert isinstance(stacked, torch.Tensor) and stacked.shape == (2, 3, 1, 20, 6)
    assert torch.equal(unstacked(stacked, 4), tokens)
