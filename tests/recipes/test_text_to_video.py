from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mutoscope import hub
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.json_config import dataclass_from_dict
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.models.par import PARConfig
from mutoscope.pipeline import VideoPipeline
from mutoscope.recipes.shapes import nova_shapes
from mutoscope.recipes.text_to_video import RECIPES
from mutoscope.runs.train import load_recipe, train
from mutoscope.sampling.frame_ar import FrameARSamplerConfig
from mutoscope.training.config import ModelRecipe, from_json, to_json
from tiny_models import tiny_image_tokenizer
from tiny_nova import save_tiny_autoencoder, tiny_config

DATA = ShapesData(num_frames=3, height=16, width=16)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_autoencoder(tmp_path_factory.mktemp("models") / "vae")


def tiny_recipe(tokenizer: Path) -> ModelRecipe:
    recipe = nova_shapes()
    assert isinstance(recipe.model, NOVAConfig)
    model = replace(tiny_config(latent_shape=(3, 8, 8)), text_size=recipe.model.text_size, text_length=20)
    loop = replace(recipe.loop, num_steps=3, batch_size=2, log_every=1)
    sampling = {"num_decoding_steps": 2, "num_diffusion_steps": 2, "guidance_scale": 2.0}
    optim = replace(recipe.optim, warmup_steps=1)
    recipe = replace(recipe, tokenizer=str(tokenizer), data=DATA, model=model, loop=loop, optim=optim)
    return replace(recipe, cache_clips=6, sampling=sampling)


@pytest.fixture(scope="module")
def run_folder(autoencoder: Path) -> Path:
    out = autoencoder.parent / "run"
    assert train(tiny_recipe(autoencoder), out).finished
    return out


def test_a_run_ends_in_a_folder_that_reads_prompts(autoencoder: Path, run_folder: Path):
    assert load_recipe(run_folder / "recipe.json") == tiny_recipe(autoencoder)
    assert (run_folder / "samples" / "text-conditional-00000003.png").exists()
    pipeline = VideoPipeline.from_pretrained(run_folder)
    assert pipeline.index.tasks == ("text-conditional",)
    assert pipeline(prompt="a red circle swings").frames.shape == (3, 16, 16, 3)


def test_captions_of_the_clips_are_in_the_cache(run_folder: Path):
    cache = TokenCache(run_folder / "tokens")
    assert cache.info.caption_shape == (20, 160) and cache[[0]]["caption_mask"].any()


def test_frozen_parameters_stay_unchanged(autoencoder: Path, run_folder: Path, tmp_path: Path):
    recipe = replace(tiny_recipe(autoencoder), start_from=str(run_folder), frozen=("text.", "temporal_encoder.norm"))
    train(recipe, tmp_path / "run")
    before, after = (hub.load_model(folder).state_dict() for folder in (run_folder, tmp_path / "run"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(recipe.frozen) for name in changed)
    with pytest.raises(UserError, match="'texts.'"):
        train(replace(recipe, frozen=("texts.",)), tmp_path / "other")


def test_a_par_model_learns_from_captions_padded_on_the_left(autoencoder: Path, tmp_path: Path):
    index = hub.ModelIndex("tokenizer", 1, 16, 16, model=None)
    tokenizer = hub.save_pretrained(tmp_path / "vq", index, tiny_image_tokenizer())
    recipe = replace(tiny_recipe(tokenizer), sampling={"guidance_scale": 2.0})
    text = {"num_classes": None, "caption_size": 160, "caption_length": 20}
    model = PARConfig(1, 32, 2, None, 16, (3, 8, 8), num_parallel=4, **text)
    assert train(replace(recipe, model=model), tmp_path / "run").finished
    batch = TokenCache(tmp_path / "run" / "tokens")[range(2)]
    mask = family_of(model).batch_step(model, recipe.task_weights)(dict(batch), 0)["caption_mask"]
    assert isinstance(mask, torch.Tensor)
    assert mask[:, -1].all() and not mask[:, 0].any()
    assert VideoPipeline.from_pretrained(tmp_path / "run")(prompt="a red circle swings").frames.shape[0] == 3


def test_motion_of_the_clips_is_in_the_cache(autoencoder: Path, tmp_path: Path):
    pytest.importorskip("cv2")
    train(replace(tiny_recipe(autoencoder), motion=True), tmp_path / "run")
    motion = TokenCache(tmp_path / "run" / "tokens")[range(6)]["motion"].numpy()
    assert (motion >= 0).all() and np.unique(motion).size > 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_encoder": None}, "holds no captions"),
        ({"text_encoder": "nowhere"}, "no text encoder"),
        ({"task_weights": {"class-conditional": 1.0}}, "does not do"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(autoencoder: Path, tmp_path: Path, changes, message):
    with pytest.raises(UserError, match=message):
        train(replace(tiny_recipe(autoencoder), **changes), tmp_path / "run")


def test_latents_of_another_size_are_refused(autoencoder: Path, tmp_path: Path):
    recipe = tiny_recipe(autoencoder)
    assert isinstance(recipe.model, NOVAConfig)
    with pytest.raises(UserError, match="latent_channels"):
        train(replace(recipe, model=replace(recipe.model, latent_channels=4)), tmp_path / "run")


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes_are_complete_and_of_the_published_size(name: str):
    recipe = RECIPES[name]()
    assert recipe.name == name and from_json(to_json(recipe), name, [NOVAConfig]) == recipe
    assert isinstance(recipe.model, NOVAConfig)
    with torch.device("meta"):
        model = NOVA(recipe.model)
    names = [parameter for parameter, _ in model.named_parameters()]
    assert all(any(n.startswith(prefix) for n in names) for prefix in recipe.frozen)
    data = recipe.data
    frames = 1 + (data.num_frames - 1) // 4
    assert recipe.model.latent_shape == (frames, data.height // 8, data.width // 8)
    assert dataclass_from_dict(FrameARSamplerConfig, recipe.sampling, name).guidance_scale > 1
