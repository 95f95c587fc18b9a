"""MAGI: a frame sees the same in training and in sampling."""

from dataclasses import replace

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.layers.masks import frame_history_mask, frame_slots, interleaved, visible_frames
from mutoscope.layers.shortcut import Shortcut
from mutoscope.models.magi import MAGI, FrameConditions, MAGIBatch, MAGIConfig, TrainingDraws
from mutoscope.models.magi.network import Reach
from tiny_magi import batch_of, frame_conditions, tiny_config, tiny_magi

VARIANTS = {
    "complete": {},
    "given": {"num_given": 2},
    "window": {"window": 3},
    "few steps": {"diffusion": Shortcut(8)},
    "relative": {"time_positions": "relative", "window": 3},
    "relative, first kept": {"time_positions": "relative", "window": 2, "keeps_first": True, "noise_mode": "channel"},
    "relative, all": {"time_positions": "relative", "clean_first_frame": True},
    "channel noise": {"noise_mode": "channel"},
    "text": {"text_size": 6},
    "discrete": {"codebook_parts": (8, 4), "latent_shape": (5, 4, 6)},
    "change": {"predicts_change": True, "diffusion": LearnedVariance(prediction="sample")},
    "change, given": {"predicts_change": True, "diffusion": LearnedVariance(prediction="sample"), "num_given": 2},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def drawn(model: MAGI, tokens: torch.Tensor, seed: int = 1) -> TrainingDraws:
    """Draws without noise and without hidden conditions, as sampling has none."""
    draws = model.draw(tokens, torch.Generator().manual_seed(seed))
    never = torch.zeros_like(draws.drop_condition)
    return replace(draws, level=torch.zeros_like(draws.level), drop_condition=never, drop_history=never)


def half_masked(draws: TrainingDraws) -> TrainingDraws:
    return replace(draws, mask_ratio=torch.full_like(draws.mask_ratio, 0.5))


@torch.no_grad()
def trained_outputs(model: MAGI, batch: MAGIBatch, draws: TrainingDraws) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = model.to_tokens(batch["tokens"])
    return model(tokens, model.batch_conditions(batch, draws), draws, batch.get("length"))


@pytest.mark.parametrize("rolls", [False, True], ids=["all frames", "rolling cache"])
@each_variant
def test_a_masked_frame_is_computed_in_training_as_in_sampling(changes, rolls):
    model = tiny_magi(**changes)
    if rolls and not model.config.is_relative:
        with pytest.raises(ValueError, match="do not roll"):
            model.reserve_rolling(2)
        return
    batch = batch_of(model)
    tokens = model.to_tokens(batch["tokens"])
    draws = drawn(model, tokens)
    z, hidden = trained_outputs(model, batch, draws)
    conditions, first = model.batch_conditions(batch, draws), model.config.num_given
    cache = model.reserve_rolling(len(tokens)) if rolls else model.reserve(len(tokens), 5)
    with torch.no_grad():
        for frame in range(5):
            if frame >= first:
                copy, own = frame - first, frame_conditions(conditions, frame)
                previous = tokens[:, frame - 1] if frame else torch.zeros_like(tokens[:, 0])
                previous = previous if model.config.predicts_change else None
                found = model.restore(cache, tokens[:, frame], hidden[:, copy], own, frame, previous=previous)
                torch.testing.assert_close(found, z[:, copy], atol=1e-5, rtol=1e-5)
            model.observe(cache, tokens[:, frame : frame + 1], frame_conditions(conditions, frame), frame)


def test_frames_read_one_by_one_or_together_fill_the_cache_equally():
    model = tiny_magi()
    batch = batch_of(model)
    tokens = model.to_tokens(batch["tokens"])
    conditions = model.batch_conditions(batch, drawn(model, tokens))
    together, one_by_one = model.reserve(2, 5), model.reserve(2, 5)
    with torch.no_grad():
        model.observe(together, tokens, conditions, 0)
        for frame in range(5):
            model.observe(one_by_one, tokens[:, frame : frame + 1], frame_conditions(conditions, frame), frame)
    torch.testing.assert_close(together.keys, one_by_one.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.values, one_by_one.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, VARIANTS["change"]], ids=["plain", "change"])
