"""Distances and image metrics against published implementations, on stored features and frames."""

import fnmatch
import math
from typing import Any

import pytest
import torch

from mutoscope.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from mutoscope.evaluation.metrics.inception_score import inception_score
from mutoscope.evaluation.metrics.kvd import kvd
from mutoscope.evaluation.metrics.pixel import psnr_mean_of_frames, psnr_of_clip, psnr_per_frame
from mutoscope.evaluation.metrics.ssim import (
    SSIMConvention,
    channels,
    gaussian_window,
    ssim_map,
    ssim_of_clip,
    ssim_per_frame,
)
from mutoscope.tokenizers.perceptual import LPIPS, VGG16, AlexNet
from parity.cases import Case, family, for_each
from parity.evaluation_support import check_sums, closed_form, samples
from parity.evaluation_support import relative as relative_l2

CASES = family("evaluation")
# Networks and resizing have a file of tests of their own, test_evaluation_networks.py.
COVERED = ("*frechet*", "*image_metrics*", "*i3d*", "*flax*", "*resize*")

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
# Not distances, or checked elsewhere in this file. `videogpt_second_call...` records code that spoils its input and
# then measures something else.
OTHERS = ("mean_term", "trace_*", "n_*", "d", "kvd_*", "videogpt_second_call*")
TERMS = {"mean_term": "mean_term", "trace_x": "trace_x", "trace_y": "trace_y", "trace_sqrt": "trace_root"}


def test_every_file_is_covered():
    unknown = [case.name for case in CASES if not any(fnmatch.fnmatch(case.name, pattern) for pattern in COVERED)]
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
        unknown = [k for k in numbers if k not in DISTANCES and not any(fnmatch.fnmatch(k, p) for p in OTHERS)]
        assert not unknown, f"{name}: no rule for {unknown}"
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


@for_each(CASES, "*frechet*")
def test_statistics_alone_give_the_distance_of_the_rows(case: Case):
    """The reference takes singular values of the rows; ours comes from means and covariances."""
    for name, numbers in sets_of_features(case).items():
        x, y = (case.tensors[f"{name}.{side}"].double() for side in ("x", "y"))
        centred = [(rows - rows.mean(0)) / math.sqrt(len(rows) - 1) for rows in (x, y)]
        nuclear = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
        squares = sum((rows.square().sum() for rows in centred), torch.zeros(()))
        expected = ((x.mean(0) - y.mean(0)).square().sum() + squares - 2 * nuclear).item()
        traces = numbers["trace_x"] + numbers["trace_y"]
        assert abs(frechet_distance(*statistics(case, name)).raw - expected) <= 1e-8 * traces, name


@for_each(CASES, "*frechet*")
def test_kernel_distances_agree_with_published_code(case: Case):
    for name, numbers in sets_of_features(case).items():
        if "kvd_polynomial_mmd_tats" not in numbers:
            continue
        x, y = (case.tensors[f"{name}.{side}"] for side in ("x", "y"))
        # The published code works in float32, whose rounding grows with the size of the kernel.
        size = max(((rows.double() @ rows.double().T / rows.shape[1] + 1) ** 3).abs().mean().item() for rows in (x, y))
        assert kvd(x, y) == pytest.approx(numbers["kvd_polynomial_mmd_tats"], rel=1e-5, abs=1e-5 * size), name


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


# key -> (convention, tolerance)
SSIM: dict[str, tuple[SSIMConvention, float]] = {
    "ssim_skimage_rgb_gauss": ("rgb", 1e-6),
    "ssim_mcvd_grayL": ("mcvd", 1e-6),
    "ssim_magvit_gray": ("magvit", 1e-4),
    "ssim_magvit_formula_rgb": ("rgb", 1e-4),
    "ssim_pytorch_msssim": ("rgb", 1e-4),
    "ssim_tf_rgb": ("rgb", 1e-4),
    "ssim_tf_rgb_uint8": ("rgb", 1e-4),
}
PSNR_KEYS = ("psnr_*", "mse_255")


def uniform_window_ssim(case: Case, convention: SSIMConvention, data_range: float) -> torch.Tensor:
    """scikit-image's default: a 7×7 window of equal weights, and sample instead of population statistics."""
    size = 7
    window = torch.full((size,), 1 / size, dtype=torch.float64)

    def mean(planes: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.conv2d(planes.flatten(0, 1)[:, None], window[None, None, :, None])
        return torch.nn.functional.conv2d(rows, window[None, None, None, :])

    x, y = (channels(case.tensors[side], convention).flatten(0, -4) for side in ("real", "fake"))
    to_sample = size**2 / (size**2 - 1)
    variance_x, variance_y = (to_sample * (mean(z * z) - mean(z) ** 2) for z in (x, y))
    covariance = to_sample * (mean(x * y) - mean(x) * mean(y))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)
    places = above / ((mean(x) ** 2 + mean(y) ** 2 + c1) * (variance_x + variance_y + c2))
    return places.reshape(*case.tensors["real"].shape[:2], -1).mean(-1)


