"""I3D, C3D and the resizing before them against the published networks, with weights by a formula."""

import functools
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import CONVENTIONS, Resize, i3d_input, resized
from mutoscope.evaluation.networks.c3d import C3D, CONVOLUTIONS
from mutoscope.evaluation.networks.i3d import I3D, conv_same, infer_config, max_pool_same
from mutoscope.evaluation.networks.resize import bilinear
from mutoscope.evaluation.networks.weights import fit_weights
from parity.cases import Case, family, for_each, matching, widen
from parity.evaluation_support import check_sums, closed_form, fill, relative, samples

CASES = family("evaluation")
LOGITS_TOLERANCE, MAP_TOLERANCE, RESIZE_TOLERANCE = 1e-4, 1e-4, 1e-5  # relative L2, absolute, absolute
EPS = {"tats": 1e-5, "videogpt": 1e-5, "piergiaj": 1e-3}  # of the batch norms of every implementation
TATS = CONVENTIONS["tats"]


@functools.cache
def full_weights(case: Case) -> dict[str, Tensor]:
    described = case.info["full_weights"]
    weights = closed_form(described["shapes"], described["base"])
    check_sums(weights, described.get("sha256_16", {}))
    return weights


@functools.cache
def reduced_weights(case: Case) -> dict[str, Tensor] | None:
    """From the file beside the case that holds a network's tensors."""
    for path in sorted(case.path.parent.glob("*.safetensors")):
        if not path.with_suffix(".json").exists():
            weights = {name: widen(tensor) for name, tensor in load_file(path).items()}
            if "logits.conv3d.weight" in weights:
                return weights
    return None


def network(weights: Mapping[str, Tensor], eps: float, fold: bool = False) -> I3D:
    built = I3D(infer_config(weights, eps))
    fit_weights(built, weights, "the vectors", "I3D")
    return built.fold() if fold else built


def clips(case: Case) -> dict[str, Tensor]:
    """uint8 clips (1, t, h, w, 3) by name."""
    return {name: case.tensors[name][None] for name in sorted(case.tensors) if re.fullmatch(r"clip\d+", name)}


@functools.cache
def inputs(case: Case) -> Tensor:
    """All clips as TATS shows them to I3D."""
    return torch.cat([i3d_input(clip, TATS) for clip in clips(case).values()])


def implementations(case: Case, prefix: str) -> list[str]:
    found = sorted({name.split(".")[1] for name in case.tensors if name.startswith(f"{prefix}.")})
    assert set(found) <= set(EPS), f"what eps have {set(found) - set(EPS)}?"
    return found


@for_each(CASES, "*i3d*")
@torch.inference_mode()
def test_every_map_of_i3d_agrees_with_published_code(case: Case):
    for implementation in implementations(case, "full"):
        published = case.under(f"full.{implementation}.")
        built = network(full_weights(case), EPS[implementation])
        sampled = {name.removesuffix(".samples"): t for name, t in published.items() if name.endswith(".samples")}
        numbers = case.info.get("full_endpoints", {}).get(implementation, {})
        for name, found in [*built.endpoints(inputs(case)), ("avg_pool", built.pooled(inputs(case)))]:
            if name in sampled:
                values = samples(found, len(sampled[name]))
                assert relative(values, sampled[name]) <= LOGITS_TOLERANCE, f"{implementation} {name}"
            if name in numbers:
                assert list(found.shape) == numbers[name]["shape"], name
                for key, value in (("mean", found.double().mean()), ("l2", found.double().norm())):
                    assert value.item() == pytest.approx(numbers[name][key], rel=1e-4), f"{implementation} {name} {key}"


@for_each(CASES, "*i3d*")
@torch.inference_mode()
def test_logits_of_i3d_agree_with_published_code(case: Case):
    for implementation in implementations(case, "full"):
        published = case.under(f"full.{implementation}.")
        built = network(full_weights(case), EPS[implementation], fold=True)
        check_logits(built, inputs(case), published, implementation)
        if "features_pool" in published:
            assert relative(built.pooled(inputs(case)), published["features_pool"]) <= LOGITS_TOLERANCE


def check_logits(built: I3D, video: Tensor, published: Mapping[str, Tensor], what: str) -> None:
    steps = built.logits_per_step(video)
    found = {"logits": steps.mean(2), "logits_mean": steps.mean(2), "logits_per_step": steps}
    assert set(found) & set(published), f"no logits for {what}"
    for key in set(found) & set(published):
        assert relative(found[key], published[key]) <= LOGITS_TOLERANCE, f"{what} {key}"


