import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mutoscope import hub
from mutoscope.data.sources.images import ImagesData
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.data.sources.registry import of_kind
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.data.video.read import write_video
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.shapes_features import load_shapes_features
from mutoscope.families.magvit import TaskMix
from mutoscope.models.magi import MAGIConfig
from mutoscope.models.magvit import MagvitConfig
from mutoscope.models.par import PARConfig
from mutoscope.pipeline import VideoPipeline
from mutoscope.recipes.par_paper import imagenet, vq16_imagenet
from mutoscope.recipes.shapes import magi_shapes, magvit_shapes, shapes_features, vae_shapes, vq_shapes
from mutoscope.runs.tokenize import tokenize
from mutoscope.runs.train import (
    check_model_fits,
    flushed_denormals,
    load_recipe,
    open_text_encoder,
    start_inflated,
    train,
)
from mutoscope.tokenizers.discriminator import Discriminator, DiscriminatorConfig, PatchDiscriminatorConfig
from mutoscope.tokenizers.vq2d import VQ2DConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training.config import AdversarialConfig, ModelRecipe, TokenizerRecipe, with_data
from mutoscope.training.distributed import join
from mutoscope.training.tracking import read_log

DATA = ShapesData(num_frames=8, height=16, width=16)


def tiny_tokenizer(**loop) -> TokenizerRecipe:
    recipe = vq_shapes()
    network = replace(
        recipe.tokenizer,
        filters=4,
        channel_multipliers=(1, 2, 2),
        temporal_downsample=(True, True),
        num_groups=2,
        embedding_dim=8,
    )
    loop = replace(recipe.loop, num_steps=3, batch_size=2, log_every=1, num_workers=0, **loop)
    return replace(recipe, data=DATA, tokenizer=network, loop=loop, optim=replace(recipe.optim, warmup_steps=1))


CODES = 512  # of the recipe's own tokenizer, which the tiny one keeps
TWO_TASKS = ("class-conditional", "frame-prediction")


def magvit_config(recipe: ModelRecipe) -> MagvitConfig:
    assert isinstance(recipe.model, MagvitConfig)
    return recipe.model


def tiny_model(tokenizer, **loop) -> ModelRecipe:
    recipe = magvit_shapes()
    network = replace(
        magvit_config(recipe), num_layers=1, hidden_size=16, num_heads=2, mlp_size=16, latent_shape=(2, 4, 4)
    )
    network = replace(network, codebook_size=CODES, tasks=TWO_TASKS)
    loop = replace(recipe.loop, num_steps=4, batch_size=2, log_every=1, checkpoint_every=2, **loop)
    optim = replace(recipe.optim, warmup_steps=1)
    recipe = replace(recipe, tokenizer=str(tokenizer), data=DATA, model=network, loop=loop, optim=optim, cache_clips=6)
    return replace(recipe, task_weights=dict.fromkeys(TWO_TASKS, 1.0))


def tiny_par(tokenizer) -> ModelRecipe:
    recipe = tiny_model(tokenizer)
    codes = CODES
    network = PARConfig(1, 16, 2, None, codes, (2, 4, 4), num_parallel=4, num_classes=23, mlp_size=16)
    return replace(recipe, model=network, task_weights={"class-conditional": 1.0}, sampling={"guidance_scale": 1.5})


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    assert train(tiny_tokenizer(), out).finished
    return out


@pytest.fixture(scope="module")
def model_folder(tokenizer_folder):
    out = tokenizer_folder.parent / "model"
    train(tiny_model(tokenizer_folder), out)
    return out


def test_a_tokenizer_run_leaves_a_loadable_folder(tokenizer_folder):
    names = {path.name for path in tokenizer_folder.iterdir()}
    assert {"model_index.json", "tokenizer", "recipe.json", "log.jsonl", "samples", "checkpoints"} <= names
    assert load_recipe(tokenizer_folder / "recipe.json") == tiny_tokenizer()
    tokens = hub.load_tokenizer(tokenizer_folder).encode(torch.zeros(1, 3, 8, 16, 16))
    assert tokens.shape == (1, 2, 4, 4)