def test_a_changed_frame_reaches_later_frames_only(changes):
    model = tiny_magi(**changes)
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    draws = replace(draws, mask_ratio=torch.ones_like(draws.mask_ratio))  # a copy that shows nothing of its own frame
    before, _ = trained_outputs(model, batch, draws)
    changed: MAGIBatch = {**batch, "tokens": batch["tokens"].clone()}
    changed["tokens"][:, :, 2] += 1.0
    after, _ = trained_outputs(model, changed, draws)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_a_changed_masked_copy_changes_its_own_outputs_only():
    model = tiny_magi()
    batch = batch_of(model)
    draws = half_masked(drawn(model, model.to_tokens(batch["tokens"])))
    before, _ = trained_outputs(model, batch, draws)
    order = draws.order.clone()
    order[:, 2] = order[:, 2].flip(-1)
    after, _ = trained_outputs(model, batch, replace(draws, order=order))
    assert torch.equal(before[:, [0, 1, 3, 4]], after[:, [0, 1, 3, 4]])
    assert not torch.allclose(before[:, 2], after[:, 2])


@pytest.mark.parametrize("num_given", [0, 1, 3])
def test_layouts_of_the_sequence_give_equal_outputs(num_given: int):
    """All frames and copies, without the last frame, and every copy after its frame."""
    model = tiny_magi()
    tokens = model.to_tokens(batch_of(model)["tokens"])
    conditions = FrameConditions(torch.ones(2, dtype=torch.int64))
    embedded = model.embed_tokens(tokens)
    outputs = []
    for trimmed, shuffled in ((False, False), (True, False), (False, True)):
        frames, masked = frame_slots(5, num_given, trimmed)
        order = interleaved(frames, masked) if shuffled else torch.arange(len(frames))
        frames, masked = frames[order], masked[order]
        level = torch.zeros(2, len(frames), dtype=torch.int64)
        with torch.no_grad():
            h = model.embed_slots(embedded[:, frames], conditions, frames, masked, level)
            outputs.append(model.run_blocks(h, Reach(frame_history_mask(frames, masked)))[:, masked])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[0], outputs[2], atol=1e-5, rtol=1e-5)


def test_padded_frames_change_nothing():
    model = tiny_magi()
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    batch["length"] = torch.tensor([3, 5])
    before, _ = trained_outputs(model, batch, draws)
    batch["tokens"][0, :, 3:] = 9.0
    after, _ = trained_outputs(model, batch, draws)
    torch.testing.assert_close(before[0, :3], after[0, :3], atol=0, rtol=0)
    loss, _ = model.loss(batch, torch.Generator().manual_seed(0))
    batch["tokens"][0, :, 4:] = -9.0
    assert torch.equal(loss, model.loss(batch, torch.Generator().manual_seed(0))[0])


@pytest.mark.parametrize("changes", [{}, {"num_given": 1}, {"teacher_forcing": "masked"}])
def test_frames_that_are_history_only_are_no_targets(changes, monkeypatch):
    model, counts = tiny_magi(**changes, token_mask_ratio=1.0), []
    batch = batch_of(model)
    batch["tokens"] = torch.arange(5.0)[None, None, :, None, None].expand_as(batch["tokens"])  # the frame's number

    def watched(z, targets, *draws):
        counts.append(targets[:, 0].long().bincount(minlength=5).tolist())
        return z.sum(), {}

    monkeypatch.setattr(model, "token_loss", watched)
    model.loss(batch, torch.Generator().manual_seed(0))
    batch["history_only"] = torch.tensor([[False, True, False, False, False], [False, True, False, True, False]])
    model.loss(batch, torch.Generator().manual_seed(0))
    every, fewer = counts
    assert every[1] == 12
    assert fewer == [every[0], 0, every[2], 6, every[4]]


def test_corrupted_history_reaches_later_frames_only_and_is_never_a_target(monkeypatch: pytest.MonkeyPatch):
    model = tiny_magi()
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    conditions, tokens = model.batch_conditions(batch, draws), model.to_tokens(batch["tokens"])
    corrupted = tokens.clone()
    corrupted[:, 2] += 1
    with torch.no_grad():
        (plain, _), (changed, _), (same, _) = (
            model(tokens, conditions, draws, history=history) for history in (None, corrupted, tokens)
        )
    assert torch.equal(plain, same) and torch.equal(plain[:, :3], changed[:, :3])
    assert ((plain - changed)[:, 3:].abs().amax((0, 2, 3)) > 0).all()
    targets = []
    monkeypatch.setattr(model, "token_loss", lambda z, target, *draws: (targets.append(target), (z.sum(), {}))[1])
    model.loss(batch, torch.Generator().manual_seed(0))
    batch["history"] = model.to_frames(corrupted)
    model.loss(batch, torch.Generator().manual_seed(0))
    assert torch.equal(*targets)


