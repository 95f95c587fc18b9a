from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from mutoscope.data.base import LABEL, Field
from mutoscope.errors import UserError
from mutoscope.models.base import ModelConfig
from mutoscope.runs.tokenize import condition_key, tokenize
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from mutoscope.training.trainer import train_model
from training.fakes import FakeSource, features_recipe


class FirstPixel(VideoTokenizer):
    """The token of a frame is the red value of its first pixel."""

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(temporal_stride=1, spatial_stride=4, vocab_size=256)

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def encode(self, video):
        return ((video[:, 0, :, :1, :1] + 1) * 127.5).round().long()  # (b, t, 1, 1)


class Stopping(FakeSource):
    """Fails when a clip beyond the limit is read, as a machine that is switched off would."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __getitem__(self, indices):
        if max(indices) >= self.limit:
            raise KeyboardInterrupt
        return super().__getitem__(indices)


def fill(out, source, **options):
    options = {"num_clips": 5, "tasks": ("class-conditional", "frame-prediction"), "batch_size": 2} | options
    return tokenize(FirstPixel(), "first-pixel", source, out, **options)


@pytest.mark.parametrize("workers, batch_size", [(2, 2), (1, 5), (0, None)])
def test_neither_workers_nor_the_size_of_a_batch_change_the_cache(tmp_path, workers, batch_size):
    wanted = fill(tmp_path / "plain", FakeSource())
    found = fill(tmp_path / "other", FakeSource(), num_workers=workers, batch_size=batch_size)
    assert found.info == wanted.info
    for name in ("tokens", "label"):
        assert torch.equal(found[range(5)][name], wanted[range(5)][name])


def test_clips_and_the_conditions_of_the_tasks_are_encoded(tmp_path):
    source = FakeSource()
    batch = fill(tmp_path / "cache", source)[range(5)]
    video = source[range(5)]["video"]
    red = video[:, :, 0, 0, 0].long()  # (5, t)
    assert torch.equal(batch["tokens"].flatten(1), red)
    assert torch.equal(batch["conditions"]["frame-prediction"].flatten(1), red[:, :1].expand_as(red))
    assert batch["label"].tolist() == [0, 1, 2, 3, 4]


def test_conditions_show_as_many_frames_as_requested(tmp_path):
    source = FakeSource()
    batch = fill(tmp_path / "cache", source, context_frames=2)[range(5)]
    assert torch.equal(batch["conditions"]["frame-prediction"], batch["tokens"])  # both frames of these clips
    with pytest.raises(UserError, match="other clips or another tokenizer"):
        fill(tmp_path / "cache", source)


def test_an_interrupted_cache_is_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", Stopping(3))
    cut, whole = fill(tmp_path / "cut", FakeSource()), fill(tmp_path / "whole", FakeSource())
    assert torch.equal(cut[range(5)]["tokens"], whole[range(5)]["tokens"])


def test_an_equal_cache_is_opened_and_another_one_refused(tmp_path):
    fill(tmp_path / "cache", FakeSource())
    assert fill(tmp_path / "cache", Stopping(1)).num_clips == 5  # no clip beyond the first is read again
    with pytest.raises(UserError, match="other clips or another tokenizer"):
        fill(tmp_path / "cache", FakeSource(), num_clips=4)


def test_a_finite_source_ends_the_cache(tmp_path):
    assert fill(tmp_path / "cache", FakeSource(num_clips=3)).num_clips == 3


class Joining(FirstPixel):
    """Joins pairs of frames."""

    def encode(self, video):
        return super().encode(video)[:, ::2]


def test_fields_of_frames_need_a_tokenizer_that_keeps_frames_apart(tmp_path):
    source = FakeSource()
    source.fields = {"history_only": Field("bool", (2,), per_frame=True)}
    with pytest.raises(UserError, match="'history_only'.*codes every frame by itself; with this one 2 frames become 1"):
        tokenize(Joining(), "joining", source, tmp_path / "cache", num_clips=2, fields=("history_only",))
    assert not list(tmp_path.iterdir())


class Corrupted(FakeSource):
    """The context of every second clip is inverted."""

    fields: ClassVar = {"history": Field("uint8", (2, 4, 4, 3), encoded=True)}

    def __getitem__(self, indices):
        batch = super().__getitem__(indices)
        wrong = torch.tensor([index % 2 == 1 for index in indices])[:, None, None, None, None]
        return {**batch, "history": torch.where(wrong, 255 - batch["video"], batch["video"])}


def test_fields_of_pixels_are_encoded_where_they_differ_from_the_video(tmp_path):
    batch = fill(tmp_path / "cache", Corrupted(), fields=("history",))[range(5)]
    red = FakeSource()[range(5)]["video"][:, :, 0, 0, 0].long()
    expected = torch.where(torch.tensor([0, 1, 0, 1, 0])[:, None] == 1, 255 - red, red)
    assert torch.equal(batch["tokens"].flatten(1), red)
    assert torch.equal(batch["history"].flatten(1), expected)


def test_only_fields_that_the_source_has_and_the_model_reads_are_stored(tmp_path):
    assert fill(tmp_path / "none", Corrupted()).info.fields == {}
    assert fill(tmp_path / "other", Corrupted(), fields=("label", "interval")).info.fields == {}


class Weather(FakeSource):
    """A source with a field that no other file of the package knows."""

    fields: ClassVar = {"label": LABEL, "temperature": Field("float32", (2,))}

    def __getitem__(self, indices):
        rows = torch.tensor([[float(index), 0.5] for index in indices])
        return {**super().__getitem__(indices), "temperature": rows}


@dataclass(frozen=True)
class WeatherConfig(ModelConfig):
    """The configuration of a model that reads this field."""

    latent_shape: tuple[int, int, int] = (2, 1, 1)
    clip_fields: tuple[str, ...] = ("label", "temperature")


class WeatherModel(nn.Module):
    """Fails to learn anything, but sees every batch."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(2)), []

    def loss(self, batch, generator):
        self.seen.append(batch)
        return (batch["temperature"] @ self.weight).square().mean(), {}


def test_a_new_per_clip_condition_reaches_the_loss_through_its_source_and_its_model_alone(tmp_path):
    cache = fill(tmp_path / "cache", Weather(), fields=WeatherConfig().clip_fields)
    model = WeatherModel()
    train_model(model, features_recipe(num_steps=3, batch_size=2), cache, tmp_path / "run")
    assert len(model.seen) == 3
    for batch in model.seen:
        red = batch["tokens"][:, 0, 0, 0].tolist()
        clips = Weather()[range(5)]["video"][:, 0, 0, 0, 0].tolist()
        assert batch["temperature"].tolist() == [[float(clips.index(value)), 0.5] for value in red]


def test_the_class_does_not_need_its_own_condition():
    assert condition_key("class-conditional-frame-prediction") == condition_key("frame-prediction")
    assert condition_key("inpaint-central") == "inpaint-central"
