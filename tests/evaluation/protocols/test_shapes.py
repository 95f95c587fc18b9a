"""Protocols of the shapes dataset on fakes: figures of perfect and of poor sources, resuming, and bad input."""

import dataclasses
import functools
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from evaluation.fakes import TINY_SHA256
from mutoscope.data.sources.shapes.world import CLASS_NAMES, HELD_BACK_SEED, ShapesClip, ShapesWorld
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import evaluate
from mutoscope.evaluation.networks.shapes_classifier import Readings, ShapesClassifier
from mutoscope.evaluation.protocols.shapes import ShapesProtocol
from mutoscope.hub import ModelIndex
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from tiny_models import save_tiny_model

FEW = 4


@functools.cache
def clips_of(seed: int) -> list[ShapesClip]:
    """Enough clips of a seed to hold every class more than once."""
    return [ShapesWorld(seed=seed).clip(i) for i in range(200)]


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray


@dataclass(frozen=True)
class Generated:
    clips: tuple[Clip, ...]


@dataclass
class FakePipeline:
    """Generates clips of the dataset: held-out ones whose first frame is the context, or new ones of a class."""

    index: ModelIndex = field(
        default_factory=lambda: ModelIndex(
            "magvit", 16, 32, 32, class_names=CLASS_NAMES, tasks=("class-conditional", "frame-prediction")
        )
    )
    predict: str = "copy"
    fail_after: int | None = None
    calls: list[dict] = field(default_factory=list)
    model: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(1, 1))
    tokenizer: VideoTokenizer | None = None

    def generate(self, **given):
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(given)
        return Generated(tuple(self._clips(given)))

    def _clips(self, given):
        if "context" in given:
            return [Clip(self._predicted(context)) for context in given["context"]]
        if "task_video" in given:
            return [Clip(video) for video in given["task_video"]]
        if "prompt" in given:
            described = {clip.caption: clip for clip in clips_of(HELD_BACK_SEED)}
            return [Clip(described[caption].frames) for caption in given["prompt"]]
        if isinstance(given["class_label"], list):
            return [Clip(np.zeros((16, 32, 32, 3), np.uint8)) for _ in given["class_label"]]
        label = self.index.class_names.index(given["class_label"])
        fitting = [Clip(clip.frames) for clip in clips_of(77) if clip.label == label][: given["num_samples"]]
        assert len(fitting) == given["num_samples"]
        return fitting

    def _predicted(self, context: np.ndarray) -> np.ndarray:
        assert context.shape == (1, 32, 32, 3) and context.dtype == np.uint8
        return np.repeat(context, 16, axis=0) if self.predict == "copy" else self._continued(context)

    def _continued(self, context: np.ndarray) -> np.ndarray:
        frames = next(clip.frames for clip in clips_of(HELD_BACK_SEED) if (clip.frames[0] == context[0]).all())
        return frames ^ np.array([0] + [1] * 15, np.uint8)[:, None, None, None]  # one grey level off


