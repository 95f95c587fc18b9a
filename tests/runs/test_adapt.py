"""Recipes on recordings of one's own: everything follows from the data, and a user's flags stay."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mutoscope import VideoPipeline, hub
from mutoscope.data.base import flat
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.tokens import TokenCache, TokensData
from mutoscope.errors import UserError
from mutoscope.json_config import with_values
from mutoscope.models.magi import MAGIConfig
from mutoscope.models.magvit import MagvitConfig
from mutoscope.models.nova import NOVAConfig
from mutoscope.models.par import PARConfig
from mutoscope.ownership import Lock, boot_id, lock_path, this_writer
from mutoscope.recipes.own_data import RECIPES
from mutoscope.recipes.shapes import magi_shapes, magvit_shapes
from mutoscope.runs.adapt import adapted
from mutoscope.runs.networks import TRAINED_FIRST, tokenizer_stage
from mutoscope.runs.plan import planned
from mutoscope.runs.train import load_recipe, train
from mutoscope.training.config import ModelRecipe, Recipe, TokenizerRecipe

MODELS = ["magi", "magvit", "par", "nova", "far"]


def write_folder(folder: Path, *, classes: bool = True, captions: bool = False, frames: int = 20) -> Path:
    """Four videos of 36x48 at 16 frames/s, in two classes or in none."""
    from mutoscope.data.video.read import write_video

    for number in range(4):
        below = folder / ("run", "walk")[number % 2] if classes else folder
        below.mkdir(parents=True, exist_ok=True)
        clip = np.full((frames, 36, 48, 3), 60 * number, np.uint8)
        clip[np.arange(frames), :, np.arange(frames) % 48] = 255
        write_video(below / f"{number}.mp4", clip, 16)
        if captions:
            (below / f"{number}.txt").write_text(f"a line number {number}", encoding="utf-8")
    return folder


def on(name: str, path: Path) -> ModelRecipe | TokenizerRecipe:
    recipe = RECIPES[name]()
    assert isinstance(recipe, ModelRecipe | TokenizerRecipe)
    return replace(recipe, data=replace(recipe.data, path=str(path)))


def model_of(recipe: Recipe) -> ModelRecipe:
    assert isinstance(recipe, ModelRecipe)
    return recipe


@pytest.mark.parametrize("name", MODELS)
def test_sizes_rate_and_classes_follow_from_a_folder(name: str, tmp_path: Path):
    recipe = model_of(adapted(on(name, write_folder(tmp_path))).recipe)
    assert (recipe.data.height, recipe.data.width) == ((32, 32) if name == "nova" else (32, 48))
    assert recipe.data.fps == 16 and recipe.model.num_classes == 2
    assert "class-conditional" in recipe.task_weights and set(recipe.task_weights) <= set(recipe.model.tasks)


def test_frames_are_no_closer_in_time_than_they_need_to_be(tmp_path: Path):
    data = model_of(adapted(on("magi", write_folder(tmp_path, frames=40))).recipe).data
    assert isinstance(data, FolderData) and (data.frame_stride, data.fps) == (2, 8)


def test_one_stray_video_of_a_few_frames_does_not_shorten_all_clips(tmp_path: Path):
    folder = write_folder(tmp_path, frames=20)
    write_folder(tmp_path / "stray", classes=False, frames=3)
    for number in range(1, 4):
        (tmp_path / "stray" / f"{number}.mp4").unlink()
    assert model_of(adapted(on("magi", folder)).recipe).data.num_frames == 16


def test_clips_overlap_and_come_from_everywhere_in_a_video(tmp_path: Path):
    data = model_of(adapted(on("magi", write_folder(tmp_path, frames=60))).recipe).data
    assert isinstance(data, FolderData) and data.clip_step == 7  # a quarter of 15 * 2 + 1 frames
    assert data.open().num_clips == 4 * 5


def test_without_classes_each_family_is_conditioned_on_what_there_is(tmp_path: Path):
    plain = write_folder(tmp_path / "plain", classes=False)
    models = {name: model_of(adapted(on(name, plain)).recipe).model for name in MODELS}
    assert isinstance(models["magi"], MAGIConfig) and models["magi"].tasks == ("unconditional", "frame-prediction")
    assert models["far"].tasks == ("unconditional", "frame-prediction")
    assert isinstance(models["magvit"], MagvitConfig) and len(models["magvit"].tasks) == 8
    assert isinstance(models["par"], PARConfig) and models["par"].num_classes == 1
    assert isinstance(models["nova"], NOVAConfig) and models["nova"].num_classes == 1


def test_captions_become_the_condition_of_nova_and_magi(tmp_path: Path):
    folder = write_folder(tmp_path, classes=False, captions=True)
    for name in ("nova", "magi"):
        recipe = model_of(adapted(on(name, folder)).recipe)
        assert recipe.text_encoder == "words" and recipe.model.text == (4, 5 * 7)  # a line number 0 1 2 3
        assert "text-conditional" in recipe.task_weights


def test_settings_that_a_user_chose_stay(tmp_path: Path):
    recipe = on("magi", write_folder(tmp_path))
    recipe = replace(recipe, data=replace(recipe.data, height=16, frame_stride=1))
    found = adapted(recipe, kept={"data.height", "data.frame_stride"})
    assert found.recipe.data.height == 16 and model_of(found.recipe).model.latent_shape == (16, 2, 6)
    assert "data.height" not in {change.name for change in found.changes}


def test_a_setting_that_cannot_fit_is_refused_before_any_work(tmp_path: Path):
    recipe = model_of(on("magi", write_folder(tmp_path)))
    recipe = replace(recipe, model=with_values(recipe.model, {"latent_shape": (16, 4, 4)}))
    with pytest.raises(UserError, match=r"--model.latent-shape"):
        planned(recipe, other_data=True, kept={"model.latent_shape"}, machine="cpu")


def test_a_recipe_of_own_data_needs_data():
    with pytest.raises(UserError, match="--data PATH"):
        planned(RECIPES["magi"](), other_data=False, kept=(), machine="cpu")


def test_a_recipe_with_its_own_sizes_keeps_them_on_other_data(tmp_path: Path):
    folder = FolderData(path=str(write_folder(tmp_path)), num_frames=16, height=32, width=32)
    recipe = model_of(adapted(replace(magvit_shapes(), data=folder)).recipe)
    assert (recipe.data.height, recipe.data.width, recipe.model.num_classes) == (32, 32, 2)
    steered = adapted(replace(magi_shapes(), data=folder))
    assert model_of(steered.recipe).model.action_size is None
    assert "was trained on" in steered.warnings[0] and "shapes" in steered.warnings[0]


def test_the_recipes_own_data_change_nothing_but_the_warm_up_of_a_short_run():
    recipe = magvit_shapes()
    assert planned(recipe, other_data=False, kept=(), machine="cpu").recipe == recipe
    short = replace(recipe, loop=replace(recipe.loop, num_steps=50))
    plan = planned(short, other_data=False, kept=(), machine="cpu")
    assert plan.recipe.optim.warmup_steps == 5 and [change.name for change in plan.changes] == ["optim.warmup_steps"]


def small(recipe: ModelRecipe) -> ModelRecipe:
    """Networks of a few thousand weights and two updates."""
    assert isinstance(recipe.model, MAGIConfig)
    model = replace(recipe.model, hidden_size=16, num_layers=1, num_heads=2, head_layers=1, head_size=16)
    loop = replace(recipe.loop, num_steps=2, batch_size=2, num_workers=0, sample_every=2)
    optim = replace(recipe.optim, warmup_steps=0)
    sampling = {"num_decoding_steps": 1, "num_diffusion_steps": 1}
    recipe = replace(recipe, model=model, loop=loop, optim=optim, sampling=sampling, tokenizer_steps=2)
    return replace(recipe, data=replace(recipe.data, num_frames=4))


def test_one_call_trains_a_tokenizer_and_then_the_model(tmp_path: Path):
    recipe = small(model_of(on("magi", write_folder(tmp_path / "videos"))))
    plan = planned(recipe, other_data=True, kept={"data.num_frames"}, machine="cpu")
    assert plan.first is not None and plan.first.data.num_frames == 2
    out = tmp_path / "run"
    assert train(plan.recipe, out).finished
    assert (out / TRAINED_FIRST / "tokenizer" / "model.safetensors").is_file()
    assert load_recipe(out / "recipe.json") == plan.recipe
    index = hub.load_index(out)
    assert (index.fps, index.class_names, index.frame_size) == (8, ("run", "walk"), (32, 48))
    assert VideoPipeline.from_pretrained(out)(class_label="run", num_frames=3).frames.shape == (3, 32, 48, 3)
    with pytest.raises(UserError, match="resume"):
        train(plan.recipe, out)
    left = lock_path(out / TRAINED_FIRST)  # of a run that was killed right after the tokenizer's last step
    left.write_text(json.dumps(asdict(Lock(replace(this_writer(), start=f"{boot_id()} 1"), "train", "2026-01-01"))))
    assert train(plan.recipe, out, resume=True).finished
    assert not left.exists()


def test_a_tokenizer_that_is_no_name_of_anything_is_refused(tmp_path: Path):
    recipe = replace(model_of(on("magi", write_folder(tmp_path))), tokenizer="tokeniser")
    with pytest.raises(UserError, match="did you mean 'tokenizer'"):
        tokenizer_stage(recipe)
    with pytest.raises(UserError, match="trains no tokenizer"):
        tokenizer_stage(replace(recipe, tokenizer="magvit"))


def test_a_token_cache_brings_its_tokenizer_and_its_sizes(tmp_path: Path):
    from mutoscope.runs.tokenize import tokenize

    data = ShapesData(num_frames=16, height=32, width=32)
    tokenize(
        hub.load_tokenizer("vae-shapes"),
        "vae-shapes",
        data.open(),
        tmp_path / "cache",
        num_clips=2,
        data=data.origin(),
        fields=("actions",),
    )
    assert flat(TokenCache(tmp_path / "cache").info.data)["width"] == 32
    recipe = replace(model_of(RECIPES["magi"]()), data=TokensData(path=str(tmp_path / "cache")))
    fitted = model_of(adapted(recipe).recipe)
    assert (fitted.tokenizer, fitted.model.latent_shape, fitted.data.fps) == ("vae-shapes", (16, 8, 8), 8)
