"""The graphs of a world give what the networks give."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="the export for browsers needs the extra [web]")
pytest.importorskip("onnxscript", reason="the export for browsers needs the extra [web]")
pytest.importorskip("onnxruntime", reason="the graphs are run by onnxruntime")

import onnxruntime as ort
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mutoscope.families.magi_graphs import exported, in_eight_bits, pass_inputs
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.layers.kv_cache import KVCache
from mutoscope.models.magi import MAGI, FrameConditions
from tiny_magi import tiny_magi, tiny_vae

VARIANTS = {
    "plain": {},
    "channel": {"noise_mode": "channel", "diffusion": LearnedVariance(prediction="sample")},
    "classless": {"num_classes": None},
    "relative": {"time_positions": "relative", "window": 3, "keeps_first": True},
    "change": {"predicts_change": True, "diffusion": LearnedVariance(prediction="sample")},
}


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def world(request: pytest.FixtureRequest) -> tuple[MAGI, dict[str, "ort.InferenceSession"]]:
    model = tiny_magi(**VARIANTS[request.param])
    with torch.no_grad():  # as they are stored
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    graphs = exported(model, tiny_vae(), 8, 12)
    return model, {name: ort.InferenceSession(content) for name, content in graphs.items()}


def run(session: "ort.InferenceSession", **inputs: torch.Tensor) -> list[Any]:
    names = {one.name for one in session.get_inputs()}
    return [*session.run(None, {name: value.numpy() for name, value in inputs.items() if name in names})]


@torch.no_grad()
def passed(model: MAGI, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, KVCache]:
    """The pass of the network itself, and its cache afterwards."""
    embedded = torch.where(inputs["hidden"][..., None], model.mask_token, model.embed_tokens(inputs["tokens"]))
    if model.previous_embedding is not None:
        embedded = embedded + model.previous_embedding(inputs["previous"]) * inputs["masked"][:, None, None]
    conditions = FrameConditions(inputs["interval"], inputs["label"], inputs["actions"])
    h = model.embed_slots(embedded, conditions, inputs["times"], inputs["masked"], inputs["level"])
    layers, positions, heads, past, size = inputs["keys"].shape
    cache = KVCache.reserve((layers, positions, heads, past + len(inputs["masked"]), size), torch.device("cpu"))
    cache.keys[:, :, :, :past], cache.values[:, :, :, :past] = inputs["keys"], inputs["values"]
    cache.length = past
    return model.run_blocks(h, model.reach(inputs["mask"], inputs["times"], inputs["held"]), None, cache), cache


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "past"), [(1, 0), (3, 0), (1, 4), (2, 3)])
def test_the_pass_reads_and_restores_as_the_model_does(world, frames: int, past: int):
    model, sessions = world
    inputs = pass_inputs(model, frames, past)
    z, keys, values = run(sessions["pass"], **inputs)
    expected, cache = passed(model, inputs)
    np.testing.assert_allclose(z, expected.numpy(), atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(keys, cache.keys[:, :, :, past:].numpy(), atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(values, cache.values[:, :, :, past:].numpy(), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_unknown_actions_are_not_a_number_here_too(world):
    model, sessions = world
    inputs = pass_inputs(model, 1, 0)
    unknown = {**inputs, "actions": torch.full_like(inputs["actions"], torch.nan)}
    known = run(sessions["pass"], **inputs)[0]
    found = run(sessions["pass"], **unknown)[0]
    assert np.isfinite(found).all() and np.abs(found - known).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_head_denoises_as_the_model_does(world, count: int):
    model, sessions = world
    x, z = torch.randn(count, model.config.token_size), torch.randn(count, model.config.hidden_size)
    [y] = run(sessions["head"], x=x, z=z, time=torch.tensor(333.0))
    with torch.no_grad():
        expected = model.denoiser(x, model.denoiser.condition(z), model.denoiser.time(torch.tensor(333.0)))
    np.testing.assert_allclose(y, expected.numpy(), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_the_decoder_gives_the_tokenizers_pixels(world):
    _, sessions = world
    latents, vae = torch.randn(1, 3, 1, 4, 6), tiny_vae()
    [pixels] = run(sessions["decoder"], latents=latents)
    with torch.no_grad():
        expected = vae.to_uint8(vae.decode(latents))[0, 0].numpy()
    assert np.abs(pixels - expected).max() < 2 and pixels.shape == (8, 12, 3)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-1e3, 1e3, width=32)),
)
def test_eight_bits_are_within_half_a_step_of_the_matrix(values: np.ndarray):
    rows, scale = in_eight_bits(values)
    assert rows.dtype == np.int8 and scale.size in values.shape
    assert (np.abs(rows * scale - values) <= scale * 0.5 * (1 + 1e-4) + 1e-30).all()


@pytest.mark.slow
def test_a_wide_model_is_stored_in_eight_bits_and_stays_close():
    model = tiny_magi(hidden_size=128, num_heads=4)
    graphs = exported(model, tiny_vae(), 8, 12)
    size = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.denoiser.parameters())
    assert len(graphs["pass"]) < 1.3 * size + 60_000  # bytes
    inputs = pass_inputs(model, 2, 3)
    z = run(ort.InferenceSession(graphs["pass"]), **inputs)[0]
    expected = passed(model, inputs)[0].numpy()
    assert np.abs(z - expected).mean() < 0.02 * np.abs(expected).mean()