@for_each(CASES, "*i3d*")
@torch.inference_mode()
def test_clips_of_other_lengths_agree_and_too_short_ones_are_refused(case: Case):
    lengths: dict[int, tuple[str, Tensor]] = {}
    for name, expected in case.tensors.items():
        if match := re.fullmatch(r"full\.(\w+)\.T(\d+)\.logits", name):
            lengths[int(match[2])] = (match[1], expected)
    first = next(iter(clips(case).values()))
    there_and_back = torch.cat([first, first.flip(1)], dim=1)
    for count, (implementation, expected) in lengths.items():
        built = network(full_weights(case), EPS[implementation], fold=True)
        assert relative(built(i3d_input(there_and_back[:, :count], TATS)), expected) <= LOGITS_TOLERANCE, count
    for count, outcome in case.info.get("frame_counts", {}).items():
        if outcome != "ok":
            with pytest.raises(UserError, match=f"at least 9 frames, found {count}"):
                i3d_input(there_and_back[:, : int(count)], TATS)


@for_each(CASES, "*i3d*")
@torch.inference_mode()
def test_narrow_networks_agree_with_published_code(case: Case):
    weights = reduced_weights(case)
    if weights is None:
        pytest.skip("no narrow network among these vectors")
    for implementation in implementations(case, "reduced"):
        published = case.under(f"reduced.{implementation}.")
        check_logits(network(weights, EPS[implementation], fold=True), inputs(case), published, implementation)
    built = network(weights, EPS["tats"])
    for name in sorted({name.split(".")[0] for name in case.tensors if name.startswith("trunk_")}):
        published = case.under(f"{name}.")
        for endpoint, found in built.endpoints(published["input"]):
            if endpoint in published:
                difference = (found - published[endpoint]).abs().max().item()
                assert found.shape == published[endpoint].shape and difference <= MAP_TOLERANCE, f"{name} {endpoint}"


@for_each(CASES, "*i3d*")
@torch.inference_mode()
def test_padding_agrees_with_published_code(case: Case):
    for number, described in enumerate(case.info.get("pad_cases", [])):
        values = case.under(f"pad{number}.")
        kernel, stride = tuple(described["kernel"]), tuple(described["stride"])
        conv = nn.Conv3d(values["w"].shape[1], len(values["w"]), kernel, stride)
        conv.load_state_dict({"weight": values["w"], "bias": values["b"]})
        found = {"conv": conv_same(values["x"], conv), "maxpool": max_pool_same(values["x"], kernel, stride)}
        for key, value in found.items():
            torch.testing.assert_close(value, values[key], atol=MAP_TOLERANCE, rtol=0)


def clips_beside(case: Case) -> tuple[Case, dict[str, Tensor]]:
    """The case that holds I3D's clips and weights, and the clips."""
    other = next(other for other in matching(CASES, "*i3d*") if clips(other))
    return other, clips(other)


def without_gamma(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(value) if name.endswith("bn.weight") else value for name, value in weights.items()}


@pytest.mark.slow
@for_each(CASES, "*flax*")
@torch.inference_mode()
def test_i3d_agrees_with_the_flax_network_and_deviates_as_published(case: Case):
    reference, videos = clips_beside(case)
    weights = without_gamma(full_weights(reference))
    resize = {"legacy": "tf1", "halfpixel": "half_pixel"}
    for eps in (1e-3, 1e-5):
        built = network(weights, eps, fold=True)
        for kind, rule in resize.items():
            for clip, video in videos.items():
                name = f"eps{eps:.0e}".replace("e-0", "e-") + f".{kind}.logits_mean"
                expected = case.tensors.get(f"torch.gamma1.{clip}.{name}")
                flax = case.tensors.get(f"i3d_flax.{clip}.logits_mean")
                found = built(i3d_input(video, replace(TATS, resize=rule)))
                if expected is not None:
                    assert relative(found, expected) <= LOGITS_TOLERANCE, f"{clip} {name}"
                if flax is not None and (eps, rule) == (1e-3, "tf1"):
                    assert relative(found, flax) <= LOGITS_TOLERANCE, f"flax {clip}"
                distance = case.info.get("relative_l2_to_flax_logits", {}).get(clip, {}).get(name)
                if flax is not None and distance is not None:
                    assert relative(found, flax) == pytest.approx(distance, rel=1e-2, abs=1e-5), f"{clip} {name}"


