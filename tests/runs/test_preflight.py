"""What is refused before a run computes anything: files that are missing, and settings that do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mutoscope import hub
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.errors import UserError
from mutoscope.models.magvit import MagvitConfig
from mutoscope.recipes.catalog import RECIPES
from mutoscope.recipes.shapes import magi_shapes, magvit_shapes, nova_shapes, vq_shapes
from mutoscope.runs import preflight
from mutoscope.runs.networks import spec_without_weights, untrained_spec
from mutoscope.runs.preflight import check_memory, check_recipe, count_parameters
from mutoscope.runs.train import train
from mutoscope.training.config import ModelRecipe, TokenizerRecipe

CPU = torch.device("cpu")


def with_sampling(recipe: ModelRecipe, **options: object) -> ModelRecipe:
    return replace(recipe, sampling={**recipe.sampling, **options})


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("shapes") or "shapes-" in name])
def test_recipes_of_the_synthetic_dataset_pass(name: str):
    check_recipe(RECIPES[name]())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            with_sampling(magvit_shapes(), num_decoding_steps=513),
            "sampling: num_decoding_steps .*512 tokens.*found 513",
        ),
        (with_sampling(nova_shapes(), num_decoding_steps=17), "sampling: A frame has 16 tokens.*found 17"),
        (with_sampling(magi_shapes(), num_decoding_steps=17), "sampling: A frame has 16 tokens.*found 17"),
        (with_sampling(magi_shapes(), num_diffusion_steps=1001), "sampling: num_diffusion_steps must .*found 1001"),
        (with_sampling(magi_shapes(), context_noise_level=6), "sampling: context_noise_level must .*at most 5"),
        (with_sampling(magi_shapes(), temperature=-1.0), "sampling: temperature must be at least 0"),
        (with_sampling(magi_shapes(), speed=2), "sampling: unknown key 'speed'"),
        (
            replace(magvit_shapes(), task_sampling={"frame-prediction": {"num_decoding_steps": 600}}),
            "task_sampling.frame-prediction: num_decoding_steps",
        ),
        (replace(magvit_shapes(), tokenizer="nowhere"), "nowhere"),
        (replace(magvit_shapes(), start_from="nowhere"), "nowhere"),
        (replace(magvit_shapes(), start_from="magi-shapes"), "start_from 'magi-shapes' does not fit"),
        (replace(nova_shapes(), text_encoder="nowhere"), "nowhere"),
        (
            replace(magvit_shapes(), data=replace(magvit_shapes().data, height=34)),
            "do not fit the tokenizer 'vq-shapes'",
        ),
        (
            replace(vq_shapes(), data=replace(vq_shapes().data, num_frames=15)),
            "data.num_frames must be a multiple of 2",
        ),
        (replace(vq_shapes(), data=FolderData()), "--data.path"),
        (replace(vq_shapes(), data=FolderData(path="nowhere")), "There is no 'nowhere'"),
        (replace(vq_shapes(), loop=replace(vq_shapes().loop, num_steps=100)), "warmup_steps is 100.*less than the 100"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe: ModelRecipe | TokenizerRecipe, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_discriminator_of_other_clips_is_refused():
    recipe = RECIPES["magvit-vq-b-ucf101"]()
    assert isinstance(recipe, TokenizerRecipe)
    small = replace(recipe, data=replace(vq_shapes().data, num_frames=16, height=64, width=64))
    with pytest.raises(UserError, match=r"clip_shape is \(16, 128, 128\), clips are \(16, 64, 64\)"):
        check_recipe(small)


def test_parameters_are_counted_without_memory():
    assert count_parameters(magvit_shapes()) == 2_912_232
    model = magvit_shapes().model
    assert isinstance(model, MagvitConfig)
    huge = replace(magvit_shapes(), model=replace(model, hidden_size=96 * 10**3))
    with pytest.raises(UserError, match=r"magvit-shapes has \d{3},\d{3},\d{3},\d{3} parameters, which need .* GB"):
        check_memory(huge, CPU)
    endless = replace(magvit_shapes(), model=replace(model, hidden_size=3 * 2**22, mlp_size=2**24))
    with pytest.raises(UserError, match="parameters|too large"):
        check_memory(endless, CPU)


def test_a_batch_of_clips_must_fit_in_memory(monkeypatch: pytest.MonkeyPatch):
    recipe = vq_shapes()
    weights = count_parameters(recipe) * preflight.BYTES_PER_PARAMETER
    monkeypatch.setattr(preflight, "memory_of", lambda device: weights)
    check_memory(recipe, CPU)
    wide = replace(recipe, data=replace(recipe.data, height=1024, width=1024))
    with pytest.raises(UserError, match="4 clips of 16 frames of 1024×1024 need 1.0 GB"):
        check_memory(wide, CPU)


def test_the_spec_of_a_tokenizer_needs_no_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "read_weights", lambda path: pytest.fail("weights were read"))
    assert spec_without_weights(magvit_shapes()) == untrained_spec(vq_shapes())