class CoarseTokenizer(VideoTokenizer):
    """Every pixel of the red channel in 8 steps: tokens, and grey frames from them."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(temporal_stride=1, spatial_stride=1, vocab_size=16)

    def encode(self, video):
        return ((video[:, 0] + 1) * 4).floor().clamp(0, 7).long()

    def decode(self, tokens):
        return ((tokens + 0.5) / 4 - 1)[:, None].expand(-1, 3, -1, -1, -1).float()


def measure(source, protocol: str = "shapes", **options) -> dict:
    """The report as a plain dict; fakes take the place of pipelines."""
    return dict(evaluate(source, protocol, **options))


def value(report: dict, name: str) -> float:
    return report["metrics"][name]["value"]


def test_a_model_gets_generation_and_prediction_figures(classifier):
    pipeline = FakePipeline()
    report = measure(
        pipeline, "shapes", num_clips=FEW, seed=5, classifier=classifier, options={"num_decoding_steps": 3}
    )
    assert {"source", "protocol", "metrics", "num_clips", "seconds"} <= set(report)
    assert report["protocol"] == "shapes" and report["num_clips"] == FEW
    assert len(pipeline.calls) == FEW + 1  # a call per class, one for the whole batch of first frames
    for name in ("shapes_fvd", "class_accuracy", "shape_accuracy", "motion_accuracy", "prediction_shapes_fvd"):
        assert {name, f"{name}_real"} <= set(report["metrics"])
    for figure in report["metrics"].values():
        assert set(figure) == {"value", "ci95"}
    assert not any(name.split("_real")[0] in ("fvd", "is", "fid") for name in report["metrics"])
    details = report["protocol_details"]
    assert details["extractor_sha256"] == TINY_SHA256 and details["options"] == {"num_decoding_steps": 3}
    assert details["parts"] == ["shapes-generation", "shapes-prediction"]
    json.dumps(report, allow_nan=False)


def test_a_model_that_follows_captions_is_as_accurate_as_real_clips(classifier):
    pipeline = FakePipeline(ModelIndex("nova", 16, 32, 32, tasks=("text-conditional",)))
    report = measure(pipeline, "shapes", num_clips=FEW, classifier=classifier, batch_size=3)
    assert [len(call["prompt"]) for call in pipeline.calls] == [3, 1]
    assert len({call["seed"] for call in pipeline.calls}) == 2
    for name in ("color", "shape", "motion", "color_and_shape_and_motion", "colors_present"):
        assert value(report, f"text_{name}_accuracy") == value(report, f"text_{name}_accuracy_real")
    assert value(report, "text_shapes_fvd") < 1e-6 < value(report, "text_shapes_fvd_real")
    with pytest.raises(UserError, match="shapes-text"):
        measure(pipeline, "shapes-generation", num_clips=FEW, classifier=classifier)


def test_classes_are_requested_in_equal_numbers_with_different_seeds(classifier):
    pipeline = FakePipeline()
    measure(pipeline, "shapes-generation", num_clips=30, seed=1, classifier=classifier, options={"guidance_scale": 2.0})
    counts = {call["class_label"]: call["num_samples"] for call in pipeline.calls}
    assert list(counts) == list(CLASS_NAMES)
    assert sum(counts.values()) == 30 and set(counts.values()) == {1, 2}
    assert len({call["seed"] for call in pipeline.calls}) == len(CLASS_NAMES)
    assert {call["guidance_scale"] for call in pipeline.calls} == {2.0}


def test_no_call_generates_more_clips_than_a_batch(classifier):
    pipeline = FakePipeline()
    measure(pipeline, "shapes-generation", num_clips=30, classifier=classifier, batch_size=1)
    assert [call["num_samples"] for call in pipeline.calls] == [1] * 30
    assert len({call["seed"] for call in pipeline.calls}) == 30


def test_the_same_seed_gives_the_same_figures(classifier):
    first, again = (measure(FakePipeline(), num_clips=4, classifier=classifier)["metrics"] for _ in range(2))
    assert first == again


def test_repeating_the_first_frame_has_the_psnr_of_copying_it(classifier):
    report = measure(FakePipeline(predict="copy"), "shapes-prediction", num_clips=FEW, classifier=classifier)
    assert value(report, "prediction_psnr_db") == value(report, "copy_first_frame_psnr_db")
    assert report["metrics"]["prediction_over_copy_db"] == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_a_nearly_perfect_prediction_scores_its_error_and_keeps_everything(classifier):
    report = measure(FakePipeline(predict="continue"), "shapes-prediction", num_clips=FEW, classifier=classifier)
    assert value(report, "prediction_psnr_db") == pytest.approx(20 * np.log10(255))
    assert value(report, "prediction_psnr_frames_db") == pytest.approx(20 * np.log10(255))
    assert value(report, "copy_first_frame_psnr_db") < 30
    assert value(report, "prediction_keeps_color") == pytest.approx(
        value(report, "prediction_keeps_color_real"), abs=0.1
    )
    assert value(report, "prediction_shapes_fvd") < 0.1 * value(report, "prediction_shapes_fvd_real")


class TruthfulClassifier(ShapesClassifier):
    """Recognises every clip of the fake pipeline and every held-out one."""

    def read(self, clips):
        worlds = {clip.frames.tobytes(): clip for seed in (77, HELD_BACK_SEED) for clip in clips_of(seed)}
        known = [worlds[clip.numpy().tobytes()].attributes for clip in clips]
        sizes = {"class": 23, "shape": 4, "motion": 6}
        logits = {h: torch.eye(n)[[int(k[h]) for k in known]] for h, n in sizes.items()}
        return Readings(torch.randn(len(known), 3, generator=torch.Generator().manual_seed(0)).double(), logits)


def test_accuracy_is_one_for_the_requested_classes_and_zero_for_others(classifier):
    truthful = TruthfulClassifier(classifier.network, TINY_SHA256)
    report = measure(FakePipeline(), "shapes-generation", num_clips=len(CLASS_NAMES), classifier=truthful)
    for name in ("class_accuracy", "shape_accuracy", "motion_accuracy", "class_accuracy_over_real"):
        assert value(report, name) == 1
    shifted = (
        *CLASS_NAMES[12:],
        *CLASS_NAMES[:12],
    )  # the fake goes by index, so it generates another class than requested
    shuffled = FakePipeline()
    shuffled.index = ModelIndex("magvit", 16, 32, 32, class_names=shifted, tasks=("class-conditional",))
    report = measure(shuffled, num_clips=len(CLASS_NAMES), classifier=truthful)
    assert value(report, "class_accuracy") == 0 and value(report, "class_accuracy_real") == 1


def test_a_tokenizer_gets_reconstruction_figures(classifier):
    report = measure(CoarseTokenizer(), num_clips=6, classifier=classifier)
    assert report["protocol_details"]["parts"] == ["shapes-reconstruction"]
    assert 0.25 < value(report, "codebook_use") <= 0.5  # 8 of the 16 codes can occur; no colour is without any red
    assert 5 < value(report, "reconstruction_psnr_db") < 40
    for head in ("class", "color", "shape", "colors_present", "shapes_present"):
        assert f"reconstruction_{head}_accuracy_over_real" in report["metrics"]
    json.dumps(report, allow_nan=False)


def test_the_tokenizer_of_a_model_can_be_measured_by_name_of_the_protocol(classifier):
    report = measure(
        FakePipeline(tokenizer=CoarseTokenizer()), "shapes-reconstruction", num_clips=4, classifier=classifier
    )
    assert "reconstruction_shapes_fvd" in report["metrics"] and "shapes_fvd" not in report["metrics"]


def test_a_model_folder_is_measured_at_its_own_settings(classifier, tmp_path):
    report = measure(
        save_tiny_model(tmp_path / "tiny"), num_clips=2, classifier=classifier, options={"num_decoding_steps": 1}
    )
    assert report["source"] == str(tmp_path / "tiny")
    assert {"shapes_fvd", "prediction_psnr_db"} <= set(report["metrics"])


def test_unknown_protocols_and_unsuitable_ones_are_refused(classifier):
    with pytest.raises(UserError, match="Unknown protocol 'shape': did you mean 'shapes'"):
        measure(FakePipeline(), "shape", classifier=classifier)
    with pytest.raises(UserError, match="does not fit this source"):
        measure(CoarseTokenizer(), "shapes-generation", classifier=classifier)
    with pytest.raises(UserError, match="at least 2 clips"):
        measure(FakePipeline(), num_clips=1, classifier=classifier)
    with pytest.raises(UserError, match="Unknown model"):
        measure("no-such-model", classifier=classifier)


def test_models_of_other_data_are_refused(classifier):
    other = FakePipeline(index=ModelIndex("magvit", 16, 32, 32, tasks=("class-conditional",), data={"kind": "folder"}))
    with pytest.raises(UserError, match="models of the shapes dataset"):
        measure(other, classifier=classifier)
    names = FakePipeline(index=ModelIndex("magvit", 16, 32, 32, class_names=("cat",), tasks=("class-conditional",)))
    with pytest.raises(UserError, match="knows no class 'cat'"):
        measure(names, num_clips=2, classifier=classifier)


def test_every_task_of_a_model_is_measured_against_the_tokenizers_round_trip(classifier):
    tasks = ("class-conditional", "inpaint-central", "outpaint-dynamic", "frame-prediction")
    index = ModelIndex("magvit", 16, 32, 32, class_names=CLASS_NAMES, tasks=tasks)
    pipeline = FakePipeline(index, tokenizer=CoarseTokenizer())
    report = measure(pipeline, "shapes-tasks", num_clips=FEW, classifier=classifier, batch_size=3)
    assert {f"{task.replace('-', '_')}_shapes_fvd" for task in tasks} <= set(report["metrics"])
    assert "class_conditional_given_psnr_db" not in report["metrics"]
    assert (
        report["metrics"]["inpaint_central_given_psnr_db"]["value"] is None
    )  # infinite: the fake returns the real clip
    assert report["metrics"]["inpaint_central_given_blended_over_round_trip_db"]["value"] == 0
    assert value(report, "inpaint_central_blended_shapes_fvd") > 0  # coded once more, unlike the fake's clips
    assert value(report, "inpaint_central_shapes_fvd") == pytest.approx(0, abs=1e-6)
    assert 5 < value(report, "outpaint_dynamic_given_round_trip_db") < 40
    assert [len(call["task_video"]) for call in pipeline.calls if "task_video" in call] == [3, 1, 3, 1]
    assert all("blend_given" not in call for call in pipeline.calls)
    json.dumps(report, allow_nan=False)


def test_tasks_are_measured_unblended_even_where_the_model_blends(classifier):
    index = ModelIndex("magvit", 16, 32, 32, tasks=("inpaint-central",), blend_given=True)
    pipeline = FakePipeline(index, tokenizer=CoarseTokenizer())
    measure(pipeline, "shapes-tasks", num_clips=2, classifier=classifier)
    assert [call["blend_given"] for call in pipeline.calls] == [False]


def test_the_protocol_is_frozen_and_goes_into_json():
    protocol = ShapesProtocol("shapes", 8, 16, 32, 32, "ab" * 32, seed=1, options={"guidance_scale": 2.0})
    record = json.loads(json.dumps(protocol.as_dict()))
    assert record["real_seed"] == HELD_BACK_SEED and record["extractor_sha256"] == "ab" * 32
    assert record["frame_stride"] == 1 and record["options"] == {"guidance_scale": 2.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.__setattr__("seed", 2)


def test_a_killed_evaluation_of_a_shapes_protocol_continues_to_the_same_figures(classifier, tmp_path):
    def measure_six(pipeline: FakePipeline, **options) -> dict:
        return measure(pipeline, num_clips=6, batch_size=2, classifier=classifier, **options)

    tokenizer, network = CoarseTokenizer(), torch.nn.Linear(1, 1)
    whole = measure_six(FakePipeline(tokenizer=tokenizer, model=network))["metrics"]
    killed = FakePipeline(tokenizer=tokenizer, model=network, fail_after=8)
    with pytest.raises(KeyboardInterrupt):
        measure_six(killed, state=tmp_path / "state")
    rest = FakePipeline(tokenizer=tokenizer, model=network)
    assert measure_six(rest, state=tmp_path / "state")["metrics"] == whole
    assert [len(call["context"]) for call in rest.calls] == [2]  # six classes and two of three predictions are stored
    with pytest.raises(UserError, match="parts of another evaluation"):
        measure_six(FakePipeline(tokenizer=tokenizer), state=tmp_path / "state")  # other weights


def test_settings_of_published_protocols_are_refused(classifier):
    for options, flag in (({"reference": "folder"}, "--reference"), ({"paste_given": True}, "--paste-given")):
        with pytest.raises(UserError, match=f"{flag} belongs to the protocols of published tables"):
            measure(FakePipeline(), "shapes", classifier=classifier, **options)


def test_a_model_whose_clips_are_not_of_its_index_is_refused(classifier):
    wrong = FakePipeline(ModelIndex("magvit", 8, 32, 32, class_names=CLASS_NAMES, tasks=("class-conditional",)))
    with pytest.raises(UserError, match="shape .16, 32, 32, 3., its model_index.json says .8, 32, 32, 3."):
        measure(wrong, num_clips=2, classifier=classifier)