def test_a_model_run_leaves_a_self_contained_folder(model_folder):
    index = hub.load_index(model_folder)
    assert index.tokenizer == "./tokenizer" and index.tasks == ("class-conditional", "frame-prediction")
    assert index.task_sampling == {}  # the recipe's are for tasks that were not trained
    assert hub.load_tokenizer(model_folder) is not None
    assert hub.load_model(model_folder).config == tiny_model("").model
    sheets = {path.name for path in (model_folder / "samples").iterdir()}
    assert sheets == {f"{task}-0000000{step}.png" for task in TWO_TASKS for step in (1, 4)}


def test_the_cache_is_filled_once_and_used_again_on_resume(tokenizer_folder, model_folder):
    before = (model_folder / "tokens" / "tokens.npy").stat().st_mtime_ns
    losses = [line["loss"] for line in read_log(model_folder / "log.jsonl")]
    (model_folder / "checkpoints" / "step-00000004.pt").unlink()
    train(tiny_model(tokenizer_folder), model_folder, resume=True)
    assert (model_folder / "tokens" / "tokens.npy").stat().st_mtime_ns == before
    assert [line["loss"] for line in read_log(model_folder / "log.jsonl")] == losses


def test_a_run_that_is_refused_leaves_the_recipe_of_the_earlier_one(tokenizer_folder, model_folder):
    before = (model_folder / "recipe.json").read_text()
    for other in (tiny_model(tokenizer_folder), tiny_tokenizer()):
        with pytest.raises(UserError, match="already holds checkpoints"):
            train(replace(other, name="other"), model_folder)
    assert (model_folder / "recipe.json").read_text() == before


def test_a_finished_cache_can_be_the_data_of_another_run(tokenizer_folder, model_folder, tmp_path):
    recipe = tiny_model(tokenizer_folder)
    data = of_kind(DATA, "tokens", str(model_folder / "tokens"))
    assert train(replace(recipe, data=data), tmp_path / "run").finished
    assert not (tmp_path / "run" / "tokens").exists()
    assert hub.load_index(tmp_path / "run") == hub.load_index(model_folder)


