"""The recipes of neural Doom: their sizes fit each other, and they adapt to any recording with actions."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("av", reason="PyAV is needed to read videos")
pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")

from dot_recordings import NAMES, dot_episode, write_lerobot
from mutoscope.commands.recipes import recipes, summary
from mutoscope.data.sources.recorded_data import LeRobotData
from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.models.magi import MAGIConfig
from mutoscope.recipes.catalog import RECIPES, RECORDED_BY
from mutoscope.recipes.doom import magi_doom, magi_doom_vq, vae_doom, vq_doom
from mutoscope.runs.checks import check_model_fits
from mutoscope.runs.networks import tokenizer_stage, untrained_spec
from mutoscope.runs.plan import planned
from mutoscope.runs.preflight import count_parameters
from mutoscope.runs.rollouts import check_rollouts
from mutoscope.training.config import ModelRecipe
from mutoscope.worlds.catalog import PLAYED
from mutoscope.worlds.doom import SCENARIOS

TASKS = ("push", "lift", "turn")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    episodes = [dot_episode(seed, 40, TASKS[seed % 3]) for seed in range(6)]
    return write_lerobot(tmp_path_factory.mktemp("dots"), episodes, embedded=True)


def test_the_models_sizes_are_those_of_its_tokenizer_and_of_its_scenarios():
    recipe, first = magi_doom(), vae_doom()
    spec = untrained_spec(first)
    assert spec.per_frame and spec.spatial_stride == 8 and recipe.tokenizer == first.name
    check_model_fits(recipe, spec)
    check_rollouts(recipe, family_of(recipe.model))
    family_of(recipe.model).check_sampling(recipe.model, recipe.sampling, {})
    assert recipe.model.num_classes == len(PLAYED)
    assert {tuple(SCENARIOS[name].keys) for name in PLAYED} == {("left", "right", "forward", "attack")}
    assert recipe.model.action_size == 4 and set(recipe.task_weights) <= set(recipe.model.tasks)
    assert abs(count_parameters(first) / 2.0e6 - 1) < 0.05  # as its documentation says


def test_the_discrete_twins_fit_each_other():
    recipe, spec = magi_doom_vq(), untrained_spec(vq_doom())
    assert spec.vocab_size == recipe.model.codebook_size == 64_000
    check_model_fits(recipe, spec)
    check_rollouts(recipe, family_of(recipe.model))
    family_of(recipe.model).check_sampling(recipe.model, recipe.sampling, {})


def test_its_tokenizer_is_trained_first_on_the_same_recording(recording: Path):
    recipe = magi_doom()
    first = tokenizer_stage(replace(recipe, data=replace(recipe.data, path=str(recording))))
    assert first is not None and first.tokenizer == vae_doom().tokenizer
    assert isinstance(first.data, LeRobotData) and first.data.path == str(recording)
    assert (first.data.num_frames, first.data.max_gap) == (2, 0)  # single frames need no gaps


def test_classes_actions_and_rate_are_those_of_the_recording(recording: Path):
    recipe = magi_doom()
    recipe = replace(recipe, data=replace(recipe.data, path=str(recording)))
    plan = planned(recipe, other_data=True, kept=(), machine="cpu")
    fitted = plan.recipe
    assert isinstance(fitted, ModelRecipe) and isinstance(fitted.model, MAGIConfig)
    assert (fitted.model.num_classes, fitted.model.action_size, fitted.data.fps) == (3, len(NAMES), 10)
    assert (fitted.data.height, fitted.data.width) == (72, 96) and fitted.rollouts == recipe.rollouts
    assert "3 classes (push, lift, turn)" in plan.found and "3 actions (dx, dy, press)" in plan.found


@pytest.mark.parametrize("name", sorted(RECORDED_BY))
def test_without_a_recording_the_command_that_makes_one_is_named(name: str):
    with pytest.raises(UserError, match=r"make it with `mutoscope record doom-basic .* --data PATH"):
        planned(RECIPES[name](), other_data=False, kept=(), machine="cpu")


@pytest.mark.parametrize("name", sorted(RECORDED_BY))
def test_the_list_of_recipes_says_how_to_record_the_data(name: str):
    report = recipes(name)
    assert report["recorded_by"] == RECORDED_BY[name]
    *_, record, train = summary(report).splitlines()
    assert record == RECORDED_BY[name] and train == f"mutoscope train {name} --data PATH --out runs/{name}"
    assert recipes("magi-shapes")["recorded_by"] is None


@pytest.mark.parametrize("name", sorted(RECORDED_BY))
def test_the_recorded_size_is_that_of_the_recipes(name: str):
    """`mutoscope record` draws what the tokenizer reads, so that no frame is scaled twice."""
    words = RECORDED_BY[name].split()
    data = RECIPES[name]().data
    assert words[words.index("--height") + 1] == str(data.height)
    assert words[words.index("--width") + 1] == str(data.width)
