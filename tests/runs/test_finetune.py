"""Fine-tuning saved models on small folders of videos: what carries over, what is refused, and that it learns."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope import hub
from mutoscope.data.video.read import write_video
from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.layers.lora import LoRAConfig
from mutoscope.models.base import AnyModel
from mutoscope.pipeline import VideoPipeline
from mutoscope.runs.finetune import LORA_RATE, RATE_SHARE, FineTuning, planned_finetuning, starting_recipe
from mutoscope.runs.start import start
from mutoscope.runs.train import load_recipe, train
from mutoscope.training.config import ModelRecipe, to_json, with_data
from mutoscope.training.tracking import read_log
from tiny_magi import save_tiny_magi
from tiny_models import (
    save_tiny_model,
    save_tiny_par,
    save_tiny_tokenizer,
    tiny_image_tokenizer,
    tiny_par,
    tiny_par_index,
)
from tiny_nova import WORDS, save_tiny_nova

FPS = 8


def moving_square(frames: int, height: int, width: int, tone: int) -> np.ndarray:
    clip = np.full((frames, height, width, 3), 60, dtype=np.uint8)
    for t in range(frames):
        clip[t, 2:6, t % (width - 4) : t % (width - 4) + 4] = tone
    return clip


def write_clip(path: Path, frames: int = 12, caption: str | None = None, fps: float = FPS, tone: int = 220) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, moving_square(frames, 16, 24, tone), fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders, and videos in two classes with captions ("clips") and without either ("plain")."""
    root = tmp_path_factory.mktemp("finetune")
    save_tiny_magi(root / "magi")
    save_tiny_nova(root / "nova")
    save_tiny_par(root / "par")
    save_tiny_model(root / "magvit")
    save_tiny_tokenizer(root / "tokenizer")
    for i, name in enumerate(("circle", "dog")):
        write_clip(root / "clips" / name / "a.webm", caption=f"a blue {name}", tone=120 + 100 * i)
    write_clip(root / "plain" / "a.webm")
    return root


def plan_of(folders: Path, name: str, data: str = "clips", lora: bool = False, **changes: Any) -> FineTuning:
    recipe = with_data(starting_recipe(str(folders / name), lora=lora), None, str(folders / data))
    loop = replace(
        recipe.loop, num_steps=2, batch_size=2, log_every=1, checkpoint_every=1, num_workers=0, validation_share=0.0
    )
    recipe = replace(recipe, loop=loop, optim=replace(recipe.optim, warmup_steps=0), **changes)
    return planned_finetuning(recipe)


def still(recipe: ModelRecipe) -> ModelRecipe:
    """The recipe with updates that change nothing."""
    return replace(recipe, optim=replace(recipe.optim, peak_learning_rate=0.0, muon_learning_rate=None))


def faster(recipe: ModelRecipe, rate: float = 0.02) -> ModelRecipe:
    """The recipe with updates that show in half precision."""
    return replace(recipe, optim=replace(recipe.optim, peak_learning_rate=rate))


# ------------------------------------------------------------------------------------------------------ conditions


def test_classes_become_those_of_the_folder_and_actions_go(folders: Path, tmp_path: Path):
    plan = plan_of(folders, "magi")
    assert plan.recipe.model.num_classes == 2 and plan.recipe.model.action_size is None
    text = "\n".join(plan.lines())
    assert "classes: 3 become 2, 1 kept by name, new: dog" in text and "actions: 2 removed" in text
    train(still(plan.recipe), tmp_path / "run")
    index, model = hub.load_index(tmp_path / "run"), hub.load_model(tmp_path / "run")
    assert index.class_names == ("circle", "dog") and index.frame_size == (8, 12)
    old = hub.load_model(folders / "magi").state_dict()["class_embedding.weight"]
    assert torch.equal(model.state_dict()["class_embedding.weight"][[0, 2]], old[[0, 3]])  # circle and "no class"
    pipeline = VideoPipeline.from_pretrained(tmp_path / "run")
    assert pipeline(class_label="dog").frames.shape == (5, 8, 12, 3)


def test_a_folder_without_classes_keeps_the_row_of_no_class(folders: Path):
    plan = plan_of(folders, "magi", "plain")
    assert plan.recipe.model.num_classes == 0
    assert set(plan.recipe.task_weights) == {"frame-prediction", "unconditional"} & set(plan.recipe.task_weights)


