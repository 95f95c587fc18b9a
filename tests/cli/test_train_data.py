"""`mutoscope train RECIPE --data PATH`: data of another kind than the recipe's."""

from pathlib import Path

import pytest
from PIL import Image

from dot_recordings import dot_episode, write_lerobot
from mutoscope.commands.train import resolve_recipe
from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.errors import UserError
from mutoscope.models.magi import MAGIConfig
from mutoscope.training.config import ModelRecipe


@pytest.mark.parametrize("form", [["--data", "{}"], ["--data={}"], ["--data.kind", "folder", "--data.path", "{}"]])
def test_any_recipe_takes_a_folder_of_videos(tmp_path: Path, form: list[str]):
    (tmp_path / "clip.webm").touch()
    flags = [flag.format(tmp_path) for flag in form]
    recipe = resolve_recipe("vq-shapes", [*flags, "--data.height", "64", "--data.frame-stride", "2"])
    assert recipe.data == FolderData(path=str(tmp_path), num_frames=16, height=64, width=32, frame_stride=2)


def test_the_kind_is_found_from_the_path_and_other_flags_still_count(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    recipe = resolve_recipe("vq-shapes", ["--loop.num-steps", "7", "--data", str(tmp_path), "--data.ten-crops"])
    assert recipe.data == ImagesData(path=str(tmp_path), num_frames=16, ten_crops=True)
    assert recipe.loop.num_steps == 7


def test_a_kind_can_be_named_where_the_path_would_say_another(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    recipe = resolve_recipe("vq-shapes", ["--data", str(tmp_path), "--data.kind", "imagenet"])
    assert recipe.data.kind == "imagenet"


def test_flags_of_the_recipes_own_data_need_no_kind():
    recipe = resolve_recipe("magi-shapes", ["--data.max-jump", "8", "--data.seed", "5"])
    assert isinstance(recipe.data, ShapesData)
    assert (recipe.data.max_jump, recipe.data.seed, recipe.data.mixed) == (8, 5, True)


def test_model_and_sampling_flags_are_those_of_the_recipes_family():
    recipe = resolve_recipe("magi-shapes", ["--model.num-layers", "2", "--sampling.guidance-scale", "2.5"])
    assert isinstance(recipe, ModelRecipe) and isinstance(recipe.model, MAGIConfig)
    assert recipe.model.num_layers == 2 and recipe.sampling["guidance_scale"] == 2.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "There is no 'nowhere'"),
        (["--data"], "--data needs a value"),
        (["--data.kind", "ucf"], "unknown kind of data 'ucf'"),
        (["--data.kind", "folder", "--data.max-jump", "3"], "max-jump"),
        (["--data.kind", "tokens", "--data.mixed"], "mixed"),
    ],
)
def test_wrong_flags_are_refused(flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        resolve_recipe("vq-shapes", flags)


def test_a_dry_run_on_a_recording_shows_its_classes_and_actions(run, tmp_path, out):
    pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")
    episodes = [dot_episode(seed, 40, ("push", "lift")[seed % 2]) for seed in range(4)]
    path = write_lerobot(tmp_path / "dots", episodes, embedded=True)
    report = run("train", "magi-doom", "--data", path, "--out", out / "run", "--dry-run", "--json").report
    model = report["resolved"]["model"]
    assert (model["num_classes"], model["action_size"]) == (2, 3)
    assert report["resolved"]["data"]["tasks_as_classes"] and not list(out.iterdir())
    error = run("train", "magi-doom", "--out", out / "run").error
    assert "mutoscope record doom" in error and "--data PATH" in error
