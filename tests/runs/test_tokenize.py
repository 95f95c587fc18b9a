import pytest
import torch
from torch import nn

from mutoscope.errors import UserError
from mutoscope.runs.tokenize import condition_key, tokenize
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from training.fakes import FakeSource


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
    """Fails when a clip beyond the limit is asked for, as a machine that is switched off would."""

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
def test_neither_workers_nor_the_size_of_a_batch_change_what_is_cached(tmp_path, workers, batch_size):
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


def test_conditions_show_as_many_frames_as_asked_for(tmp_path):
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
    assert fill(tmp_path / "cache", Stopping(1)).num_clips == 5  # no clip beyond the first is made again
    with pytest.raises(UserError, match="other clips or another tokenizer"):
        fill(tmp_path / "cache", FakeSource(), num_clips=4)


def test_a_finite_source_ends_the_cache(tmp_path):
    assert fill(tmp_path / "cache", FakeSource(num_clips=3)).num_clips == 3


def test_frames_can_only_be_marked_where_the_tokenizer_keeps_them_apart(tmp_path):
    class Marked(FakeSource):
        def __getitem__(self, indices):
            batch = super().__getitem__(indices)
            return batch | {"history_only": torch.zeros(len(indices), batch["video"].shape[1] + 1, dtype=torch.bool)}

    with pytest.raises(UserError, match="codes every frame by itself; with this one 3 frames become 2"):
        fill(tmp_path / "cache", Marked(), history_only=True)
    assert not list(tmp_path.iterdir())


def test_what_clips_look_like_as_history_is_encoded_where_it_differs(tmp_path):
    class Flawed(FakeSource):
        def __getitem__(self, indices):
            batch = super().__getitem__(indices)
            wrong = torch.tensor([index % 2 == 1 for index in indices])[:, None, None, None, None]
            return batch | {"history": torch.where(wrong, 255 - batch["video"], batch["video"])}

    batch = fill(tmp_path / "cache", Flawed(), history=True)[range(5)]
    red = FakeSource()[range(5)]["video"][:, :, 0, 0, 0].long()
    expected = torch.where(torch.tensor([0, 1, 0, 1, 0])[:, None] == 1, 255 - red, red)
    assert torch.equal(batch["tokens"].flatten(1), red)
    assert torch.equal(batch["history"].flatten(1), expected)


def test_the_class_does_not_need_its_own_condition():
    assert condition_key("class-conditional-frame-prediction") == condition_key("frame-prediction")
    assert condition_key("inpaint-central") == "inpaint-central"