def test_masked_teacher_forcing_without_masks_is_a_causal_transformer_over_frames():
    model = tiny_magi(teacher_forcing="masked")
    batch = batch_of(model)
    tokens = model.to_tokens(batch["tokens"])
    draws = drawn(model, tokens)
    draws = replace(draws, mask_ratio=torch.zeros_like(draws.mask_ratio))
    z, hidden = trained_outputs(model, batch, draws)
    assert not hidden.any()
    conditions = model.batch_conditions(batch, draws)
    frames, masked = torch.arange(5), torch.ones(5, dtype=torch.bool)
    with torch.no_grad():
        h = model.embed_slots(
            model.embed_tokens(tokens), conditions, frames, masked, torch.zeros(2, 5, dtype=torch.int64)
        )
        causal = model.run_blocks(h, Reach(visible_frames(frames, frames)))
    assert torch.equal(z, causal)


def test_masked_teacher_forcing_shows_masked_history_in_training():
    model = tiny_magi(teacher_forcing="masked")
    batch = batch_of(model)
    draws = half_masked(drawn(model, model.to_tokens(batch["tokens"])))
    before, _ = trained_outputs(model, batch, draws)
    order = draws.order.clone()
    order[:, 1] = order[:, 1].flip(-1)
    after, _ = trained_outputs(model, batch, replace(draws, order=order))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_the_first_interval_takes_the_first_row():
    model = tiny_magi()
    batch: MAGIBatch = {**batch_of(model), "interval": torch.ones(2, dtype=torch.int64)}
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    before, _ = trained_outputs(model, batch, draws)
    with torch.no_grad():
        model.interval_embedding.weight[1:] += 1.0
    assert torch.equal(before, trained_outputs(model, batch, draws)[0])
    with torch.no_grad():
        model.interval_embedding.weight[0] += 1.0
    assert not torch.allclose(before, trained_outputs(model, batch, draws)[0])


@pytest.mark.parametrize("changes", [{}, {"codebook_parts": (8, 4)}], ids=["continuous", "discrete"])
def test_level_0_adds_nothing_and_others_add_noise(changes):
    model = tiny_magi(**changes)
    tokens = model.to_tokens(batch_of(model)["tokens"])
    draws = model.draw(tokens, torch.Generator().manual_seed(0))
    assert torch.equal(model.add_noise(tokens, replace(draws, level=torch.zeros_like(draws.level))), tokens)
    noisy = model.add_noise(tokens, replace(draws, level=torch.full_like(draws.level, 5)))
    if model.config.is_discrete:
        share = (noisy != tokens).any(-1).float().mean()
        assert 0.02 < share < 0.4
    else:
        torch.testing.assert_close(noisy - tokens, 0.7 * draws.noise)


def test_noise_reaches_history_and_never_the_visible_tokens_of_the_frame_in_progress():
    model = tiny_magi()
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    clean, _ = trained_outputs(model, batch, draws)
    noisy, _ = trained_outputs(model, batch, replace(draws, level=torch.full_like(draws.level, 3)))
    assert torch.equal(clean[:, 0], noisy[:, 0])
    assert not torch.allclose(clean[:, 1], noisy[:, 1])


def test_clean_first_frame_excludes_the_first_frame_from_noise():
    model = tiny_magi(clean_first_frame=True)
    tokens = model.to_tokens(batch_of(model)["tokens"])
    draws = replace(drawn(model, tokens), level=torch.full((2,), 3))
    noisy = model.add_noise(tokens, draws)
    assert torch.equal(noisy[:, 0], tokens[:, 0])
    assert (noisy != tokens)[:, 1:].all()


@pytest.mark.parametrize("clean", [True, False])
def test_noisy_history_is_read_in_sampling_as_in_training(clean):
    model = tiny_magi(clean_first_frame=clean)
    batch = batch_of(model)
    tokens = model.to_tokens(batch["tokens"])
    draws = replace(drawn(model, tokens), level=torch.full((2,), 3))
    z, hidden = trained_outputs(model, batch, draws)
    noisy, conditions = model.add_noise(tokens, draws), model.batch_conditions(batch, draws)
    cache = model.reserve(len(tokens), 5)
    for frame in range(5):
        own = frame_conditions(conditions, frame)
        with torch.no_grad():
            found = model.restore(cache, tokens[:, frame], hidden[:, frame], own, frame)
            model.observe(cache, noisy[:, frame : frame + 1], own, frame, level=3)
        torch.testing.assert_close(found, z[:, frame], atol=1e-5, rtol=1e-5)


