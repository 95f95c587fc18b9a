import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.diffusion import DDPM
from mutoscope.layers.patchify import patchify
from mutoscope.layers.shortcut import Shortcut
from mutoscope.layers.token_masking import gather_rows
from mutoscope.meta_device import on_meta_device
from mutoscope.models.nova import NOVA, Canvas, NOVABatch, NOVAConfig
from tiny_nova import text_of, tiny_config, tiny_nova

IMAGE = {"latent_shape": (1, 128, 128), "num_time_slots": 1, "mixer_rank": None}


@pytest.mark.parametrize(
    "config, count",
    [
        (NOVAConfig(768, 16, 12, 32, 12, 6, 768, **IMAGE), 363_946_000),
        (NOVAConfig(1024, 16, 16, 32, 16, 6, 1024, **IMAGE), 645_693_456),
        (NOVAConfig(1536, 16, 16, 32, 16, 6, 1536, **IMAGE), 1_449_836_560),
        (NOVAConfig(latent_shape=(1, 64, 64), num_time_slots=1, mixer_rank=None), 641_493_008),
        (NOVAConfig(mixer_rank=None), 644_118_544),
        (NOVAConfig(mixer_rank=24), 644_194_320),
        (NOVAConfig(mixer_rank=-1), 646_217_744),
    ],
    ids=["0.3B", "0.6B", "1.4B", "0.6B at 512", "video without mixer", "video", "video with a full matrix"],
)
def test_published_sizes_have_the_published_parameter_counts(config: NOVAConfig, count: int):
    with on_meta_device():
        model = NOVA(config)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.text is not None and model.text.table.numel() == 1_310_720


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize("norm_position", ["after", "before"])
@torch.no_grad()
def test_frames_read_one_by_one_give_the_contexts_of_one_pass(positions, norm_position):
    model = tiny_nova(positions=positions, norm_position=norm_position)
    latents, prefix = torch.randn(2, 3, 4, 8, 8), model.with_motion(model.text_prefix(*text_of(model, 2)), None)
    state, context = model.start(prefix, 4)
    contexts = [context]
    for frame in range(3):
        contexts.append(model.read_frame(state, latents[:, :, frame : frame + 1]))
    torch.testing.assert_close(torch.stack(contexts, 1), model.contexts(latents, prefix), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@torch.no_grad()
def test_a_frame_never_reaches_contexts_up_to_its_own(positions):
    model = tiny_nova(positions=positions)
    latents, prefix = torch.randn(1, 3, 4, 8, 8), model.text_prefix(*text_of(model, 1))
    before = model.contexts(latents, prefix)
    for frame in range(4):
        changed = latents.clone()
        changed[:, :, frame] += 1.0
        after = model.contexts(changed, prefix)
        assert torch.equal(after[:, : frame + 1], before[:, : frame + 1])
        assert frame == 3 or not torch.allclose(after[:, frame + 1], before[:, frame + 1])


@torch.no_grad()
def test_the_text_reaches_every_context_and_its_padding_none():
    model = tiny_nova()
    latents, (features, present) = torch.randn(1, 3, 4, 8, 8), text_of(model, 1)
    before = model.contexts(latents, model.text_prefix(features, present))
    padded = features.clone()
    padded[:, 1:] = 7.0  # the caption has one word
    assert torch.equal(model.contexts(latents, model.text_prefix(padded, present)), before)
    other = model.contexts(latents, model.text_prefix(features + 1, present))
    assert (other - before).abs().amax(dim=(0, 2, 3)).min() > 1e-4
    nothing = model.text_prefix(features, torch.zeros_like(present))
    torch.testing.assert_close(nothing, model.null_prefix(1))


@settings(max_examples=20, deadline=None)
@given(known=st.integers(0, 15), positions=st.sampled_from(["absolute", "rotary"]), seed=st.integers(0, 99))
@torch.no_grad()
def test_outputs_for_some_tokens_are_those_of_all_and_hidden_tokens_stay_hidden(known, positions, seed):
    model = tiny_nova(positions=positions)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(2, 16, generator=generator).argsort(1)
    tokens = patchify(torch.randn(2, 3, 1, 8, 8, generator=generator), 2)[:, 0]
    canvas = model.canvas(torch.randn(2, 4, 32, generator=generator))
    model.write(canvas, order[:, :known], gather_rows(tokens, order[:, :known]))
    every, rows = model.fill(canvas), order[:, known:]
    torch.testing.assert_close(model.fill(canvas, rows), gather_rows(every, rows), atol=1e-5, rtol=1e-4)
    assert torch.equal(canvas.known, order[:, :known])


@torch.no_grad()
def test_writing_in_two_parts_equals_writing_in_a_single_call():
    model = tiny_nova()
    context, ids, vectors = torch.randn(1, 4, 32), torch.tensor([[5, 2, 9]]), torch.randn(1, 3, 12)
    once, twice = model.canvas(context), model.canvas(context)
    model.write(once, ids, vectors)
    model.write(twice, ids[:, :1], vectors[:, :1])
    model.write(twice, ids[:, 1:], vectors[:, 1:])
    torch.testing.assert_close(model.fill(once), model.fill(twice))


def frame_in_progress(model: NOVA) -> tuple[Tensor, Tensor, Canvas]:
    """An order of tokens per sample, the tokens in that order, and an empty canvas."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(2, 16, generator=generator).argsort(1)
    tokens = gather_rows(patchify(torch.randn(2, 3, 1, 8, 8, generator=generator), 2)[:, 0], order)
    return order, tokens, model.canvas(torch.randn(2, 4, 32, generator=generator))


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize("norm_position", ["after", "before"])
@torch.no_grad()
def test_filling_in_part_is_exact_until_tokens_are_written(positions, norm_position):
    model = tiny_nova(positions=positions, norm_position=norm_position)
    order, tokens, canvas = frame_in_progress(model)
    for known in (0, 5):
        if known:
            model.write(canvas, order[:, :known], tokens[:, :known])
        first = model.fill(canvas, order[:, known : known + 2], remember=True)
        torch.testing.assert_close(first, model.fill(dataclasses.replace(canvas), order[:, known : known + 2]))
        for ids in (order[:, 6:9], order[:, 9:], order[:, 6:9]):
            expected = model.fill(dataclasses.replace(canvas), ids)
            torch.testing.assert_close(model.fill_in_part(canvas, ids), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@torch.no_grad()
def test_written_tokens_reach_the_outputs_of_filling_in_part(positions):
    """The outputs are closer to the exact ones than outputs that ignore all tokens since the refresh."""
    model = tiny_nova(positions=positions)
    order, tokens, canvas = frame_in_progress(model)
    empty = dataclasses.replace(canvas)
    model.fill(canvas, order[:, :3], remember=True)
    for start in range(0, 12, 3):
        ids = order[:, start + 3 : start + 6]
        before = model.fill(empty, ids)
        model.write(canvas, order[:, start : start + 3], tokens[:, start : start + 3])
        expected = model.fill(dataclasses.replace(canvas), ids)
        found = model.fill_in_part(canvas, ids)
        assert 0 < (found - expected).norm() < 0.7 * (before - expected).norm(), start
    again = model.fill(canvas, order[:, 15:], remember=True)
    torch.testing.assert_close(again, model.fill(dataclasses.replace(canvas), order[:, 15:]))


@torch.no_grad()
def test_filling_in_part_sees_the_tokens_written_last():
    model = tiny_nova()
    order, tokens = torch.arange(16)[None], torch.randn(1, 16, 12)
    outputs = []
    for change in (0.0, 1.0):
        canvas = model.canvas(torch.ones(1, 4, 32))
        model.fill(canvas, order[:, :4], remember=True)
        model.write(canvas, order[:, :4], tokens[:, :4])
        model.fill_in_part(canvas, order[:, 4:8])
        model.write(canvas, order[:, 4:8], tokens[:, 4:8] + change)
        outputs.append(model.fill_in_part(canvas, order[:, 8:10]))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


def batch_for(model: NOVA, frames: int = 4) -> NOVABatch:
    features, present = text_of(model, 2)
    return {"tokens": torch.randn(2, 3, frames, 8, 8), "caption": features, "caption_mask": present}


def test_the_loss_is_conditioned_on_the_motion_of_each_clip():
    model = tiny_nova()
    batch = batch_for(model)
    slow, fast = (
        model.loss({**batch, "motion": torch.full((2,), flow)}, torch.Generator().manual_seed(0))[0]
        for flow in (1.0, 9.0)
    )
    assert slow != fast


@pytest.mark.parametrize("diffusion", [None, DDPM(), Shortcut(8)])
@pytest.mark.parametrize("frames", [1, 4])
def test_losses_are_finite_and_reach_every_trained_parameter(diffusion, frames):
    changes = {} if diffusion is None else {"diffusion": diffusion}
    model = tiny_nova(**changes).train()
    model.config = dataclasses.replace(model.config, condition_dropout=0.0)
    loss, parts = model.loss(batch_for(model, frames), torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss) and loss.item() == pytest.approx(sum(p.item() for p in parts.values()), rel=1e-5)
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unseen = {"mixer", "temporal_encoder.patch_embedding"} if frames == 1 else set()
    assert all(any(name.startswith(prefix) for prefix in unseen) for name in idle)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize("norm_position", ["after", "before"])
def test_autocast_changes_the_loss_by_rounding_only(positions: str, norm_position: str):
    model = tiny_nova(positions=positions, norm_position=norm_position)
    batch = batch_for(model)
    plain, _ = model.loss(batch, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow, _ = model.loss(batch, torch.Generator().manual_seed(0))
    narrow.backward()
    torch.testing.assert_close(narrow.float(), plain, atol=0.02, rtol=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_first_frame_weighs_as_much_as_all_others():
    model = tiny_nova()
    draws = model.draw(torch.zeros(2, 3, 4, 8, 8), torch.Generator().manual_seed(1))
    latents, prefix = torch.randn(2, 3, 4, 8, 8), model.null_prefix(2)
    total, parts = model.loss_of(latents, prefix, draws)
    first, others = parts["first_frame_loss"], parts["other_frames_loss"]
    assert total.item() == pytest.approx(first.item() + others.item())
    assert 0.3 < first.item() / others.item() < 3  # means over frames, not sums


def test_captions_are_dropped_at_the_configured_rate():
    model = tiny_nova(condition_dropout=0.5)
    batch: NOVABatch = {
        "tokens": torch.zeros(400, 1),
        "caption": torch.ones(400, 5, 6),
        "caption_mask": torch.ones(400, 5).bool(),
    }
    prefix = model.batch_prefix(batch, torch.Generator().manual_seed(0))
    dropped = (prefix - model.null_prefix(1)).abs().amax(dim=(1, 2)) < 1e-5
    assert 150 < int(dropped.sum()) < 250


def test_classes_replace_text():
    model = tiny_nova(text_size=None, num_classes=7)
    assert model.text is None
    batch: NOVABatch = {"tokens": torch.randn(2, 3, 4, 8, 8), "label": torch.tensor([0, 6])}
    loss, _ = model.loss(batch, torch.Generator().manual_seed(0))
    assert torch.isfinite(loss)
    assert not torch.allclose(model.null_prefix(1), model.class_prefix(torch.tensor([6])))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latent_shape": (4, 6, 8)}, "multiples of 4"),
        ({"text_size": None}, "either text or classes"),
        ({"text_length": 600}, "text_length"),
        ({"mixer_rank": 0}, "mixer_rank"),
        ({"spatial_heads": 5}, "5 heads"),
        ({"positions": "rotary", "spatial_heads": 2}, "rotary"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def test_learned_tokens_and_tables_start_small():
    torch.manual_seed(0)
    model = NOVA(tiny_config(hidden_size=256, text_size=64))
    labelled = NOVA(tiny_config(hidden_size=256, text_size=None, num_classes=7))
    assert model.text is not None and labelled.classes is not None
    for value in (model.begin_of_video, model.mask_token, model.text.table, labelled.classes.weight):
        assert value.std().item() == pytest.approx(0.02, rel=0.2)
    assert any(parameter.any() for name, parameter in model.named_parameters() if "modulation" in name)
