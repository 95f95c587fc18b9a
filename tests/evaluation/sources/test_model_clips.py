"""Models under the protocols of published tables: conditions of their clips, repeating, and continuing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.fakes import save_narrow_i3d, use_narrow_i3d, write_videos
from mutoscope.data.sources.shapes.world import ShapesConfig, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import evaluate
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.protocols import published_plan
from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS, VideoProtocol, video_protocol
from mutoscope.evaluation.sources.model_clips import ProtocolClips, chosen_task, class_numbers
from mutoscope.evaluation.sources.windows import cycled, list_videos, windows
from mutoscope.layers.condition_regions import TASKS
from mutoscope.pipeline import VideoPipeline
from tiny_models import MODEL, tiny_image_tokenizer, tiny_index, tiny_model, tiny_par, tiny_par_index, tiny_tokenizer

Miniature = Callable[[str], Path]
PREDICTION = video_protocol("bair-frame-prediction")
SIX = tuple(f"class{i}" for i in range(6))


def tiny_pipeline(class_names: tuple[str, ...] | None = None, tasks: tuple[str, ...] = TASKS, num_classes: int = 6):
    """Clips of 16 frames of 8×8, by a random network that does all ten tasks."""
    model = tiny_model(replace(MODEL, latent_shape=(8, 4, 4), tasks=tasks, num_classes=num_classes))
    return VideoPipeline(tiny_tokenizer(), model, tiny_index(num_frames=16, class_names=class_names, tasks=tasks))


class Recorder:
    """A pipeline that repeats the first frame it is given, or shows its class as brightness; calls are kept."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        inner = tiny_pipeline(**options)
        self.model, self.tokenizer, self.index, self.family = inner.model, inner.tokenizer, inner.index, inner.family

    def generate(self, **given: Any):
        self.calls.append(given)
        if "context" in given:
            frames = [np.repeat(context[:1], 16, axis=0) for context in given["context"]]
        elif "task_video" in given:
            frames = list(given["task_video"])
        else:
            labels = given.get("class_label", [0] * given.get("num_samples", 0))
            frames = [np.full((16, 8, 8, 3), 10 * label, np.uint8) for label in labels]
        clips = [type("Clip", (), {"frames": clip})() for clip in frames]
        return type("Generation", (), {"clips": clips})()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    save_narrow_i3d(root / "i3d.pt")
    write_videos(root / "real", 5, num_frames=18)
    write_videos(root / "classes", 6, names=lambda i: f"{SIX[i]}/{i}")
    return root


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_i3d(monkeypatch)


def measure(folder: Path, source: Any, reference: Path | None, protocol: VideoProtocol, **options: Any) -> dict:
    files = WeightFiles(i3d=str(folder / "i3d.pt"))
    return dict(evaluate(source, protocol, reference=reference, files=files, **options))


def measure_shapes(source: Any, **options: Any) -> dict:
    return dict(evaluate(source, "shapes-10k", **options))


# ------------------------------------------------------------------------------------------------ every protocol


MINIATURES = {name: protocol.dataset for name, protocol in VIDEO_PROTOCOLS.items() if protocol.splits}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_model_runs_every_published_protocol_on_its_data_set(folder: Path, miniature: Miniature, name: str):
    protocol = replace(video_protocol(name), height=32, width=32, num_frames=16)  # as many as the model generates
    task = "frame-interpolation" if name.endswith("multi-task") else None
    options = {"num_decoding_steps": 2}
    reference = miniature(MINIATURES[name])
    report = measure(folder, tiny_pipeline(), reference, protocol, num_clips=2, task=task, options=options)
    assert report["metrics"]["fvd"]["value"] > 0 and report["num_clips"] == report["num_real"] == 2
    made = report["protocol_details"]["generated"]
    assert made["task"] == (task or protocol.tasks[0]) and made["sampling"]["num_decoding_steps"] == 2
    assert len(made["model_sha256"]) == 64
    paired = made["task"] not in ("class-conditional", "unconditional")
    assert report["protocol_details"]["paired"] == paired == ("psnr_magvit_db" in report["metrics"])
    assert "8×8 brought to 32×32" in report["warnings"][0]


def test_the_report_names_what_the_model_does_for_its_task_alone():
    model = tiny_pipeline()
    own = {"frame-prediction": {"guidance_scale": 2.0}, "inpaint-central": {"guidance_scale": 3.0}}
    model.index = replace(model.index, sampling={"temperature": 0.5}, task_sampling=own, blend_given=True)
    made = ProtocolClips.of(model, PREDICTION, None, 0, {"temperature": 0.7}).described()
    assert made["sampling"] == {"temperature": 0.7, "guidance_scale": 2.0} and made["blend_given"]