def reflected_ssim(case: Case) -> torch.Tensor:
    """torchmetrics' default: borders are reflected and count as pixels."""
    window = gaussian_window()
    pad = (len(window) // 2,) * 4
    x, y = (channels(case.tensors[side], "rgb").flatten(0, -4) for side in ("real", "fake"))
    x, y = (torch.nn.functional.pad(z, pad, mode="reflect") for z in (x, y))
    return ssim_map(x, y, window, 1.0).mean((1, 2, 3)).reshape(case.tensors["real"].shape[:2])


DEVIATING = {  # defaults of libraries that no paper's table uses
    "ssim_skimage_rgb_default7": lambda case: uniform_window_ssim(case, "rgb", 1.0),
    "ssim_skimage_grayL_default7": lambda case: uniform_window_ssim(case, "mcvd", 255.0),
    "ssim_torchmetrics_default": reflected_ssim,
}


@for_each(CASES, "*image_metrics*")
def test_ssim_of_frames_agrees_with_published_code(case: Case):
    for key, table in case.info.get("per_frame", {}).items():
        expected = torch.tensor(table, dtype=torch.float64) if "ssim" in key else None
        if key in SSIM:
            convention, tolerance = SSIM[key]
            found = ssim_per_frame(case.tensors["real"], case.tensors["fake"], convention)
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, msg=lambda m, k=key: f"{k}: {m}")
        elif key in DEVIATING:
            torch.testing.assert_close(DEVIATING[key](case), expected, atol=1e-6, rtol=0)
        else:
            assert any(fnmatch.fnmatch(key, pattern) for pattern in PSNR_KEYS), f"no rule for {key}"


@for_each(CASES, "*image_metrics*")
def test_averages_over_a_video_agree_with_magvit(case: Case):
    if "per_video_magvit" not in case.info:
        pytest.skip(f"no averages of MAGVIT in {case.name}")
    real, fake = (case.tensors[side] for side in ("real", "fake"))
    for key, measure in (("psnr", psnr_mean_of_frames), ("ssim", ssim_of_clip)):
        expected = infinite_where_null(case.info["per_video_magvit"][key])
        torch.testing.assert_close(measure(real, fake), expected, atol=1e-4, rtol=0)


@for_each(CASES, "*image_metrics*")
def test_squared_errors_agree(case: Case):
    if "mse_255" not in case.info.get("per_frame", {}):
        pytest.skip(f"no squared errors in {case.name}")
    expected = torch.tensor(case.info["per_frame"]["mse_255"], dtype=torch.float64)
    found = 255**2 * 10 ** (-psnr_per_frame(case.tensors["real"], case.tensors["fake"]) / 10)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def lpips_networks(case: Case) -> dict[str, LPIPS]:
    """VGG-16 and AlexNet with weights by formula, the published linear layers before them."""
    found: dict[str, LPIPS] = {}
    for described in case.info.get("lpips_trunk", {}).values():
        trunks = {"vgg": VGG16(), "alex": AlexNet()}
        name = next(n for n, trunk in trunks.items() if sorted(trunk.state_dict()) == sorted(described["keys"]))
        shapes = {key: value.shape for key, value in trunks[name].state_dict().items()}
        weights = closed_form(shapes, described["base"])
        check_sums(weights, described.get("sha256_16", {}))
        trunks[name].load_state_dict(weights)
        loss = LPIPS(trunks[name])
        for i, head in enumerate(loss.heads):
            head.copy_(case.tensors[f"lpips.{name}.lin{i}.weight"].flatten())
        found[name] = loss
    return found


def in_unit_range(frames: torch.Tensor) -> torch.Tensor:
    return frames.movedim(-1, -3).float() / 255


@for_each(CASES, "*image_metrics*")
@torch.inference_mode()
def test_lpips_agrees_with_published_code(case: Case):
    for name, loss in lpips_networks(case).items():
        published = case.under(f"lpips.{name}.")
        pairs = [in_unit_range(case.tensors[side]).flatten(0, 1) for side in ("real", "fake")]  # (pairs · t, 3, h, w)
        layers = loss.per_layer(*pairs).reshape(*case.tensors["real"].shape[:2], -1)
        if "per_layer" in published:
            torch.testing.assert_close(layers, published["per_layer"], atol=1e-5, rtol=0)
        if "value" in published:
            torch.testing.assert_close(layers.sum(-1), published["value"], atol=1e-5, rtol=0)
        if "rect_value" in published:
            first, second = in_unit_range(case.tensors["rect_pair"])
            found = loss.per_layer(first[None], second[None]).sum(1)
            torch.testing.assert_close(found, published["rect_value"], atol=1e-5, rtol=0)
        for i, found in enumerate(loss.network(pairs[0][:1])):
            if f"feat{i}.samples" in published:
                expected = published[f"feat{i}.samples"]
                assert relative_l2(samples(found, len(expected)), expected) <= 1e-4, f"{name} map {i}"
            numbers = case.info.get("lpips", {}).get(name, {}).get(f"feat{i}")
            if numbers:
                assert list(found.shape) == numbers["shape"]
                assert found.double().norm().item() == pytest.approx(numbers["l2"], rel=1e-4)


@for_each(CASES, "*image_metrics*")
def test_inception_scores_agree_with_published_code(case: Case):
    for table in ("inception_score", "inception_score_reference_f64"):
        for name, numbers in case.info.get(table, {}).items():
            for key, expected in numbers.items():
                splits = 1 if key == "all" else int(key.removeprefix("splits"))
                found = inception_score(case.tensors[name], splits).tolist()
                assert found == pytest.approx(expected if splits > 1 else [expected], rel=1e-5), f"{name} {key}"
