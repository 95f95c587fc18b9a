"""Own rollouts as corrupted context: which frames change, under which conditions, and that a run stays reproducible."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.data.base import ClipSource
from mutoscope.errors import UserError
from mutoscope.families import FAMILIES
from mutoscope.families.base import Parts, Rollout
from mutoscope.families.magi import MAGI_FAMILY, MAGIGenerator, MAGIRequest, MAGISteering, roll_out
from mutoscope.layers.recorded import Steps
from mutoscope.models.magi import MAGI, MAGIBatch
from mutoscope.recipes.shapes import magi_shapes, magvit_shapes, nova_shapes
from mutoscope.runs.preflight import check_recipe
from mutoscope.runs.rollouts import drawn_context, own_context, rolls_out
from mutoscope.sampling.base import last_of
from mutoscope.sampling.frame_stream import FrameStreamSamplerConfig
from mutoscope.training.batches import Batch
from mutoscope.training.config import ModelRecipe, RolloutConfig, completed, to_json
from mutoscope.training.trainer import train_model
from mutoscope.training.update import CORRUPTION, generators
from tiny_magi import batch_of, tiny_config, tiny_index, tiny_magi, tiny_vae

FRAMES = 5
FAST: dict[str, Any] = {"num_decoding_steps": 2, "num_diffusion_steps": 2}
DISCRETE = {"codebook_parts": (8, 4), "latent_shape": (FRAMES, 4, 6)}
networks = pytest.mark.parametrize("changes", [{}, DISCRETE], ids=["continuous", "discrete"])


def recipe_with(
    changes: dict[str, Any] | None = None, loop: dict[str, Any] | None = None, **rollouts: Any
) -> ModelRecipe:
    recipe = magi_shapes()
    fields = {"share": 1.0, "start_step": 3, "context_frames": 3, **FAST, **rollouts}
    settings = {"num_steps": 2, "batch_size": 4, "log_every": 1, "checkpoint_every": 1, "num_workers": 0}
    settings |= {"ema_decay": None, "validation_share": 0.0, "sample_every": 100, **(loop or {})}
    return replace(
        recipe,
        model=tiny_config(**(changes or {})),
        loop=replace(recipe.loop, **settings),
        optim=replace(recipe.optim, warmup_steps=1),
        sampling={},
        rollouts=RolloutConfig(**fields),
    )


def corrupted(model: MAGI, batch: MAGIBatch, step: int = 3, seed: int = 0, **rollouts: Any) -> Batch:
    corrupt = own_context(recipe_with(**rollouts), MAGI_FAMILY, model)
    assert corrupt is not None
    return corrupt(cast(Batch, batch), step, torch.Generator().manual_seed(seed))


def changed_frames(batch: Batch) -> Tensor:
    """Which frames of which clips have another history than the recording: (b, f)."""
    tokens, history = cast(Tensor, batch["tokens"]), cast(Tensor, batch["history"])
    different = (tokens != history).movedim(-3, 1)  # (b, f, ...)
    return different.flatten(2).any(2)


# ------------------------------------------------------------------------------------------------ the step of training


@networks
def test_only_the_history_changes_and_only_after_the_context(changes: dict[str, Any]):
    model = tiny_magi(**changes).train()
    contexts = set()
    for seed in range(5):
        batch = batch_of(model, count=4)
        num_context = drawn_context(RolloutConfig(context_frames=3), torch.Generator().manual_seed(seed))
        found = corrupted(model, batch, seed=seed)
        changed = changed_frames(found)
        assert not changed[:, :num_context].any() and changed[:, num_context:].any(1).all()
        for name, value in batch.items():
            assert found[name] is value, name  # targets and conditions are those of the recording
        contexts.add(num_context)
    assert len(contexts) > 1
    assert model.training


def test_before_the_start_step_the_batch_is_untouched():
    model = tiny_magi().train()
    batch = batch_of(model)
    assert corrupted(model, batch, step=2) is batch
    assert "history" in corrupted(model, batch, step=3)


def test_updates_outside_the_share_are_untouched():
    model = tiny_magi()
    batch = batch_of(model)
    touched = [corrupted(model, batch, step=step, share=0.25, start_step=0) is not batch for step in range(8)]
    assert touched == [False, False, False, True] * 2


def test_the_frame_after_a_temporal_gap_stays_that_of_the_recording():
    model = tiny_magi()
    batch = batch_of(model, count=4)
    batch["history_only"] = torch.zeros(4, FRAMES, dtype=torch.bool)
    batch["history_only"][::2, 1] = True
    for seed in range(4):
        changed = changed_frames(corrupted(model, batch, seed=seed, context_frames=1))
        assert not changed[:, :2].any() and changed[:, 2:].any(1).all()


def test_a_rollout_starts_from_clean_frames_where_the_data_corrupted_the_history_already():
    model = tiny_magi()
    batch = batch_of(model)
    plain = cast(Tensor, corrupted(model, batch)["history"])
    batch["history"] = batch["tokens"] + 1
    torch.testing.assert_close(cast(Tensor, corrupted(model, batch)["history"]), plain, rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1), start=st.integers(0, 10_000))
def test_a_share_of_the_updates_rolls_out_evenly_spread(share: float, start: int):
    found = sum(rolls_out(step, share) for step in range(start, start + 200))
    assert abs(found - 200 * share) <= 1
    assert all(rolls_out(step, 1.0) and not rolls_out(step, 0.0) for step in range(start, start + 5))


def test_the_number_of_context_frames_is_drawn_evenly():
    config = RolloutConfig(context_frames=4)
    contexts = [drawn_context(config, torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert set(contexts) == {1, 2, 3, 4}
    assert all(60 < contexts.count(number) < 140 for number in set(contexts))


def test_rollouts_are_a_function_of_seed_and_step():
    model = tiny_magi()

    def history(seed: int, step: int) -> Tensor:
        draws = generators(seed, step, CORRUPTION, range(2), torch.device("cpu"))
        torch.rand(5)  # the global generator has no part in it
        corrupt = own_context(recipe_with(share=1.0), MAGI_FAMILY, model)
        assert corrupt is not None
        return cast(Tensor, corrupt(cast(Batch, batch_of(model)), step, draws)["history"])

    first = history(0, 5)
    assert torch.equal(first, history(0, 5))
    assert not torch.equal(first, history(0, 6)) and not torch.equal(first, history(1, 5))


@networks
def test_a_clip_is_rolled_out_alike_whatever_clips_are_beside_it(changes: dict[str, Any]):
    model = tiny_magi(**changes)
    corrupt = own_context(recipe_with(share=1.0), MAGI_FAMILY, model)
    assert corrupt is not None
    batch = cast(dict[str, Tensor], batch_of(model, count=4))

    def history(clips: range) -> Tensor:
        part = {name: value[clips.start : clips.stop] for name, value in batch.items()}
        return cast(Tensor, corrupt(part, 5, generators(0, 5, CORRUPTION, clips, torch.device("cpu")))["history"])

    apart = torch.cat([history(range(3)), history(range(3, 4))])
    torch.testing.assert_close(history(range(4)), apart, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------- conditions


@networks
@pytest.mark.parametrize("num_context", [1, 3])
def test_a_rollout_is_what_the_model_generates_from_the_same_conditions(changes: dict[str, Any], num_context: int):
    """Labels, intervals and actions, each row of which leads to the next frame."""
    model = tiny_magi(**changes)
    batch = batch_of(model)
    batch["interval"] = torch.full((2,), 3)
    options = FrameStreamSamplerConfig(**FAST)
    own = roll_out(model, Rollout(cast(Batch, batch), num_context, FAST, torch.Generator().manual_seed(7)))
    generator = MAGIGenerator.__new__(MAGIGenerator)  # the tokenizer of discrete tokens has no part in it
    if not changes:
        generator = MAGIGenerator(Parts(tiny_vae(), model, tiny_index(model), torch.device("cpu")))
    else:
        generator.model = generator.network = model
        generator.device, generator.steps = torch.device("cpu"), Steps()
    request = MAGIRequest(
        generator=generator,
        task="action-conditional",
        num_samples=2,
        seed=0,
        num_steps=0,
        num_frames=FRAMES,
        sampling=FAST,
        sampler=options,
        labels=batch["label"],
        num_latent_frames=FRAMES,
        interval=3,
        actions=batch["actions"],
    )
    steering = MAGISteering(generator, request, slice(0, 2))
    context = batch["tokens"][..., :num_context, :, :]
    events = generator.decode(request, slice(0, 2), context, steering, torch.Generator().manual_seed(7))
    torch.testing.assert_close(own, last_of(events).draft(), rtol=0, atol=0)
    torch.testing.assert_close(own[..., :num_context, :, :], context, rtol=0, atol=0)


def test_every_condition_of_a_clip_reaches_its_rollout():
    model = tiny_magi(text_size=6, text_length=4)
    batch = cast(dict[str, Tensor], batch_of(model))

    def rolled(**changes: Tensor) -> Tensor:
        rollout = Rollout({**batch, **changes}, 1, FAST, torch.Generator().manual_seed(0))
        return roll_out(model, rollout)

    plain, actions = rolled(), batch["actions"].clone()
    actions[:, 1] += 1  # done in frame 1, leads to frame 2
    different = (rolled(actions=actions) != plain).transpose(1, 2).flatten(2).any(2)
    assert different.tolist() == [[False, False, True, True, True]] * 2
    last = batch["actions"].clone()
    last[:, -1] += 1  # leads to no frame of the clip
    assert torch.equal(rolled(actions=last), plain)
    others = {"label": batch["label"] + 1, "interval": batch["interval"] + 5, "caption": batch["caption"] + 1}
    for name, value in others.items():
        assert not torch.equal(rolled(**{name: value})[1], plain[1]), name


# -------------------------------------------------------------------------------------------------------------- a run


class Latents(ClipSource[Any]):
    """Eight clips of random latents with labels and actions."""

    num_clips = 8

    def __init__(self, model: MAGI) -> None:
        self.clips = cast(dict[str, Tensor], batch_of(model, count=8))

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {name: value[list(indices)] for name, value in self.clips.items()}


def trained(recipe: ModelRecipe, out: Path, resume: bool = False) -> dict[str, Tensor]:
    model = tiny_magi()
    corrupt = own_context(recipe, MAGI_FAMILY, model)
    source = Latents(model)
    result = train_model(model, recipe, source, out, corrupt=corrupt, resume=resume, trackers=())
    assert result.finished
    return result.network.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_without_a_share_a_run_is_what_it_was_before_rollouts_existed(tmp_path: Path):
    plain = recipe_with(share=0.0, start_step=0)
    assert own_context(plain, MAGI_FAMILY, tiny_magi()) is None
    default = replace(plain, rollouts=RolloutConfig())
    without = {name: value for name, value in to_json(default).items() if name != "rollouts"}
    assert completed(without, default) == to_json(default)  # saved before the field existed
    weights = trained(plain, tmp_path / "a")
    assert same(weights, trained(default, tmp_path / "b"))
    assert not same(weights, trained(recipe_with(share=1.0, start_step=0), tmp_path / "c"))


def test_a_resumed_run_with_rollouts_equals_an_uninterrupted_one(tmp_path: Path):
    recipe = recipe_with(start_step=0)
    whole = trained(recipe, tmp_path / "whole")
    trained(recipe, tmp_path / "cut")
    (tmp_path / "cut/checkpoints/step-00000002.pt").unlink()
    assert same(whole, trained(recipe, tmp_path / "cut", resume=True))


def test_validation_never_sees_rollouts_and_training_always_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[bool, bool, bool]] = []
    loss = MAGI.loss

    def recorded(self: MAGI, batch: MAGIBatch, generator: torch.Generator):
        seen.append((torch.is_grad_enabled(), self.training, "history" in batch))
        return loss(self, batch, generator)

    monkeypatch.setattr(MAGI, "loss", recorded)
    loop = {"validation_share": 0.25, "validate_every": 1}
    trained(recipe_with(loop=loop, share=1.0, start_step=0), tmp_path)
    training, validation = ([row for row in seen if row[0] is grad] for grad in (True, False))
    assert len(training) == 2 and set(training) == {(True, True, True)}
    assert validation and not any(history for _, _, history in validation)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("recipe", [magvit_shapes(), nova_shapes()], ids=lambda recipe: recipe.name)
def test_families_that_do_not_continue_clips_frame_by_frame_are_refused(recipe: ModelRecipe):
    with pytest.raises(UserError, match=r"rollouts.share: models of \w+ do not continue clips frame by frame"):
        check_recipe(replace(recipe, rollouts=RolloutConfig(share=0.5)))
    check_recipe(replace(recipe, rollouts=RolloutConfig(start_step=9)))


def test_a_family_streams_or_has_no_rollouts():
    for family in FAMILIES.values():
        model = cast(Any, object())
        assert family.capabilities.endless == (family.rolling_out(model) is not None), family.name


def test_contexts_as_long_as_the_clip_are_refused():
    recipe = magi_shapes()
    frames = recipe.model.latent_shape[0]
    fits = replace(recipe, rollouts=RolloutConfig(share=0.5, context_frames=frames - 1))
    check_recipe(fits)
    with pytest.raises(UserError, match=f"context_frames is {frames}, and clips have {frames} latent frames"):
        check_recipe(replace(fits, rollouts=replace(fits.rollouts, context_frames=frames)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("share", 1.5), ("share", -0.1), ("start_step", -1), ("context_frames", 0), ("num_diffusion_steps", 0)],
)
def test_impossible_settings_are_refused(field: str, value: Any):
    with pytest.raises(UserError, match=field):
        RolloutConfig(**{field: value})