def test_the_protocol_of_the_shapes_dataset_needs_no_files():
    model = Recorder(class_names=ShapesWorld().class_names, num_classes=23)
    report = measure_shapes(model, num_clips=4, batch_size=4)
    assert {"shapes_fvd", "shapes_fvd_real", "shapes_kvd", "flicker"} <= set(report["metrics"])
    assert not {"fvd", "kvd"} & set(report["metrics"])
    assert report["metrics"]["motion"]["value"] == 0 < report["metrics"]["motion_real"]["value"]
    assert report["protocol_details"]["convention"] is None
    with pytest.raises(UserError, match="has its own feature network"):
        measure_shapes(model, files=WeightFiles(i3d="i3d.pt"))


# ---------------------------------------------------------------------------------------------------- conditions


def test_a_prediction_starts_from_the_first_frames_of_real_clips_of_which_each_is_taken_once(folder: Path):
    model, protocol = Recorder(), replace(PREDICTION, num_clips=10, num_real=5, repeats=2, given_frames=3)
    report = measure(folder, model, folder / "real", protocol)
    given = [context for call in model.calls for context in call["context"]]
    assert {len(context) for context in given} == {3} and report["num_clips"] == 20
    assert set(Counter(context.tobytes() for context in given).values()) == {4}  # 20 clips from 5 videos
    assert len({call["seed"] for call in model.calls}) == len(model.calls)


def test_context_frames_are_no_part_of_mcvds_average(folder: Path):
    kept = replace(PREDICTION, num_clips=5, num_real=5, repeats=1)
    metrics = measure(folder, Recorder(), folder / "real", kept)["metrics"]
    assert metrics["psnr_mcvd_db"]["value"] < 60  # a repeated frame is no video
    assert metrics["psnr_magvit_db"]["value"] is None  # its first frame is the context: infinite


def test_context_frames_can_be_pasted_back(folder: Path):
    protocol = replace(PREDICTION, num_clips=5, num_real=5, repeats=1, height=8, width=8)
    left, pasted = (
        measure(folder, tiny_pipeline(), folder / "real", replace(protocol, paste_given=paste))["curves"]
        for paste in (False, True)
    )
    assert left["psnr_by_frame_db"][0] < 40 and pasted["psnr_by_frame_db"][0] is None
    assert left["psnr_by_frame_db"][1:] == pasted["psnr_by_frame_db"][1:]


def test_other_tasks_are_conditioned_on_the_whole_clip(folder: Path):
    model = Recorder()
    protocol = replace(video_protocol("bair-multi-task"), num_clips=3, num_real=3, repeats=1)
    report = measure(folder, model, folder / "real", protocol, task="inpaint-central")
    assert [video.shape for call in model.calls for video in call["task_video"]] == [(16, 64, 64, 3)] * 3
    assert {call["task"] for call in model.calls} == {"inpaint-central"}
    assert report["metrics"]["psnr_magvit_db"]["value"] is None  # infinite: the fake returns its condition


def test_classes_come_with_the_real_clips_or_in_equal_numbers(folder: Path):
    protocol = replace(video_protocol("ucf101-magvit"), num_clips=12, num_real=6, repeats=1, inception_splits=0)
    labels: dict[str, list[int]] = {}
    for how in ("real", "balanced"):
        model = Recorder(class_names=tuple(reversed(SIX)))
        report = measure(folder, model, folder / "classes", replace(protocol, labels=how))
        labels[how] = [label for call in model.calls for label in call["class_label"]]
        assert any(word in report["protocol_details"]["notes"][-1] for word in ("real clips", "equal numbers"))
    assert labels["balanced"] == [5, 4, 3, 2, 1, 0] * 2  # by name: the model numbers them the other way round
    assert Counter(labels["real"]) == dict.fromkeys(range(6), 2) and labels["real"] != labels["balanced"]


def test_without_classes_of_the_real_videos_those_of_the_model_are_used(folder: Path):
    model, protocol = Recorder(), replace(video_protocol("ucf101-magvit"), num_clips=6, num_real=5, repeats=1)
    report = measure(folder, model, folder / "real", protocol)
    assert [label for call in model.calls for label in call["class_label"]] == list(range(6))
    assert "6 classes in equal numbers" in report["protocol_details"]["notes"][-1]


def test_real_clips_come_in_random_order_each_once_before_any_again(folder: Path):
    found = windows(list_videos(folder / "real", 16), VIDEO_PROTOCOLS["fvd"].windows, 16)
    order = cycled(found, 12, 0)
    assert set(order[:5]) == set(order[5:10]) == set(found) and order[:5] != order[5:10]
    assert order == cycled(found, 12, 0) != cycled(found, 12, 1)


