"""What all comparisons share: settings of a folder, distances, and the summary over seeds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.studies import claims, claims_magvit
from mutoscope.studies.claims import ClaimsConfig, Variant, keep_settings, result_of, run_claims, summarise
from mutoscope.studies.registry import LABORATORIES, laboratory


class Measurement(claims.Measurement):
    error_by_frame: list[float]


def measurement(seed: int) -> Measurement:
    value = 3.0 + 2 * seed
    return {
        "num_decoding_steps": 12,
        "shapes_fvd": value,
        "per_task": {"frame-prediction": value},
        "error_by_frame": [float(seed), 1.0 + seed],
    }


def test_results_of_other_settings_are_not_mixed_in(config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path):
    keep_settings(tmp_path / "settings.json", config)
    keep_settings(tmp_path / "settings.json", replace(config, seeds=(0, 7)))
    with pytest.raises(UserError, match="other settings"):
        run_claims(claims_magvit.Laboratory, replace(config, num_steps=121), tmp_path, classifier=classifier)


def test_a_summary_shows_the_mean_and_every_seed():
    rows = [result_of(Variant("commit", "Tab. 5"), seed, [measurement(seed)]) for seed in (0, 1)]
    assert summarise(rows) == [
        {
            "variant": "commit",
            "paper": "Tab. 5",
            "num_decoding_steps": 12,
            "shapes_fvd": 4.0,
            "shapes_fvd_per_seed": [3.0, 5.0],
            "shapes_fvd_per_task": {"frame-prediction": 4.0},
            "error_by_frame": [0.5, 1.5],
        }
    ]


def test_real_clips_are_at_distance_zero_and_dark_ones_farther(
    config: ClaimsConfig, classifier: ShapesClassifier, tmp_path: Path
):
    lab = claims_magvit.Laboratory.open(config, tmp_path, classifier)
    dark = (lab.real.video.float() * 0.2).to(torch.uint8)
    assert lab.distance_of(lab.real.video) == pytest.approx(0, abs=1e-9)
    assert lab.distance_of(dark) > 1e-3
    assert lab.real_against_real() > 1e-6


@pytest.mark.parametrize("paper", LABORATORIES)
def test_every_paper_has_variants_of_different_names(paper: str):
    names = [variant.name for variant in laboratory(paper).variants()]
    assert len(set(names)) == len(names) > 1


def test_papers_without_claims_are_refused():
    with pytest.raises(UserError, match="no claims of 'phenaki'.*papers: magvit, par, nova, magi"):
        laboratory("phenaki")
