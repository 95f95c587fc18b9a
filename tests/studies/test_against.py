"""Variants of a model beside the plain loop and the bound: the same clips, turns, and figures that follow from them."""

from typing import Any

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.layers.packed import PackedLinear, pack_linears
from mutoscope.pipeline import VideoPipeline
from mutoscope.recipes.shapes import magi_shapes, par_shapes
from mutoscope.studies import against
from mutoscope.studies.against import VARIANTS, Comparison, Variant, compare, num_runs
from mutoscope.studies.plain import make_plain, unpack_linears
from mutoscope.studies.speed import SpeedConfig
from mutoscope.studies.untrained import Untrained, tokens_of_all_steps
from tiny_models import tiny_index, tiny_model, tiny_tokenizer

RATE = 1e9


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known rates, which takes no time to measure."""
    monkeypatch.setattr(against, "matrix_rate", lambda device, number: RATE)
    monkeypatch.setattr(against, "memory_rate", lambda device, num_bytes: RATE)


def load(variant: Variant) -> VideoPipeline:
    return VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index(), dtype=variant.dtype, weights=variant.weights)


def compared(repeats: int = 1) -> Comparison:
    return compare(load, SpeedConfig(repeats=repeats))


def test_every_way_that_exists_has_a_row_beside_the_plain_one():
    found = compared()
    assert [row["row"] for row in found["rows"]] == [
        "plain",
        "eager",
        "compiled",
        "bfloat16",
    ]  # MAGVIT has no 8-bit weights
    assert found["mode"] == "class-conditional" and found["num_decoding_steps"] == 3


def test_figures_follow_from_times_and_counts():
    found = compared(repeats=2)
    plain = found["rows"][0]
    for row in found["rows"]:
        assert row["seconds_fastest"] <= row["seconds"]
        assert row["ratio"] == pytest.approx(row["seconds"] / plain["seconds"])
        assert row["frames_per_second"] == pytest.approx(found["frames"] / row["seconds"])
        assert row["fraction"] == pytest.approx(row["bound_seconds"] / row["seconds_fastest"])
        needed = found["rows"][1] if row["row"] in ("plain", "compiled") else row
        longest = max(needed["gflop"] * 1e9, needed["read_bytes"]) / RATE
        assert row["bound_seconds"] == pytest.approx(longest)
        assert row["bound_by"] == ("arithmetic" if needed["gflop"] * 1e9 >= needed["read_bytes"] else "memory")


def test_narrow_weights_are_read_faster():
    rows = {row["row"]: row for row in compared()["rows"]}
    assert rows["bfloat16"]["read_bytes"] < rows["eager"]["read_bytes"]
    assert rows["bfloat16"]["gflop"] == pytest.approx(rows["eager"]["gflop"])


def test_runs_are_announced_one_by_one():
    runs: list[int] = []
    compare(load, SpeedConfig(repeats=2), lambda: runs.append(1))
    assert len(runs) == num_runs("magvit", 2) == 4 * 3


def test_a_tokenizer_alone_is_timed_by_reconstruction():
    def tokenizer(variant: Variant) -> VideoPipeline:
        return VideoPipeline(tiny_tokenizer(), None, tiny_index(family="tokenizer", model=None, tasks=()))

    found = compare(tokenizer, SpeedConfig(repeats=1))
    assert found["mode"] == "reconstruction" and [row["row"] for row in found["rows"]] == ["plain", "eager"]
    assert len(VARIANTS) >= 3


def untrained_pipeline(name: str, is_plain: bool) -> VideoPipeline:
    untrained = Untrained.of(name)
    pipeline = VideoPipeline(untrained.tokenizer(), untrained.model(), untrained.index)
    if is_plain:
        assert pipeline.model is not None
        make_plain(pipeline.model)
    return pipeline


@pytest.mark.parametrize(("name", "options"), [
    ("par-shapes-16x", {}),
    ("magi-shapes", {"num_frames": 2, "num_decoding_steps": 2, "num_diffusion_steps": 2}),
    ("far-shapes", {"num_frames": 2, "num_decoding_steps": 2}),
])  # fmt: skip
def test_the_plain_loop_generates_the_same_clip(name: str, options: dict[str, Any]):
    pipelines = [untrained_pipeline(name, is_plain) for is_plain in (False, True)]
    [one], [other] = (pipeline.generate(seed=0, **options).clips for pipeline in pipelines)
    assert (one.frames == other.frames).mean() > 0.999


def test_the_plain_loop_of_prompts_generates_the_same_clip():
    options: dict[str, Any] = {"num_frames": 2, "num_decoding_steps": 2, "num_diffusion_steps": 2}
    fast, plain = (VideoPipeline.from_pretrained("nova-shapes") for _ in range(2))
    assert plain.model is not None
    make_plain(plain.model)
    [one], [other] = (pipeline.generate(prompt="a red square", seed=0, **options).clips for pipeline in (fast, plain))
    assert (one.frames == other.frames).mean() > 0.999


def test_unpacked_layers_share_the_weights():
    network = torch.nn.Sequential(torch.nn.Linear(64, 64))
    weight = network[0].weight
    pack_linears(network)
    unpack_linears(network)
    assert type(network[0]) is torch.nn.Linear and network[0].weight is weight
    assert not any(isinstance(module, PackedLinear) for module in network.modules())


@pytest.mark.parametrize(("name", "culprit"), [
    ("vq-shapes", "no video model"), ("nova-shapes", "prompts"), ("par-shape-4x", "par-shapes-4x"),
])  # fmt: skip
def test_recipes_that_cannot_be_timed_are_refused(name: str, culprit: str):
    with pytest.raises(UserError, match=culprit):
        Untrained.of(name)


def test_random_weights_hold_no_matrix_of_zeros():
    model = Untrained.of("magi-shapes").model()
    assert all(bool(parameter.any()) for parameter in model.parameters() if parameter.ndim > 1)


def test_the_least_time_counts_every_token_once_or_once_per_step():
    assert tokens_of_all_steps(par_shapes(4).model, 131) == 512
    assert tokens_of_all_steps(magi_shapes().model, 64) == 64 * 16
    assert Untrained.of("par-shapes-4x").seconds_at_least(1e12) == pytest.approx(
        2 * Untrained.of("par-shapes-4x").seconds_at_least(2e12)
    )