@for_each(CASES, "*flax*")
@torch.inference_mode()
def test_every_map_of_the_flax_network_agrees(case: Case):
    reference, videos = clips_beside(case)
    built = network(without_gamma(full_weights(reference)), 1e-3)
    for clip, video in videos.items():
        published = case.under(f"i3d_flax.{clip}.")
        if not published:
            continue
        x = i3d_input(video, CONVENTIONS["tf"])
        maps = [*built.endpoints(x), ("AvgPool3d_6a_7x7", built.pooled(x))]
        for name, found in maps:
            if f"{name}.samples" in published:
                expected = published[f"{name}.samples"]
                numbers = case.info.get("i3d_flax_endpoints", {}).get(clip, {}).get(name, {})
                # Samples of a transposed map are other places of it, so the norm is what both orders share.
                if numbers:
                    assert found.double().norm().item() == pytest.approx(numbers["l2"], rel=1e-4), name
                orders = [found, found.permute(0, 2, 3, 4, 1)]
                assert min(relative(samples(o, len(expected)), expected) for o in orders) <= LOGITS_TOLERANCE, name


@pytest.mark.slow
@for_each(CASES, "*flax*")
@torch.inference_mode()
def test_c3d_agrees_with_the_flax_network(case: Case):
    if "c3d" not in case.info:
        pytest.skip(f"no C3D in {case.name}")
    weights: dict[str, Tensor] = {}
    for layer, described in case.info["c3d"]["layers"].items():
        shape = described["torch_weight_shape"]
        weights[f"{layer}.weight"] = fill("weight", shape, described["seed_weight"])
        weights[f"{layer}.bias"] = fill("bias", shape[:1], described["seed_bias"])
        check_sums(weights, {f"{layer}.weight": described["sha256_16"]} if "sha256_16" in described else {})
    assert {name for name, _, _ in CONVOLUTIONS} <= {name.split(".")[0] for name in weights}
    built = C3D()
    mean = -torch.tensor(case.info["c3d"]["x_offset_bgr"])
    fit_weights(built, weights | {"mean": mean.expand_as(built.mean)}, "the vectors", "C3D")
    for clip, video in clips_beside(case)[1].items():
        features = built.features(built.preprocess(video))
        logits, head = (case.tensors.get(f"c3d.{clip}.{key}") for key in ("logits", "features_head"))
        if logits is not None:
            assert relative(built.fc8(features), logits) <= LOGITS_TOLERANCE, clip
        if head is not None:
            assert relative(features[:, : head.shape[1]], head) <= LOGITS_TOLERANCE, clip


RULES: dict[str, Resize] = {"tats": "half_pixel", "videogpt": "crop", "tf1_legacy": "tf1"}


@for_each(CASES, "*resize*")
def test_resizing_agrees_with_published_code(case: Case):
    checked = 0
    for name, expected in case.tensors.items():
        key, variant, side = name.split(".") if name.count(".") == 2 else (name, "", "0")
        if not variant:
            continue
        frames = case.tensors[f"{key}.input"].permute(0, 3, 1, 2).float()  # (t, 3, h, w)
        if variant in RULES:
            found = resized(frames, RULES[variant], int(side)) / 127.5 - 1
        elif variant == "c3d_aligned":
            found = bilinear(frames, int(side), int(side), "aligned") / 255
        elif variant == "tf2_antialias":  # the choice that no evaluation makes
            square = (int(side), int(side))
            found = torch.nn.functional.interpolate(frames, square, mode="bilinear", antialias=True) / 127.5 - 1
        else:
            raise AssertionError(f"no rule for {variant!r}")
        found, step = found.transpose(0, 1), round(int(side) / expected.shape[-1])
        found = found[:, :, ::step, ::step]
        assert found.shape == expected.shape, name
        assert (found - expected).abs().max().item() <= RESIZE_TOLERANCE, name
        checked += 1
    assert checked


@for_each(CASES, "*resize*")
def test_variants_of_resizing_differ_by_as_much_as_published(case: Case):
    for key, numbers in case.info.get("max_abs_differences_range_-1_1", {}).items():
        frames = case.tensors[f"{key}.input"].permute(0, 3, 1, 2).float()
        for name, expected in numbers.items():
            match = re.fullmatch(r"(mean_abs_)?tats_vs_(videogpt|tf1_legacy)_(\d+)", name)
            if not match:
                continue
            side = int(match[3])
            step = round(side / case.tensors[f"{key}.tats.{side}"].shape[-1])  # the published places
            tats, other = (resized(frames, RULES[v], side)[..., ::step, ::step] / 127.5 for v in ("tats", match[2]))
            difference = (tats - other).abs()
            found = difference.mean() if match[1] else difference.max()
            assert found.item() == pytest.approx(expected, abs=1e-5), f"{key} {name}"