def test_an_action_reaches_its_own_frame_and_later_ones():
    model = tiny_magi()
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    before, _ = trained_outputs(model, batch, draws)
    assert "actions" in batch
    changed: MAGIBatch = {**batch, "actions": batch["actions"].clone()}
    changed["actions"][:, 1] += 1.0  # done in frame 1, leads to frame 2
    after, _ = trained_outputs(model, changed, draws)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_hidden_conditions_are_the_same_as_none():
    model = tiny_magi(text_size=6)
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    dropped = replace(draws, drop_condition=torch.ones_like(draws.drop_condition))
    found, _ = trained_outputs(model, batch, dropped)
    assert "interval" in batch
    bare: MAGIBatch = {"tokens": batch["tokens"], "interval": batch["interval"]}
    torch.testing.assert_close(found, trained_outputs(model, bare, draws)[0])


def test_actions_are_kept_if_they_are_no_condition():
    model = tiny_magi(text_size=6, drop_actions=False)
    batch = batch_of(model)
    draws = drawn(model, model.to_tokens(batch["tokens"]))
    dropped = replace(draws, drop_condition=torch.ones_like(draws.drop_condition))
    found, _ = trained_outputs(model, batch, dropped)
    assert "interval" in batch and "actions" in batch
    bare: MAGIBatch = {"tokens": batch["tokens"], "interval": batch["interval"], "actions": batch["actions"]}
    torch.testing.assert_close(found, trained_outputs(model, bare, draws)[0])


