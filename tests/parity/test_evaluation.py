"""Fréchet distance and PSNR against published implementations, on stored features and frames."""

import fnmatch
import math
from typing import Any

import pytest
import torch

from mutoscope.evaluation.frechet import FeatureStatistics, frechet_distance
from mutoscope.evaluation.pixel import psnr_mean_of_frames, psnr_of_clip, psnr_per_frame
from parity.cases import Case, family, for_each

CASES = family("evaluation")
COVERED = ("*frechet*", "*image_metrics*")
NOT_COVERED = {
    "*i3d*": "I3D is not part of this package yet",
    "*flax_networks*": "I3D and C3D are not part of this package yet",
    "*resize*": "resizing for I3D and C3D is not part of this package yet",
}
# Inside covered files: SSIM, LPIPS and the inception score (`image_metrics`), the kernel distance `kvd_...`
# (`frechet`), and `videogpt_second_call...`, where code spoils its input and then measures something else.

# key of a distance -> (biased covariance, relative tolerance, tolerance relative to the traces)
DISTANCES = {
    "reference_f64_unbiased": (False, 1e-8, 1e-8),
    "reference_f64_biased": (True, 1e-8, 1e-8),
    "tats_torch_f64": (False, 1e-8, 1e-8),
    "tfgan_f64": (False, 1e-8, 1e-8),
    "tats_torch_f32": (False, 0.0, 2e-4),
    "videogpt_torch_f32": (False, 0.0, 2e-4),
    "tfgan_f32": (False, 0.0, 2e-4),
    # Its mean is taken in float32, which shows where features have a large offset.
    "common_metrics_scipy_sqrtm_unbiased": (False, 0.0, 1e-4),
    "styleganv_biased_scipy_sqrtm": (True, 0.0, 1e-7),
}
TERMS = {"mean_term": "mean_term", "trace_x": "trace_x", "trace_y": "trace_y", "trace_sqrt": "trace_root"}


def test_every_file_is_covered_or_said_not_to_be():
    known = (*COVERED, *NOT_COVERED)
    unknown = [case.name for case in CASES if not any(fnmatch.fnmatch(case.name, pattern) for pattern in known)]
    assert CASES, "no vectors for evaluation"
    assert not unknown, f"no test reads {unknown}"


def statistics(case: Case, name: str) -> tuple[FeatureStatistics, FeatureStatistics]:
    return FeatureStatistics.of(case.tensors[f"{name}.x"]), FeatureStatistics.of(case.tensors[f"{name}.y"])


def sets_of_features(case: Case) -> dict[str, dict[str, Any]]:
    return {name: numbers for name, numbers in case.info.items() if f"{name}.x" in case.tensors}


@for_each(CASES, "*frechet*")
def test_distances_agree_with_published_code(case: Case):
    assert sets_of_features(case)
    for name, numbers in sets_of_features(case).items():
        x, y = statistics(case, name)
        traces = numbers["trace_x"] + numbers["trace_y"]
        for key, (biased, relative, of_traces) in DISTANCES.items():
            if key in numbers:
                found = frechet_distance(x, y, biased).raw
                allowed = relative * abs(numbers[key]) + of_traces * traces
                assert abs(found - numbers[key]) <= allowed, f"{name}, {key}: {found}"


@for_each(CASES, "*frechet*")
def test_every_term_of_the_distance_agrees(case: Case):
    for name, numbers in sets_of_features(case).items():
        found = frechet_distance(*statistics(case, name))
        for key, ours in TERMS.items():
            if key in numbers:
                allowed = 1e-8 * (abs(numbers[key]) + numbers["trace_x"] + numbers["trace_y"])
                assert abs(getattr(found, ours) - numbers[key]) <= allowed, f"{name}, {key}"


@for_each(CASES, "*frechet*")
def test_features_read_in_small_batches_give_the_same_distance(case: Case):
    for name, numbers in sets_of_features(case).items():
        streams = []
        for side in ("x", "y"):
            features = case.tensors[f"{name}.{side}"]
            stream = FeatureStatistics(features.shape[1])
            for batch in features.split(7):
                stream.update(batch)
            streams.append(stream)
        allowed = 1e-8 * (numbers["trace_x"] + numbers["trace_y"])
        assert abs(frechet_distance(*streams).raw - numbers["reference_f64_unbiased"]) <= allowed, name


def infinite_where_null(table: list[float | None]) -> torch.Tensor:
    return torch.tensor([math.inf if value is None else value for value in table], dtype=torch.float64)


@pytest.mark.parametrize(
    ("key", "tolerance"),
    [("psnr_skimage", 1e-6), ("psnr_magvit", 1e-4), ("psnr_tf", 1e-4), ("psnr_torchmetrics", 1e-4)],
)
@for_each(CASES, "*image_metrics*")
def test_psnr_of_frames_agrees_with_published_code(case: Case, key: str, tolerance: float):
    if key not in case.info.get("per_frame", {}):
        pytest.skip(f"no {key} in {case.name}")
    real, fake = (case.tensors[side] for side in ("real", "fake"))  # (pairs, t, h, w, 3)
    expected = torch.stack([infinite_where_null(row) for row in case.info["per_frame"][key]])
    torch.testing.assert_close(psnr_per_frame(real, fake), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("key", "psnr"),
    [("per_video_mean_of_frame_psnr", psnr_mean_of_frames), ("per_video_mcvd_psnr_of_mean_mse", psnr_of_clip)],
)
@for_each(CASES, "*image_metrics*")
def test_both_averages_of_psnr_agree_with_published_code(case: Case, key: str, psnr):
    if key not in case.info:
        pytest.skip(f"no {key} in {case.name}")
    found = psnr(case.tensors["real"], case.tensors["fake"])
    torch.testing.assert_close(found, infinite_where_null(case.info[key]), atol=1e-6, rtol=0)
