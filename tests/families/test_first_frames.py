"""A model's own first frames: when a clip starts with one, which one, and what a folder may name."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.families.first_frames import FirstFrames
from mutoscope.families.magi import MAGIRequest
from mutoscope.models.magi import MAGI
from mutoscope.pipeline import VideoPipeline
from mutoscope.text import load_text_encoder
from mutoscope.text.words import word_config
from tiny_magi import NAMES, tiny_index, tiny_magi, tiny_vae

HEIGHT, WIDTH = 8, 12
LABELS = {f"first_frames/{name}-{i}.png": label for label, name in enumerate(NAMES) for i in range(2)}


def images() -> dict[str, np.ndarray]:
    """A different image for every file."""
    rng = np.random.default_rng(0)
    return {file: rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for file in LABELS}


def save(folder: Path, labels: dict[str, int] | None = None, **changes: Any) -> Path:
    model = tiny_magi(**changes)
    index = tiny_index(model, first_frames=LABELS if labels is None else labels)
    return hub.save_pretrained(folder, index, tiny_vae(), model, first_frames=images())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "own")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> VideoPipeline:
    return VideoPipeline.from_pretrained(folder)


def prepared(pipeline: VideoPipeline, **options: Any) -> MAGIRequest:
    request = pipeline.prepare(**options)
    assert isinstance(request, MAGIRequest)
    return request


def first_frame_names(request: MAGIRequest) -> list[str]:
    """The names of the first frames of all samples."""
    assert request.context is not None
    known = images()
    found = [[file for file in known if np.array_equal(known[file], clip[0])] for clip in request.context.numpy()]
    return [Path(files[0]).stem for files in found]


def test_a_clip_without_a_context_starts_with_a_first_frame_of_its_class(pipeline: VideoPipeline):
    for seed, (label, name) in itertools.product(range(3), enumerate(NAMES)):
        request = prepared(pipeline, class_label=name, seed=seed)
        [found] = first_frame_names(request)
        assert found.startswith(name) and request.labels is not None and request.labels.tolist() == [label]
        assert request.task == "class-conditional-frame-prediction"


def test_the_class_is_that_of_the_frame_where_none_is_stated(pipeline: VideoPipeline):
    request = prepared(pipeline, num_samples=24)
    names = first_frame_names(request)
    assert request.labels is not None and len(set(names)) == len(LABELS)
    assert [NAMES[label] for label in request.labels.tolist()] == [name.rpartition("-")[0] for name in names]


def test_the_same_seed_draws_the_same_frame_and_other_seeds_others(pipeline: VideoPipeline):
    drawn = [first_frame_names(prepared(pipeline, seed=seed))[0] for seed in range(8)]
    assert drawn == [first_frame_names(prepared(pipeline, seed=seed))[0] for seed in range(8)] and len(set(drawn)) > 2


def test_a_frame_is_chosen_by_name(pipeline: VideoPipeline):
    for name in ("square-0", "square-1"):
        request = prepared(pipeline, first_frame=name, num_samples=2)
        assert first_frame_names(request) == [name, name]
        assert request.labels is not None and request.labels.tolist() == [1, 1]
    other = prepared(pipeline, first_frame="square-0", class_label="cross")
    assert other.labels is not None and other.labels.tolist() == [2]


def test_a_clip_equals_one_that_continues_the_same_image(pipeline: VideoPipeline):
    own = pipeline(first_frame="cross-1", seed=4, num_frames=7).frames
    context = images()["first_frames/cross-1.png"][None]
    np.testing.assert_array_equal(own, pipeline(context=context, class_label="cross", seed=4, num_frames=7).frames)


def test_none_generates_the_first_frame_too(pipeline: VideoPipeline):
    model = pipeline.model
    assert isinstance(model, MAGI)
    without = VideoPipeline(pipeline.tokenizer, model, tiny_index(model))
    generated = pipeline(first_frame="none", class_label="circle", seed=2).frames
    np.testing.assert_array_equal(generated, without(class_label="circle", seed=2).frames)
    assert prepared(pipeline, first_frame="none").context is None


def test_actions_play_from_a_first_frame(pipeline: VideoPipeline):
    request = prepared(pipeline, actions=[[0, 1]] * 3)
    assert len(first_frame_names(request)) == 1 and request.num_frames == 4
    assert request.labels is not None


@pytest.mark.parametrize("task", ["unconditional", "class-conditional"])
def test_tasks_that_start_from_nothing_use_no_first_frame(pipeline: VideoPipeline, task: str):
    assert prepared(pipeline, task=task).context is None
    with pytest.raises(UserError, match=f"there is the task {task}: omit it"):
        pipeline.prepare(task=task, first_frame="circle-0")


def test_prediction_tasks_start_with_a_first_frame_and_with_its_class_where_they_are_of_classes(
    pipeline: VideoPipeline,
):
    plain = prepared(pipeline, task="frame-prediction")
    assert len(first_frame_names(plain)) == 1 and plain.labels is None
    assert prepared(pipeline, task="class-conditional-frame-prediction").labels is not None
    with pytest.raises(UserError, match="needs first frames: name one in first_frame"):
        pipeline.prepare(task="frame-prediction", first_frame="none")


def test_a_prompt_draws_no_first_frame_but_may_name_one(folder: Path, tmp_path: Path):
    hub.write_json(tmp_path / "config.json", word_config(["a red circle"]))
    encoder = load_text_encoder(tmp_path, torch.device("cpu"), torch.float32)
    model = tiny_magi(text_size=encoder.encode(["a"], 4).features.shape[2], text_length=4)
    index = tiny_index(model, first_frames=LABELS)
    pipeline = VideoPipeline(tiny_vae(), model, index, text_encoder=lambda: encoder, folder=folder)
    assert prepared(pipeline, prompt="a red circle").context is None
    assert first_frame_names(prepared(pipeline, prompt="a red circle", first_frame="cross-0")) == ["cross-0"]


def test_a_stream_starts_with_a_first_frame_and_equals_the_call(pipeline: VideoPipeline):
    frames = np.stack(list(itertools.islice(pipeline.stream(class_label="cross", seed=3, num_frames=None), 6)))
    np.testing.assert_array_equal(frames, pipeline(class_label="cross", seed=3, num_frames=6).frames)
    generated = pipeline(class_label="cross", seed=3, num_frames=6, first_frame="none").frames
    assert not np.array_equal(frames[0], generated[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_frame": "squar-0"}, "no first frame 'squar-0': did you mean 'square-0'"),
        ({"first_frame": "non"}, "did you mean 'none'"),
        ({"first_frame": "cross-0", "context": np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)}, "there is a context"),
        ({"first_frame": "none", "context": np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)}, "there is a context"),
    ],
)
def test_first_frames_that_do_not_fit_a_call_are_refused(pipeline: VideoPipeline, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        pipeline.prepare(**options)


def test_a_model_without_first_frames_knows_no_names():
    model = tiny_magi()
    with pytest.raises(UserError, match="no first frames of its own"):
        VideoPipeline(tiny_vae(), model, tiny_index(model)).prepare(first_frame="circle-0")


def test_classes_that_the_model_does_not_have_are_left_out(tmp_path: Path):
    """Labels −1, those of a model without classes, and those beyond its classes."""
    for name, value, changes in (("a", -1, {}), ("b", 2, {"num_classes": None}), ("c", 7, {})):
        saved = save(tmp_path / name, dict.fromkeys(LABELS, value), **changes)
        request = prepared(VideoPipeline.from_pretrained(saved), num_samples=3)
        assert len(first_frame_names(request)) == 3 and request.labels is None


def test_a_class_without_an_image_starts_with_any(folder: Path):
    frames = FirstFrames(folder, {file: label for file, label in LABELS.items() if label != 1})
    names = frames.chosen(None, torch.ones(20, dtype=torch.int64), 20, seed=0)
    assert len(set(names)) == 4


@pytest.mark.parametrize("outside", ["../secret.png", "/tmp/secret.png", "first_frames/../../secret.png"])
def test_a_path_outside_the_folder_is_refused(tmp_path: Path, outside: str):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    saved = save(tmp_path / "model", {outside: 0})
    with pytest.raises(UserError, match="outside the model's folder"):
        VideoPipeline.from_pretrained(saved)(num_frames=2)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    saved = save(tmp_path / "model")
    image = saved / "first_frames/circle-0.png"
    image.unlink()
    image.symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="outside the model's folder"):
        VideoPipeline.from_pretrained(saved)(first_frame="circle-0", num_frames=2)


@pytest.mark.parametrize("content", [None, b"", b"a red circle"])
def test_a_missing_or_damaged_image_is_a_sentence(tmp_path: Path, content: bytes | None):
    saved = save(tmp_path / "model")
    (saved / "first_frames/circle-0.png").unlink()
    if content is not None:
        (saved / "first_frames/circle-0.png").write_bytes(content)
    with pytest.raises(UserError, match="circle-0.png"):
        VideoPipeline.from_pretrained(saved)(first_frame="circle-0", num_frames=2)


def test_a_saved_model_takes_its_first_frames_along(pipeline: VideoPipeline, tmp_path: Path):
    copied = VideoPipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "copy"))
    assert copied.index.first_frames == LABELS
    expected = pipeline(first_frame="square-1", seed=5, num_frames=3).frames
    np.testing.assert_array_equal(copied(first_frame="square-1", seed=5, num_frames=3).frames[0], expected[0])


def test_folders_of_earlier_versions_have_none(tmp_path: Path):
    saved = save(tmp_path / "model")
    values = json.loads((saved / hub.INDEX).read_text())
    del values["first_frames"]
    (saved / hub.INDEX).write_text(json.dumps(values))
    assert prepared(VideoPipeline.from_pretrained(saved)).context is None