def test_a_blind_sample_equals_one_with_an_empty_history():
    model = tiny_magi(history_dropout=0.5)
    batch = batch_of(model)
    tokens = model.to_tokens(batch["tokens"])
    conditions = model.batch_conditions(batch, drawn(model, tokens))
    own, hidden = frame_conditions(conditions, 2), torch.ones(2, 6, dtype=torch.bool)
    assert conditions.actions is not None
    cache = model.reserve(2, 5)
    with torch.no_grad():
        alone = model.restore(cache, tokens[:, 2], hidden, own, 2)
        model.observe(cache, tokens[:, :2], replace(conditions, actions=conditions.actions[:, :2]), 0)
        blind = model.restore(cache, tokens[:, 2], hidden, own, 2, torch.tensor([True, False]))
    torch.testing.assert_close(blind[0], alone[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(blind[1], alone[1])
    draws = drawn(model, tokens)
    dropped, _ = trained_outputs(model, batch, replace(draws, drop_history=torch.tensor([True, False])))
    changed: MAGIBatch = {**batch, "tokens": batch["tokens"] + torch.randn(1, 1, 5, 1, 1)}
    changed["tokens"][:, :, 4] = batch["tokens"][:, :, 4]
    other, _ = trained_outputs(model, changed, replace(draws, drop_history=torch.tensor([True, False])))
    assert torch.equal(dropped[0, 4], other[0, 4])
    assert not torch.allclose(dropped[1, 4], other[1, 4])


def test_mask_ratios_differ_between_frames_and_are_between_07_and_1():
    model = tiny_magi(latent_shape=(5, 20, 20))
    tokens = model.to_tokens(torch.zeros(8, 3, 5, 20, 20))
    draws = model.draw(tokens, torch.Generator().manual_seed(0))
    assert draws.mask_ratio.min() >= 0.7
    assert draws.mask_ratio.max() <= 1.0
    assert draws.mask_ratio.unique().numel() == 40
    _, hidden = model(tokens, FrameConditions(torch.ones(8, dtype=torch.int64)), draws)
    assert torch.equal(hidden.sum(-1), torch.ceil(draws.mask_ratio * 100).long())


@pytest.mark.parametrize("changes", [{}, {"codebook_parts": (8, 4)}], ids=["continuous", "discrete"])
def test_tokens_and_frames_are_each_others_inverse(changes):
    model = tiny_magi(**changes)
    frames = batch_of(model)["tokens"]
    assert torch.equal(model.to_frames(model.to_tokens(frames)), frames)


@each_variant
@pytest.mark.parametrize("teacher_forcing", ["complete", "masked"])
def test_every_parameter_learns(changes, teacher_forcing):
    if changes.get("predicts_change") and teacher_forcing == "masked":
        return  # refused, see below
    model = tiny_magi(**changes, teacher_forcing=teacher_forcing).train()
    loss, parts = model.loss(batch_of(model), torch.Generator().manual_seed(0))
    loss.backward()
    assert parts
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # Masked teacher forcing has the same network and uses one row of its role table only.
    assert not unused


@pytest.mark.parametrize(
    ("sizes", "transformer", "head"),
    [
        ((768, 12, 12, 6, 1024), 113e6, 36e6),
        ((1024, 16, 16, 8, 1280), 268e6, 72e6),
        ((1280, 20, 16, 12, 1536), 524e6, 151e6),
    ],
)
def test_sizes_are_about_those_of_mar(sizes, transformer, head):
    with torch.device("meta"):
        model = MAGI(MAGIConfig(*sizes))
    in_head = sum(p.numel() for p in model.head.parameters())
    assert in_head == pytest.approx(head, rel=0.01)
    assert sum(p.numel() for p in model.parameters()) - in_head == pytest.approx(transformer, rel=0.015)


@pytest.mark.parametrize(
    "changes", [{"num_heads": 3}, {"patch_size": 3}, {"num_given": 5}, {"window": 0}, {"token_mask_ratio": 1.5}]
)
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(UserError):
        tiny_config(**changes)


def test_initial_weights_follow_mar():
    torch.manual_seed(0)
    model = MAGI(tiny_config(text_size=6, hidden_size=128, num_heads=4, head_size=96))
    drawn_small = {"interval_embedding", "noise_embedding", "class_embedding", "role_embedding", "head_position"}
    for name, parameter in model.named_parameters():
        kind = name.removesuffix(".weight")
        if "modulation.weight" in name or name in ("head.output.weight",) or name.endswith("text.output.weight"):
            assert not parameter.any(), name  # blocks of the head and captions change nothing at first
        elif kind in drawn_small or (name.startswith("head.time_embedding") and parameter.ndim == 2):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
        elif parameter.ndim == 2:  # Xavier uniform
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert parameter.abs().max() <= bound and parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        elif name.endswith("bias"):
            assert not parameter.any(), name


def test_a_head_that_knows_the_change_has_no_error():
    """The prediction is the difference to the frame before as later frames see it: with its noise, zeros before all."""
    model = tiny_magi(**VARIANTS["change"])
    tokens = model.to_tokens(batch_of(model)["tokens"])
    draws = replace(drawn(model, tokens), level=torch.tensor([0, 5]))
    previous = model.previous_tokens(tokens, draws)
    assert torch.equal(previous[:, 0], torch.zeros_like(tokens[:, 0]))
    assert torch.equal(previous[0, 1:], tokens[0, :-1]) and not torch.equal(previous[1, 1:], tokens[1, :-1])
    change = (tokens - previous)[:, 1].flatten(0, 1)

    class Knows(torch.nn.Module):
        def condition(self, z: torch.Tensor) -> torch.Tensor:
            return z

        def time(self, steps: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
            return steps

        def forward(self, x: torch.Tensor, condition: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            repeat = len(x) // len(change)
            return torch.cat([change.repeat(repeat, 1), torch.zeros_like(x)], dim=-1)

    model.head = Knows()  # type: ignore[assignment]
    z = torch.zeros(len(change), model.config.hidden_size)
    steps, weights = torch.randint(1000, (len(z), 4)), torch.full((len(z),), 1 / len(z))
    noise = torch.randn(len(z), 4, tokens.shape[-1])
    rows = tokens[:, 1].flatten(0, 1), weights, steps, noise, previous[:, 1].flatten(0, 1)
    _, metrics = model.token_loss(z, *rows)
    assert metrics["diffusion_loss"] < 1e-10


@pytest.mark.parametrize(
    "changes",
    [
        {"predicts_change": True},
        {"predicts_change": True, "codebook_parts": (8, 4)},
        {**VARIANTS["change"], "teacher_forcing": "masked"},
    ],
)
def test_only_samples_of_continuous_tokens_are_predicted_as_changes(changes):
    with pytest.raises(UserError, match="predicts_change is for"):
        tiny_config(**changes)
