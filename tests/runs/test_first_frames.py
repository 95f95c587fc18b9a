"""The first frames that training leaves in a model folder: some of each class, of held-back recordings only."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from torch import Tensor

pytest.importorskip("av", reason="PyAV is needed to read videos")
pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")

from dot_recordings import DOT, HEIGHT, WIDTH, dot_episode, write_lerobot
from mutoscope import hub
from mutoscope.commands.models import one_model, summary
from mutoscope.data.media import read_image
from mutoscope.data.sources.recorded_data import LeRobotData
from mutoscope.data.sources.tokens import TokenCache, TokensData
from mutoscope.pipeline import VideoPipeline
from mutoscope.recipes.doom import magi_doom
from mutoscope.runs.first_frames import MAX_IMAGES, PER_CLASS, WITHOUT_CLASSES, chosen, first_frames
from mutoscope.runs.train import train
from mutoscope.runs.validation import loop_split
from mutoscope.training.config import ModelRecipe
from tiny_magi import tiny_config, tiny_vae

TASKS = ("push it", "lift")
GREYS = {"push it": 40, "lift": 110}
EPISODES = 12


def write_recording(folder: Path) -> Path:
    """Two tasks in turn, told apart by the grey of the background."""
    tasks = [TASKS[number % 2] for number in range(EPISODES)]
    episodes = [dot_episode(seed, 20, task, grey=GREYS[task]) for seed, task in enumerate(tasks)]
    return write_lerobot(folder, episodes, embedded=True)


def recipe_on(recording: Path, tokenizer: Path, **changes: object) -> ModelRecipe:
    recipe = magi_doom()
    assert isinstance(recipe.data, LeRobotData)
    sizes = {"num_frames": 4, "height": HEIGHT, "width": WIDTH, "fps": 10.0, "clip_step": 4}
    data = replace(recipe.data, path=str(recording), max_gap=3, **sizes)
    model = tiny_config(latent_shape=(4, 16, 24), patch_size=8, num_classes=2, action_size=3)
    loop = replace(recipe.loop, num_steps=1, batch_size=4, validation_share=0.5, validation_clips=4, num_workers=0)
    recipe = replace(
        recipe,
        tokenizer=str(tokenizer),
        data=data,
        model=model,
        loop=loop,
        optim=replace(recipe.optim, warmup_steps=0),
        cache_clips=200,
        sampling={"num_decoding_steps": 1, "num_diffusion_steps": 1},
        rollouts=replace(recipe.rollouts, start_step=0, context_frames=2),
    )
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recording, vae, and a model trained for one update: run."""
    folder = tmp_path_factory.mktemp("first-frames")
    write_recording(folder / "recording")
    index = hub.ModelIndex("tokenizer", num_frames=1, height=HEIGHT, width=WIDTH, model=None)
    hub.save_pretrained(folder / "vae", index, tiny_vae())
    assert train(recipe_on(folder / "recording", folder / "vae"), folder / "run").finished
    return folder


def background(image: np.ndarray) -> int:
    """The grey of most pixels."""
    return int(np.median(image))


def test_a_folder_keeps_some_first_frames_of_each_class(folders: Path):
    index = hub.load_index(folders / "run")
    labels = list(index.first_frames.values())
    assert index.class_names == TASKS and labels.count(0) == labels.count(1) == PER_CLASS
    assert set(index.first_frames) == {f"first_frames/{stem}-{i}.png" for stem in ("push-it", "lift") for i in range(4)}
    for file, label in index.first_frames.items():
        image = read_image(folders / "run" / file)
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert background(image) == GREYS[TASKS[label]]


def test_first_frames_are_of_held_back_recordings(folders: Path):
    """Every image is a frame of a held-back episode, and none of them is a frame of one that was trained on."""
    recipe = recipe_on(folders / "recording", folders / "vae")
    cache = TokenCache(folders / "run/tokens")
    split = loop_split(cache, recipe.loop)
    assert split is not None
    source = recipe.data.open().plain()
    assert source.episodes is not None
    held = set(source.episodes[split.indices].tolist())
    assert len(held) == EPISODES // 2
    everything = [dot_episode(seed, 20, TASKS[seed % 2], GREYS[TASKS[seed % 2]]).frames for seed in range(EPISODES)]
    for file in hub.load_index(folders / "run").first_frames:
        image = read_image(folders / "run" / file)
        of = {seed for seed, frames in enumerate(everything) if (frames == image).all((1, 2, 3)).any()}
        assert of & held