def test_the_vocabulary_grows_and_old_words_keep_their_vectors(folders: Path, tmp_path: Path):
    plan = plan_of(folders, "nova")
    assert any("words: 6 become 7, 6 kept by name, new: dog" in line for line in plan.lines())
    train(still(plan.recipe), tmp_path / "run")
    vocabulary = json.loads((tmp_path / "run" / "text_encoder" / "config.json").read_text())["vocabulary"]
    assert vocabulary == [*WORDS, "dog"]
    old, new = (VideoPipeline.from_pretrained(folder) for folder in (folders / "nova", tmp_path / "run"))
    first, second = (pipeline(prompt="a blue circle", seed=3).frames for pipeline in (old, new))
    assert np.array_equal(first, second)


def test_clips_without_captions_are_learned_under_the_empty_prompt(folders: Path, tmp_path: Path):
    plan = plan_of(folders, "nova", "plain")
    assert plan.recipe.model.text == hub.load_model(folders / "nova").config.text
    assert set(plan.recipe.task_weights) == {"text-conditional"}
    assert any("no captions" in warning for warning in plan.plan.warnings)
    train(plan.recipe, tmp_path / "run")
    assert VideoPipeline.from_pretrained(tmp_path / "run").generate(prompt="").clips[0].frames.shape == (4, 16, 16, 3)


@pytest.mark.parametrize("name", ["magvit", "par"])
def test_models_of_codes_continue_too(folders: Path, tmp_path: Path, name: str):
    plan = plan_of(folders, name)
    assert plan.recipe.model.num_classes == 2 and not plan.transfer.dropped
    result = train(plan.recipe, tmp_path / "run")
    assert result.finished
    assert VideoPipeline.from_pretrained(tmp_path / "run")(class_label="dog").frames.shape[1:] == (8, 8, 3)


# ----------------------------------------------------------------------------------------------- clips and sizes


def test_clips_have_the_models_size_and_a_rate_close_to_its_own(folders: Path, tmp_path: Path):
    write_clip(tmp_path / "fast" / "a.webm", frames=40, fps=30)
    plan = planned_finetuning(with_data(starting_recipe(str(folders / "magi")), None, str(tmp_path / "fast")))
    data = plan.recipe.data
    assert (data.num_frames, data.height, data.width) == (5, 8, 12)
    assert getattr(data, "frame_stride") == 4 and data.fps == 7.5  # noqa: B009  a field of folders only


def test_short_videos_give_closer_frames_then_shorter_clips(folders: Path, tmp_path: Path):
    write_clip(tmp_path / "short" / "a.webm", frames=9, fps=30)
    write_clip(tmp_path / "tiny" / "a.webm", frames=3, fps=30)
    strides, lengths = [], []
    for name in ("short", "tiny"):
        recipe = with_data(starting_recipe(str(folders / "magi")), None, str(tmp_path / name))
        data = planned_finetuning(recipe).recipe.data
        strides.append(getattr(data, "frame_stride"))  # noqa: B009
        lengths.append(data.num_frames)
    assert (strides, lengths) == ([2, 1], [5, 3])


def test_another_frame_size_interpolates_the_tables_of_positions(folders: Path, tmp_path: Path):
    recipe = with_data(starting_recipe(str(folders / "magi")), None, str(folders / "clips"))
    recipe = replace(recipe, data=replace(recipe.data, height=16, width=16))
    plan = planned_finetuning(recipe, kept={"data.height", "data.width"})
    assert plan.recipe.model.latent_shape == (5, 8, 8)
    assert {"role_embedding", "head_position"} <= set(plan.transfer.adapted)
    loop = replace(recipe.loop, num_steps=1, batch_size=1, num_workers=0, validation_share=0.0)
    train(replace(plan.recipe, loop=loop, optim=replace(recipe.optim, warmup_steps=0)), tmp_path / "run")
    assert hub.load_index(tmp_path / "run").frame_size == (16, 16)


# ------------------------------------------------------------------------------------------------------------ LoRA


def test_lora_exports_whole_matrices_that_changed_by_its_rank(folders: Path, tmp_path: Path):
    plan = plan_of(folders, "magi", "plain", lora=True)
    recipe = faster(replace(plan.recipe, lora=LoRAConfig(r=2, target_modules=("mlp_in",))))
    train(recipe, tmp_path / "run")
    old, new = (hub.load_component(folder / "model").state_dict() for folder in (folders / "magi", tmp_path / "run"))
    assert set(new) <= set(old)
    changed = {name for name in new if new[name].shape != old[name].shape or not torch.equal(new[name], old[name])}
    assert {name for name in changed if name.startswith(("blocks", "head."))} == {
        "blocks.0.mlp_in.weight", "blocks.1.mlp_in.weight"
    }  # fmt: skip
    difference = new["blocks.0.mlp_in.weight"] - old["blocks.0.mlp_in.weight"]
    strengths = torch.linalg.svdvals(difference)
    assert strengths[2] < 0.02 * strengths[0] != 0  # rank 2 up to half precision on disk
    assert load_recipe(tmp_path / "run" / "recipe.json") == recipe