def test_defaults_of_a_task_are_checked_before_training_and_kept_with_the_model(tokenizer_folder, tmp_path):
    recipe = tiny_model(tokenizer_folder)
    wrong = replace(recipe, task_sampling={"frame-prediction": {"guidance_scal": 2.0}})
    with pytest.raises(UserError, match=r"task_sampling.frame-prediction.*'guidance_scale'"):
        train(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()
    own = {"frame-prediction": {"guidance_scale": 2.0}}
    train(replace(recipe, task_sampling=own | {"inpaint-central": {}}, blend_given=True), tmp_path / "other")
    index = hub.load_index(tmp_path / "other")
    assert index.task_sampling == own and index.blend_given


def test_labels_the_model_does_not_know_are_refused(tokenizer_folder, model_folder, tmp_path):
    recipe = tiny_model(tokenizer_folder)
    data = of_kind(DATA, "tokens", str(model_folder / "tokens"))
    few = replace(recipe, data=data, model=replace(magvit_config(recipe), num_classes=1))
    with pytest.raises(UserError, match=r"needs labels 0 to 0 \(model.num_classes\)"):
        train(few, tmp_path / "run")
    prediction = replace(few, task_weights={"frame-prediction": 1.0})
    with pytest.raises(UserError, match="'frame-prediction' needs labels"):
        train(replace(prediction, model=replace(magvit_config(few), class_loss=0.5)), tmp_path / "run")
    train(replace(prediction, model=replace(magvit_config(few), class_loss=0.0)), tmp_path / "run")


def test_a_model_that_does_not_fit_its_tokenizer_is_refused_before_any_work(tokenizer_folder, tmp_path):
    recipe = tiny_model(tokenizer_folder)
    wrong = replace(recipe, model=replace(magvit_config(recipe), latent_shape=(4, 4, 4)))
    with pytest.raises(UserError, match=r"model.latent_shape is \(4, 4, 4\).*gives \(2, 4, 4\)"):
        train(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()
    with pytest.raises(UserError, match="inpaint-central"):
        check_model_fits(
            replace(recipe, task_weights={"inpaint-central": 1.0}), hub.load_tokenizer(tokenizer_folder).spec
        )


def tiny_vae() -> TokenizerRecipe:
    recipe = vae_shapes()
    network = replace(recipe.tokenizer, filters=4, channel_multipliers=(1, 2, 2), num_groups=2)
    loop = replace(recipe.loop, num_steps=3, batch_size=2, log_every=1, num_workers=0)
    return replace(recipe, data=DATA, tokenizer=network, loop=loop, optim=replace(recipe.optim, warmup_steps=1))


def test_magi_trains_on_clips_with_a_temporal_gap_and_continues_them_after_their_first_frame(tmp_path):
    recipe = magi_shapes()
    assert isinstance(recipe.model, MAGIConfig)
    network = replace(recipe.model, num_layers=1, hidden_size=16, num_heads=2, head_layers=1, head_size=8)
    loop = replace(recipe.loop, num_steps=2, batch_size=2, log_every=1, ema_decay=None)
    optim = replace(recipe.optim, warmup_steps=1)
    sampling = {"num_decoding_steps": 1, "num_diffusion_steps": 1, "window_mode": "anchored", "window": 3}
    recipe = replace(recipe, model=network, loop=loop, optim=optim, cache_clips=8, sampling=sampling)
    assert train(recipe, tmp_path / "magi").finished
    cached = TokenCache(tmp_path / "magi" / "tokens")[range(8)]
    assert cached["history_only"][:, 1].tolist() == [False, False, True, True] * 2
    corrupted = (cached["history"] != cached["tokens"]).flatten(1).any(1)
    assert corrupted.any() and not corrupted[[0, 1, 4, 5]].any()
    pipeline = VideoPipeline.from_pretrained(tmp_path / "magi")
    assert pipeline.index.data["max_jump"] == 112 and pipeline.index.sampling["window_mode"] == "anchored"
    assert len(pipeline.generate(num_frames=6, seed=0).clips[0].frames) == 6


def test_a_run_of_continuous_latents_ends_in_unit_variance_a_round_trip_and_a_cache(tmp_path):
    assert train(tiny_vae(), tmp_path / "vae").finished
    pipeline = VideoPipeline.from_pretrained(tmp_path / "vae")
    assert pipeline.tokenizer.spec.latent_shape(8, 16, 16) == (8, 4, 4)
    source = DATA.open()
    clips = source[range(32)]["video"]
    with torch.no_grad():
        latents = pipeline.tokenizer.encode(pipeline.tokenizer.from_uint8(clips))
    spread = latents.transpose(0, 1).flatten(1).std(dim=1)
    assert spread.shape == (pipeline.tokenizer.spec.latent_channels,)
    assert spread.sub(1).abs().max() < 0.2  # other clips of the same dataset
    assert pipeline.reconstruct(clips[0, :5].numpy()).frames.shape == (5, 16, 16, 3)

    cache = tokenize(pipeline.tokenizer, "vae", source, tmp_path / "cache", num_clips=3, tasks=("frame-prediction",))
    assert cache.info.dtype == "float16" and cache.info.clip_shape == latents.shape[1:]
    torch.testing.assert_close(cache[range(3)]["tokens"], latents[:3], atol=5e-3, rtol=2e-3)
    assert cache[range(3)]["conditions"]["frame-prediction"].shape == latents[:3].shape


def test_a_features_run_leaves_the_feature_network(tmp_path):
    recipe = shapes_features()
    loop = replace(recipe.loop, num_steps=3, batch_size=2, num_workers=0)
    recipe = replace(recipe, data=DATA, loop=loop, optim=replace(recipe.optim, warmup_steps=1))
    train(recipe, tmp_path / "features")
    network, digest = load_shapes_features(tmp_path / "features")
    assert network(torch.zeros(1, 3, 8, 16, 16)).shape == (1, 64) and len(digest) == 64


def test_a_folder_of_videos_goes_through_both_stages(tmp_path, tokenizer_folder):
    for name in ("left", "right"):
        for number in range(2):
            frames = torch.randint(256, (9, 20, 24, 3), dtype=torch.uint8, generator=torch.Generator()).numpy()
            (tmp_path / "videos" / name).mkdir(parents=True, exist_ok=True)
            write_video(tmp_path / "videos" / name / f"{number}.gif", frames, fps=8)
    data = of_kind(DATA, "folder", str(tmp_path / "videos"))
    assert train(replace(tiny_tokenizer(), data=data), tmp_path / "tokenizer").finished
    recipe = tiny_model(tmp_path / "tokenizer")
    recipe = replace(recipe, data=data, model=replace(magvit_config(recipe), num_classes=2), cache_clips=100)
    assert train(recipe, tmp_path / "model").finished
    assert hub.load_index(tmp_path / "model").class_names == ("left", "right")
    cached = of_kind(data, "tokens", str(tmp_path / "model" / "tokens"))
    shutil.rmtree(tmp_path / "videos")
    assert train(replace(recipe, data=cached), tmp_path / "again").finished
    assert hub.load_index(tmp_path / "again").class_names == ("left", "right")


def test_a_folder_recipe_without_a_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a path"):
        train(replace(tiny_tokenizer(), data=FolderData()), tmp_path / "run")


def test_a_task_holds_for_a_whole_batch_and_the_mix_is_exactly_balanced():
    mix = TaskMix({"class-conditional": 1.0, "frame-prediction": 0.5})
    batch = {"tokens": torch.zeros(2, 1, 1, 1), "conditions": {"frame-prediction": torch.ones(2, 1, 1, 1)}}
    prepared = [mix(batch, step) for step in range(len(mix.order))]
    tasks = [p["task"] for p in prepared]
    assert tasks.count("class-conditional") == 200 and tasks.count("frame-prediction") == 100
    assert all(("condition_tokens" in p) == (p["task"] == "frame-prediction") for p in prepared)
    assert mix(batch, 300)["task"] == tasks[0]
    assert TaskMix({"class-conditional": 1.0, "frame-prediction": 0.5}).order == mix.order


def adversarial_tokenizer(per_frame: bool, **changes) -> TokenizerRecipe:
    """The tiny tokenizer against a discriminator, in two dimensions or in three."""
    recipe = tiny_tokenizer()
    temporal = (False, False) if per_frame else (True, True)
    network = replace(recipe.tokenizer, temporal_downsample=temporal, per_frame=per_frame)
    discriminator = DiscriminatorConfig(4, (2, 2, 2), (8, 16, 16), per_frame)
    return replace(recipe, tokenizer=network, adversarial=AdversarialConfig(discriminator), **changes)


def test_a_2d_tokenizer_and_its_discriminator_are_inflated_into_3d_ones(tmp_path):
    flat = adversarial_tokenizer(per_frame=True)
    assert train(flat, tmp_path / "flat").finished
    recipe = adversarial_tokenizer(per_frame=False, start_from=str(tmp_path / "flat"))
    assert isinstance(recipe.tokenizer, VQ3DConfig) and recipe.adversarial is not None
    assert isinstance(recipe.adversarial.discriminator, DiscriminatorConfig)
    tokenizer: Any = VQ3D(recipe.tokenizer)
    discriminator = Discriminator(recipe.adversarial.discriminator)
    start_inflated(recipe, tokenizer, discriminator)
    source: Any = hub.load_tokenizer(tmp_path / "flat")
    assert torch.equal(tokenizer.encoder[0].weight[:, :, 1], source.encoder[0].weight[:, :, 0])
    opponent: Any = hub.load_component(tmp_path / "flat" / "discriminator")
    assert torch.equal(discriminator.logit.weight, opponent.logit.weight)
    assert train(recipe, tmp_path / "deep").finished
    names = {line for row in read_log(tmp_path / "deep" / "log.jsonl") for line in row}
    assert {"generator", "discriminator", "r1", "reconstruction"} <= names


def test_a_model_can_see_more_than_one_context_frame(tokenizer_folder, model_folder, tmp_path):
    recipe = tiny_model(tokenizer_folder)
    more = replace(recipe, model=replace(magvit_config(recipe), context_frames=5, latent_context_frames=2))
    assert train(more, tmp_path / "run").finished
    data = of_kind(DATA, "tokens", str(model_folder / "tokens"))
    with pytest.raises(UserError, match="show 1 context frames"):
        train(replace(more, data=data), tmp_path / "other")


def test_a_par_model_trains_resumes_and_generates(tokenizer_folder, tmp_path):
    recipe = tiny_par(tokenizer_folder)
    assert train(recipe, tmp_path / "run").finished
    assert load_recipe(tmp_path / "run" / "recipe.json") == recipe
    assert (tmp_path / "run" / "samples" / "class-conditional-00000004.png").exists()
    pipeline = VideoPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.index.family == "par" and pipeline.prepare().sampling["guidance_scale"] == 1.5
    assert pipeline(class_label="circle-glide").frames.shape == (8, 16, 16, 3)
    with pytest.raises(UserError, match="does not do"):
        train(replace(recipe, task_weights={"frame-prediction": 1.0}), tmp_path / "other")


def test_training_can_start_from_another_model(tokenizer_folder, model_folder, tmp_path):
    recipe = replace(tiny_model(tokenizer_folder), start_from=str(model_folder))
    recipe = replace(recipe, optim=replace(recipe.optim, peak_learning_rate=0.0, muon_learning_rate=0.0))
    train(recipe, tmp_path / "run")
    before, after = (hub.load_model(folder).state_dict() for folder in (model_folder, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    wider = replace(recipe, model=replace(magvit_config(recipe), hidden_size=32))
    with pytest.raises(UserError, match="does not fit the recipe's model: token_embedding"):
        train(wider, tmp_path / "other")


def test_options_of_the_sampler_become_defaults_of_the_model(tokenizer_folder, tmp_path):
    train(replace(tiny_model(tokenizer_folder), sampling={"schedule": "uniform"}), tmp_path / "run")
    assert hub.load_index(tmp_path / "run").sampling["schedule"] == "uniform"


def test_denormals_are_flushed_during_a_run_and_not_afterwards():
    tiny = torch.tensor(1e-40)
    with flushed_denormals():
        assert tiny.mul(1.0).item() == 0.0
    assert tiny.mul(1.0).item() > 0.0


def test_images_train_a_tokenizer_against_patches_and_a_par_model_on_ten_crops(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "images" / label / "x.png")
    data = ImagesData(path=str(tmp_path / "images"), num_frames=1, height=8, width=8)
    recipe = vq16_imagenet()
    network = VQ2DConfig(8, (1, 1), 1, 16, 4, 16, num_groups=8)
    assert recipe.adversarial is not None
    adversarial = replace(recipe.adversarial, discriminator=PatchDiscriminatorConfig(4, 1), start_step=2)
    loop = replace(recipe.loop, num_steps=4, batch_size=2, log_every=1, num_workers=0, autocast="none")
    crops = replace(data, random_crops=True)
    with pytest.warns(UserWarning, match="no perceptual loss"):
        train(replace(recipe, data=crops, tokenizer=network, adversarial=adversarial, loop=loop), tmp_path / "vq")
    rows = read_log(tmp_path / "vq" / "log.jsonl")
    assert [row["generator"] != 0 for row in rows] == [
        False,
        False,
        True,
        True,
    ]  # from update 2 on
    assert [row["discriminator"] != 0 for row in rows] == [False, False, True, True]

    model = PARConfig(1, 16, 2, None, 16, (1, 4, 4), num_parallel=4, num_classes=2, mlp_size=16)
    recipe = replace(imagenet("L", 4), tokenizer=str(tmp_path / "vq"), model=model, loop=loop)
    optim = replace(recipe.optim, warmup_steps=1)
    train(replace(recipe, data=replace(data, ten_crops=True), optim=optim), tmp_path / "par")
    with pytest.raises(UserError, match="ten_crops instead"):
        train(replace(recipe, data=crops, optim=optim), tmp_path / "random")
    labels = np.load(tmp_path / "par" / "tokens" / "label.npy")
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert VideoPipeline.from_pretrained(tmp_path / "par")(class_label="bee").frames.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(("caption", "works"), [(None, False), ("...", False), ("красный круг", True)])
def test_a_dataset_without_a_word_in_its_captions_is_named(tmp_path, caption: str | None, works: bool):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(images / "a.png")
    if caption is not None:
        (images / "a.txt").write_text(caption, encoding="utf-8")
    data = ImagesData(path=str(images), num_frames=1, height=16, width=16)
    recipe = replace(magvit_shapes(), data=data, text_encoder="words")
    if works:
        encoder = open_text_encoder(recipe, tmp_path / "out", join("cpu"))
        assert encoder is not None and encoder.unknown(caption or "") == []
        return
    with pytest.raises(UserError, match=f"None of the 1 captions of {images} holds a word"):
        open_text_encoder(recipe, tmp_path / "out", join("cpu"))
    assert not (tmp_path / "out").exists()


def test_a_model_from_a_token_cache_has_the_rate_of_its_clips(tokenizer_folder, tmp_path):
    recipe = tiny_model(tokenizer_folder)
    data = replace(recipe.data, fps=12)
    cached = replace(recipe, data=data)
    train(cached, tmp_path / "first")
    tokens = with_data(recipe, path=str(tmp_path / "first" / "tokens"))
    train(tokens, tmp_path / "second")
    assert hub.load_index(tmp_path / "first").fps == hub.load_index(tmp_path / "second").fps == 12