def test_the_trained_model_starts_with_its_first_frames(folders: Path):
    pipeline = VideoPipeline.from_pretrained(folders / "run")
    for seed, task in enumerate(TASKS):
        request = pipeline.prepare(class_label=task, seed=seed)
        context = cast(Tensor, getattr(request, "context", None))
        assert background(context[0, 0].numpy()) == GREYS[task]
    frames = pipeline(num_frames=3, first_frame="lift-2").frames
    assert frames.shape == (3, HEIGHT, WIDTH, 3)


def test_the_list_of_models_names_them(folders: Path):
    report = one_model(str(folders / "run"))
    names = [f"{stem}-{i}" for stem in ("push-it", "lift") for i in range(4)]
    assert sorted(report["first_frames"]) == sorted(names)
    text = summary(report)
    assert "first frames: " in text and "push-it-0" in text


def test_without_held_back_clips_or_without_videos_there_are_none(folders: Path, tmp_path: Path):
    recipe = recipe_on(folders / "recording", folders / "vae")
    cache = TokenCache(folders / "run/tokens")
    assert len(first_frames(recipe.data, cache, recipe.loop)[0]) == 2 * PER_CLASS
    assert first_frames(recipe.data, cache, replace(recipe.loop, validation_share=0.0)) == ({}, {})
    gone = replace(recipe.data, path=str(tmp_path / "gone"))
    assert first_frames(gone, cache, recipe.loop) == ({}, {})


def test_a_run_on_a_token_cache_keeps_the_first_frames_of_its_recording(folders: Path, tmp_path: Path):
    recipe = recipe_on(folders / "recording", folders / "vae")
    data = TokensData(path=str(folders / "run/tokens"), num_frames=4, height=HEIGHT, width=WIDTH)
    assert train(replace(recipe, data=data), tmp_path / "run").finished
    assert hub.load_index(tmp_path / "run").first_frames == hub.load_index(folders / "run").first_frames


def test_without_classes_there_are_eight_without_a_label(folders: Path):
    data = replace(recipe_on(folders / "recording", folders / "vae").data, tasks_as_classes=False)
    images, labels = chosen(data.open().plain(), list(range(20)), [])
    assert len(images) == WITHOUT_CLASSES and set(labels.values()) == {-1}
    assert next(iter(images)) == "first_frames/frame-0.png"


def test_names_that_differ_in_signs_alone_or_fill_a_paragraph_keep_their_own_images(tmp_path: Path):
    tasks = ("a b", "A/b", "?", "!", "단어 " * 90)
    episodes = [dot_episode(seed, 6, task, grey=30 + 15 * seed) for seed, task in enumerate(tasks)]
    path = str(write_lerobot(tmp_path, episodes, embedded=True))
    data = LeRobotData(path=path, num_frames=6, height=HEIGHT, width=WIDTH, tasks_as_classes=True)
    images, labels = chosen(data.open().plain(), [0, 1, 2, 3, 4], list(data.class_names()))
    assert sorted(labels.values()) == [0, 1, 2, 3, 4]
    assert all(len(Path(file).name.encode()) < 200 for file in labels)
    assert all(background(images[file]) == 30 + 15 * label for file, label in labels.items())


def test_many_classes_share_a_small_number_of_images(tmp_path: Path):
    episodes = [dot_episode(seed, 4, f"task {seed}") for seed in range(70)]
    path = str(write_lerobot(tmp_path, episodes, embedded=True, per_file=70))
    data = LeRobotData(path=path, num_frames=4, height=HEIGHT, width=WIDTH, tasks_as_classes=True)
    images, labels = chosen(data.open().plain(), list(range(70)), list(data.class_names()))
    assert len(images) == len(set(labels.values())) == MAX_IMAGES and DOT < HEIGHT