# ---------------------------------------------------------------------------------------- repeating and continuing


def test_the_same_seed_gives_the_same_figures_and_another_gives_others(folder: Path):
    first, again, other = (
        measure(folder, tiny_pipeline(), folder / "real", PREDICTION, num_clips=4, seed=seed)["metrics"]
        for seed in (3, 3, 4)
    )
    assert first == again and first["fvd"]["value"] != other["fvd"]["value"]


def test_a_killed_evaluation_of_a_model_generates_nothing_twice(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(published_plan, "CHUNK", 2)
    expected = measure(folder, Recorder(), folder / "real", PREDICTION, num_clips=5, batch_size=2)["metrics"]
    dying = Recorder()
    call, left = dying.generate, [1]

    def stops(self, **given):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return call(**given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "generate", stops)
        measure(folder, dying, folder / "real", PREDICTION, num_clips=5, batch_size=2, state=tmp_path / "state")
    model = Recorder()
    report = measure(folder, model, folder / "real", PREDICTION, num_clips=5, batch_size=2, state=tmp_path / "state")
    assert report["metrics"] == expected and [len(call["context"]) for call in model.calls] == [2, 1]
    with pytest.raises(UserError, match="parts of another evaluation"):
        others = {"state": tmp_path / "state", "options": {"temperature": 2.0}}
        measure(folder, Recorder(), folder / "real", PREDICTION, num_clips=5, batch_size=2, **others)


def samples(pipeline: Any, name: str, task: str | None = None) -> ProtocolClips:
    return ProtocolClips.of(pipeline, video_protocol(name), task, 0, {})


def test_a_model_that_cannot_do_what_the_protocol_asks_is_refused():
    classes_only = tiny_pipeline(tasks=("class-conditional",))
    with pytest.raises(UserError, match="not trained for the task 'frame-prediction'; it can do class-conditional"):
        samples(classes_only, "bair-frame-prediction")
    with pytest.raises(UserError, match="sets no condition; this model does frame-prediction"):
        samples(tiny_pipeline(tasks=("frame-prediction",)), "ucf101-stylegan-v")
    assert samples(classes_only, "ucf101-stylegan-v").task == "unconditional"
    short = VideoPipeline(tiny_image_tokenizer(), tiny_par(), tiny_par_index())
    with pytest.raises(UserError, match="compares clips of 16 frames; this model generates 4"):
        samples(short, "ucf101-par")


def test_protocols_of_several_tasks_need_the_name_of_one():
    protocol = video_protocol("bair-multi-task")
    assert chosen_task(protocol, None, ("class-conditional", "inpaint-central")) == "inpaint-central"
    with pytest.raises(UserError, match="name it with --task .this model does frame-prediction, inpaint-central"):
        chosen_task(protocol, None, ("frame-prediction", "inpaint-central"))
    with pytest.raises(UserError, match="has no task 'class-conditional'"):
        chosen_task(protocol, "class-conditional", TASKS)


def test_classes_of_other_data_are_refused():
    named = samples(tiny_pipeline(class_names=SIX), "ucf101-magvit")
    assert class_numbers(named, ("Class3", "class0")) == [3, 0]
    with pytest.raises(UserError, match="knows no class 'ApplyEyeMakeup' of the real videos .1 of 2"):
        class_numbers(named, ("class1", "ApplyEyeMakeup"))
    with pytest.raises(UserError, match="have 7 classes, this model 6"):
        class_numbers(samples(tiny_pipeline(), "ucf101-magvit"), (*SIX, "more"))


def test_options_of_models_are_refused_for_folders(folder: Path):
    for options, flag in (({"task": "frame-prediction"}, "--task"), ({"paste_given": True}, "--paste-given")):
        with pytest.raises(UserError, match=f"is a folder of videos; {flag} is for models"):
            measure(folder, folder / "classes", folder / "real", VIDEO_PROTOCOLS["fvd"], **options)


def test_clips_of_other_sizes_are_resized_to_the_protocols(folder: Path):
    protocol = replace(PREDICTION, num_clips=2, num_real=2, repeats=1)
    model = samples(Recorder(), "bair-frame-prediction")
    clips = model.generate(0, 2, None, torch.zeros(2, 16, 64, 64, 3, dtype=torch.uint8))
    assert clips.shape == (2, 16, 64, 64, 3) and ShapesConfig().height == 32
    assert model.departures() == ["clips of 8×8 brought to 64×64"]
    assert replace(model, protocol=replace(protocol, height=8, width=8)).departures() == []