def test_an_interrupted_lora_run_continues_bit_for_bit(folders: Path, tmp_path: Path):
    recipe = plan_of(folders, "nova", lora=True).recipe
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "again")
    (tmp_path / "again" / "checkpoints" / "step-00000002.pt").unlink()
    train(recipe, tmp_path / "again", resume=True)
    whole, again = (hub.load_model(tmp_path / name).state_dict() for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_lora_trains_few_parameters_and_what_is_new(folders: Path):
    whole, low = plan_of(folders, "nova"), plan_of(folders, "nova", lora=True)
    assert whole.trained_parameters == whole.parameters
    wider = low.recipe.model.text
    assert wider is not None and low.trained_parameters < low.parameters / 2
    frozen = plan_of(folders, "nova", lora=True, frozen=("text.",))
    assert low.trained_parameters - frozen.trained_parameters == 32 * wider.size  # the projection of words, widened


# -------------------------------------------------------------------------------------------------------- freezing


def test_frozen_parts_stay_as_they_are(folders: Path, tmp_path: Path):
    recipe = faster(plan_of(folders, "magi", "plain", frozen=("blocks", "head.")).recipe)
    train(recipe, tmp_path / "run")
    old, new = (hub.load_component(folder / "model").state_dict() for folder in (folders / "magi", tmp_path / "run"))
    changed = {name for name in new if new[name].shape != old[name].shape or not torch.equal(new[name], old[name])}
    assert "mask_token" in changed and not any(name.startswith(("blocks", "head.")) for name in changed)


@pytest.mark.parametrize(("frozen", "message"), [(("heads",), "no parameter"), (("",), "every parameter")])
def test_impossible_freezing_is_refused_before_any_work(folders: Path, frozen: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        plan_of(folders, "magi", frozen=frozen)


# -------------------------------------------------------------------------------------------------------- refusals


def test_a_tokenizer_is_no_model_to_start_from(folders: Path):
    with pytest.raises(UserError, match="tokenizer only"):
        starting_recipe(str(folders / "tokenizer"))


def test_images_of_par_do_not_become_clips(folders: Path, tmp_path: Path):
    images = tiny_par(latent_shape=(1, 4, 4), hidden_size=32)
    hub.save_pretrained(tmp_path / "images", tiny_par_index(num_frames=1), tiny_image_tokenizer(), images)
    recipe = with_data(starting_recipe(str(tmp_path / "images")), None, str(folders / "clips"))
    assert planned_finetuning(recipe).recipe.data.num_frames == 1  # frames of videos are images
    clips = replace(recipe, data=replace(recipe.data, num_frames=4))
    with pytest.raises(UserError, match="These weights know images"):
        planned_finetuning(clips, kept={"data.num_frames"})


def test_sizes_that_the_tokens_do_not_fit_are_refused(folders: Path):
    recipe = with_data(starting_recipe(str(folders / "nova")), None, str(folders / "clips"))
    recipe = replace(recipe, data=replace(recipe.data, height=20))
    with pytest.raises(UserError, match="multiples of"):
        planned_finetuning(recipe, kept={"data.height"})


def test_other_layers_are_refused_by_name(folders: Path):
    recipe = with_data(starting_recipe(str(folders / "magi")), None, str(folders / "clips"))
    changed = replace(recipe, model=replace(recipe.model, num_layers=3))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"blocks\.2.* is missing there"):
        planned_finetuning(changed)


def test_lora_without_weights_to_change_is_refused(folders: Path):
    recipe = replace(plan_of(folders, "magi").recipe, start_from=None, lora=LoRAConfig())
    with pytest.raises(UserError, match="name a model in start_from"):
        start(recipe, family_of(recipe.model).network(recipe.model))


# ------------------------------------------------------------------------------------------------------ the recipe


def test_rates_are_a_share_of_those_of_the_models_own_recipe():
    own = load_recipe(hub.resolve("magi-shapes") / "recipe.json")
    recipe, lora = starting_recipe("magi-shapes"), starting_recipe("magi-shapes", lora=True)
    assert recipe.optim.peak_learning_rate == pytest.approx(RATE_SHARE * own.optim.peak_learning_rate)
    assert lora.optim.peak_learning_rate == LORA_RATE and lora.optim.muon_learning_rate is None
    assert (recipe.tokenizer, recipe.start_from, recipe.name) == (
        "vae-shapes", "magi-shapes", "magi-shapes-finetuned"
    )  # fmt: skip
    assert recipe.sampling == hub.load_index("magi-shapes").sampling


def test_the_recipe_of_a_run_is_enough_to_do_it_again(folders: Path, tmp_path: Path):
    recipe = plan_of(folders, "nova", lora=True).recipe
    train(recipe, tmp_path / "run")
    saved = load_recipe(tmp_path / "run" / "recipe.json")
    assert to_json(saved) == to_json(recipe)
    train(saved, tmp_path / "again")
    first, second = (hub.load_model(tmp_path / name).state_dict() for name in ("run", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finetuned_model_can_be_finetuned_again(folders: Path, tmp_path: Path):
    train(plan_of(folders, "nova").recipe, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = planned_finetuning(with_data(starting_recipe(str(tmp_path / "run")), None, str(folders / "clips")))
    assert not again.names and not again.transfer.changed


# --------------------------------------------------------------------------------------------------- published weights


def test_published_nova_folders_learn_captions_with_lora(folders: Path, tmp_path: Path):
    pytest.importorskip("transformers")
    published = Path(__file__).parents[1] / "parity" / "vectors" / "nova"
    (tmp_path / "arch_table.json").write_text((published / "arch_table.json").read_text())
    (tmp_path / "pipe").symlink_to(published / "pipe_t2i")
    recipe = with_data(starting_recipe(str(tmp_path / "pipe"), lora=True), None, str(folders / "clips"))
    loop = replace(recipe.loop, num_steps=1, batch_size=1, num_workers=0, validation_share=0.0)
    plan = planned_finetuning(replace(recipe, loop=loop, optim=replace(recipe.optim, warmup_steps=0)))
    assert not plan.transfer.changed and plan.trained_parameters < plan.parameters
    assert plan.recipe.text_encoder == str((tmp_path / "pipe" / "text_encoder").resolve())
    train(replace(plan.recipe, sampling=plan.recipe.sampling | {"num_decoding_steps": 2}), tmp_path / "run")
    pipeline = VideoPipeline.from_pretrained(tmp_path / "run")
    assert pipeline(prompt="a blue dog", num_decoding_steps=2, num_diffusion_steps=2).frames.shape == (1, 64, 96, 3)


# ----------------------------------------------------------------------------------------------------------- learning


def loss_of(model: AnyModel, recipe: ModelRecipe, folder: Path) -> float:
    from mutoscope.data.sources.tokens import TokenCache

    cache = TokenCache(folder / "tokens")
    batch = family_of(recipe.model).batch_step(recipe.model, recipe.task_weights)(cache[range(len(cache))], 0)
    losses: list[float] = []
    for seed in range(8):
        with torch.no_grad():
            losses.append(float(model.loss(batch, torch.Generator().manual_seed(seed))[0]))  # type: ignore[arg-type]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("lora", "rate", "share"), [(False, 1e-2, 0.6), (True, 5e-2, 0.85)])
def test_a_few_updates_on_one_clip_overfit_it(folders: Path, tmp_path: Path, lora: bool, rate: float, share: float):
    """The random weights of the output layer, which LoRA keeps, allow no lower loss."""
    recipe = plan_of(folders, "magi", "plain", lora).recipe
    loop = replace(recipe.loop, num_steps=40, checkpoint_every=40, log_every=20, ema_decay=None)
    recipe = faster(replace(recipe, loop=loop), rate)
    network = family_of(recipe.model).network(recipe.model)
    start(recipe, network)
    train(recipe, tmp_path / "run")
    before, after = (
        loss_of(network, recipe, tmp_path / "run"),
        loss_of(hub.load_model(tmp_path / "run"), recipe, tmp_path / "run"),
    )
    assert after < share * before, (before, after)
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["loss"] < before


def test_a_bundled_model_overfits_a_real_clip(clips_dir: Path, tmp_path: Path):
    """Four frames of a real clip: afterwards the model continues its first frame better than by standing still."""
    clip = clips_dir / "carphone_talking_h264_sar.mp4"
    recipe = with_data(starting_recipe("magi-shapes"), None, str(clip))
    optim = replace(recipe.optim, peak_learning_rate=1e-3, muon_learning_rate=2e-3, warmup_steps=5)
    loop = replace(
        recipe.loop, num_steps=40, batch_size=2, ema_decay=0.9, checkpoint_every=40, num_workers=0, validation_share=0.0
    )
    data = replace(recipe.data, num_frames=4)
    recipe = planned_finetuning(replace(recipe, optim=optim, loop=loop, data=data), kept={"data.num_frames"}).recipe
    network = family_of(recipe.model).network(recipe.model)
    start(recipe, network)
    train(recipe, tmp_path / "run")
    before = loss_of(network.eval(), recipe, tmp_path / "run")
    after = loss_of(hub.load_model(tmp_path / "run"), recipe, tmp_path / "run")
    assert after < 0.6 * before, (before, after)
