"""FAR: frames see earlier frames only, and the cache gives what a whole pass gives."""

from dataclasses import replace

import pytest
import torch

from mutoscope.errors import UserError
from mutoscope.layers.draws import ClipGenerators
from mutoscope.models.base import ClipFacts
from mutoscope.models.far import FAR, FARBatch, FARConfig, FrameConditions
from tiny_far import LONG, batch_of, tiny_config, tiny_far


def test_a_changed_frame_reaches_its_own_and_later_frames_only():
    for changes in ({}, LONG):
        model = tiny_far(**changes)
        tokens, times = batch_of(model)["tokens"], torch.full((2, model.config.latent_shape[0]), 300.0)
        other = tokens.clone()
        other[:, :, -2] += 1.0
        with torch.no_grad():
            first, second = (model(x, times, FrameConditions()) for x in (tokens, other))
        same = [torch.equal(a, b) for a, b in zip(first.unbind(2), second.unbind(2), strict=True)]
        assert same[:-2] == [True] * (len(same) - 2) and same[-2:] == [False, False]


def test_distant_frames_of_a_long_model_are_coarse_and_have_no_output():
    model = tiny_far(**LONG)
    batch = batch_of(model)
    shapes: list[tuple[bool, int]] = []
    embed = model.embed

    def seen(latents: torch.Tensor, is_coarse: bool = False) -> torch.Tensor:
        tokens = embed(latents, is_coarse)
        shapes.append((is_coarse, tokens.shape[1] * tokens.shape[2]))
        return tokens

    model.embed = seen
    out = model(batch["tokens"], torch.zeros(2, 7), FrameConditions())
    assert shapes == [(True, 4 * 6), (False, 3 * 24)] and out.shape[2] == 3


@pytest.mark.parametrize("changes", [{}, LONG, {"num_classes": None}, {"action_size": None}])
def test_the_loss_has_a_gradient_for_every_weight_that_is_trained(changes):
    model = tiny_far(**changes)
    loss, parts = model.loss(batch_of(model), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and set(parts) == {"flow_loss"}
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_window_without_coarse_frames_leaves_no_weight_without_gradient():
    """Several processes wait for the gradients of all weights."""
    model = tiny_far(**LONG)
    loss, _ = model.loss(batch_of(model, frames=3), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_draws_mark_distant_frames_as_clean_and_stay_within_the_clip():
    model = tiny_far(**LONG)
    tokens = batch_of(model)["tokens"]
    lengths = set()
    for seed in range(40):
        draws = model.draw(tokens, torch.Generator().manual_seed(seed))
        count = draws.noise.shape[2]
        lengths.add(count)
        assert draws.start + count <= 7 and bool(draws.clean[:, : count - 3].all())
    assert lengths == {3, 4, 5, 6}  # the upper end is exclusive, as published


def test_corrupted_context_is_shown_in_clean_frames_only_and_changes_no_target():
    model = tiny_far()
    tokens = batch_of(model)["tokens"]
    draws = model.draw(tokens, torch.Generator().manual_seed(0))
    draws = replace(draws, clean=torch.arange(5).expand(2, 5) < 2)
    plain, corrupted = model.noisy(tokens, draws), model.noisy(tokens, draws, torch.zeros_like(tokens))
    assert not corrupted[0][:, :, :2].any() and torch.equal(corrupted[0][:, :, 2:], plain[0][:, :, 2:])
    assert torch.equal(corrupted[2], plain[2]) and torch.equal(corrupted[1], plain[1])


@pytest.mark.parametrize("changes", [{}, LONG], ids=["short", "long"])
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(changes):
    model = tiny_far(**changes)
    batch = batch_of(model)
    clips = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    whole, _ = model.loss(batch, ClipGenerators([g.clone_state() for g in clips], torch.Generator().manual_seed(3)))
    parts = []
    for i, generator in enumerate(clips):
        part: FARBatch = {name: value[i : i + 1] for name, value in batch.items()}  # pyright: ignore
        parts.append(model.loss(part, ClipGenerators([generator], torch.Generator().manual_seed(3)))[0])
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_clean_frames_have_no_part_in_the_loss():
    model = tiny_far()
    batch = batch_of(model)
    draws = model.draw(batch["tokens"], torch.Generator().manual_seed(0))
    clean = torch.zeros_like(draws.clean)
    clean[0] = True
    latents, _, target = model.noisy(batch["tokens"], replace(draws, clean=clean))
    assert torch.equal(latents[0], batch["tokens"][0])
    loss = model.frame_loss(torch.zeros_like(target), target, replace(draws, clean=clean))
    torch.testing.assert_close(loss, target[1].square().mean() / 2)


def test_one_action_is_a_row_of_the_table_none_is_unknown_and_several_are_their_mean():
    model = tiny_far(one_action=True)
    assert model.action_embedding is not None
    table = model.action_embedding.weight
    rows = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [torch.nan, torch.nan]]])
    found = model._action_vectors(rows, 1)[0]
    expected = torch.stack([table[1], table[2], table[:2].mean(0), table[2]])
    torch.testing.assert_close(found, expected)


def test_keys_are_added_where_several_may_be_pressed():
    model = tiny_far()
    assert model.action_embedding is not None
    table = model.action_embedding.weight
    found = model._action_vectors(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), 1)[0]
    torch.testing.assert_close(found, torch.stack([table[0] + table[1], torch.zeros(32)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_channels": (4, 6, 7)}, "rotary_channels must be even"),
        ({"hidden_size": 33}, "must divide hidden_size"),
        ({"patch_size": 4}, "multiples of the patch size 4"),
        ({"patch_size": 2, "coarse_patch_size": 1}, "coarse_patch_size must be a multiple"),
        ({"clean_share": 1.5}, "clean_share"),
        ({"window": 0}, "window"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def test_a_configuration_follows_the_clips():
    facts = ClipFacts((20, 8, 10), latent_channels=8, num_classes=4, action_size=3)
    short, long = tiny_config().fitted(facts), tiny_config(**LONG).fitted(facts)
    assert (short.latent_shape, short.latent_channels, short.num_classes, short.action_size) == ((20, 8, 10), 8, 4, 3)
    assert (short.window, long.window) == (20, 3)
    with pytest.raises(UserError, match="reads continuous latents"):
        tiny_config().fitted(ClipFacts((4, 4, 4), codebook_size=16))


def test_unknown_published_sizes_are_named():
    with pytest.raises(UserError, match="no FAR size 'S'"):
        FARConfig.paper("S")


def test_half_precision_gives_nearly_the_same():
    model = tiny_far(**LONG)
    tokens, times = batch_of(model)["tokens"], torch.full((2, 7), 500.0)
    with torch.no_grad():
        expected = model(tokens, times, FrameConditions())
        found = FAR(model.config).bfloat16()
        found.load_state_dict(model.bfloat16().state_dict())
        narrow = found.eval()(tokens, times, FrameConditions())
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
