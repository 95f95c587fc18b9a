"""A folder of recordings from its videos to validated, exported weights; token caches of earlier versions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mutoscope.data.base import EPISODE, ClipBatch
from mutoscope.data.held_back import split_clips
from mutoscope.data.sources.clips import ClipDataset
from mutoscope.data.sources.recorded_data import FolderData, RandomClips
from mutoscope.data.sources.tokens import METADATA, StoredField, TokenCache
from mutoscope.data.video.write import write_video
from mutoscope.hub import load_tokenizer
from mutoscope.model_index import ModelIndex
from mutoscope.models.par import PAR, PARConfig
from mutoscope.runs.sheets import GenerationSheet
from mutoscope.runs.tokenize import tokenize
from mutoscope.runs.train import train
from mutoscope.runs.validation import cached_examples, example_clips
from mutoscope.training.tracking import read_log
from runs.test_tokenize import FirstPixel
from runs.test_train import magvit_config, tiny_model, tiny_tokenizer
from training.fakes import FakeSource

NUM_VIDEOS, NUM_WINDOWS = 5, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of two classes, each of a grey of its own: in the order of their paths 20, 60, 100."""
    out = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        frames = np.full((17, 16, 16, 3), 40 * number + 20, np.uint8)
        (out / "ab"[number > 2]).mkdir(exist_ok=True)
        write_video(out / "ab"[number > 2] / f"{number}.gif", frames, fps=8)
    return out


@pytest.fixture
def data(folder: Path) -> FolderData:
    return FolderData(path=str(folder), num_frames=8, height=16, width=16)


def greys(batch: ClipBatch) -> set[int]:
    """Numbers of the videos that the clips show."""
    return {round((float(clip.float().mean()) - 20) / 40) for clip in batch["video"]}


def test_clips_know_their_recording_before_and_after_they_are_read(data: FolderData):
    source = data.open()
    assert source.fields["episode"] == EPISODE and source.episodes is not None
    assert source.episodes.tolist() == np.repeat(np.arange(NUM_VIDEOS), NUM_WINDOWS).tolist()
    assert source[range(10)]["episode"].tolist() == source.episodes.tolist()


def test_clips_drawn_at_random_come_from_the_chosen_recordings_alone(folder: Path):
    clips = ClipDataset(folder, 8, 16, 16, windows=1, random_start=True)
    split = split_clips(RandomClips(clips), 0.4)
    assert split is not None and split.training.num_clips is None
    trained, held = greys(split.training[range(30)]), greys(split.held_back[range(10)])
    assert len(trained) == 3 and len(held) == 2 and not trained & held


def test_a_broken_recording_is_not_replaced_by_a_held_back_one(tmp_path: Path, folder: Path):
    for path in folder.rglob("*.gif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1.gif").write_bytes(b"GIF89a broken")
    clips = ClipDataset(tmp_path, 8, 16, 16, windows=1)  # nothing is read before it is needed
    source = RandomClips(clips, items=np.array([0, 1]))
    with pytest.warns(UserWarning, match=r"1\.gif"):
        assert greys(source[range(12)]) == {0}


@pytest.mark.slow
def test_both_stages_hold_back_whole_recordings_and_say_what_they_export(data: FolderData, tmp_path: Path, capsys):
    loop = {"validation_share": 0.2, "ema_warmup": True}
    recipe = replace(tiny_tokenizer(**loop), data=data)
    result = train(recipe, tmp_path / "tokenizer")
    shown = capsys.readouterr().err
    assert "1 of 5 recordings are held back for validation: 2 of 10 clips." in shown
    assert f"The {result.kind} weights are exported, by 2 held-back clips" in shown
    assert "psnr" in result.figures[result.kind]

    model = tiny_model(tmp_path / "tokenizer", **loop)
    model = replace(model, data=data, model=replace(magvit_config(model), num_classes=2), cache_clips=100)
    train(model, tmp_path / "model")
    cache = TokenCache(tmp_path / "model" / "tokens")
    assert cache.episodes is not None and cache.episodes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {"curve.png", "log.jsonl", "samples"} <= {path.name for path in (tmp_path / "model").iterdir()}
    last = read_log(tmp_path / "model" / "log.jsonl")[-1]
    assert {"validation_loss", "validation_loss_averaged", "exports_averaged_weights"} <= last.keys()

    for found in (example_clips(data, data.open(), recipe.loop), cached_examples(data, cache, model.loop)):
        split = split_clips(data.open(), 0.2)
        assert split is not None and greys(found) == set(split.held_back[[0]]["episode"].tolist())


def test_sheets_name_the_condition_of_each_clip():
    examples: ClipBatch = {
        "video": torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8),
        "label": torch.tensor([1, -1]),
        "caption": ["a cat", ""],
    }
    index = ModelIndex("magvit", 1, 4, 4, class_names=("run", "jump"))
    sheet = GenerationSheet(FirstPixel(), index, examples)
    assert sheet.labels("class-conditional") == [("real: jump", "generated"), ("real", "generated")]
    assert sheet.labels("text-conditional") == [("real: a cat", "generated"), ("real", "generated")]
    assert sheet.labels("frame-prediction") == [("real", "generated")] * 2


def test_a_sheet_leaves_the_network_that_is_training_as_it_is():
    """Packed layers compute with other roundings: the figures of a run would depend on whether it had been resumed."""
    tokenizer = load_tokenizer("vq-shapes")
    index = ModelIndex("par", 16, 32, 32, class_names=("a", "b"), tasks=("class-conditional",))
    model = PAR(PARConfig(1, 64, 2, None, 512, (8, 8, 8), num_parallel=16, num_classes=2, mlp_size=64)).eval()
    kinds = [type(module) for module in model.modules()]
    examples: ClipBatch = {
        "video": torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8),
        "label": torch.tensor([1]),
        "caption": [""],
    }
    clips = GenerationSheet(tokenizer, index, examples).generate(model, "class-conditional")
    assert clips.shape == (1, 16, 32, 32, 3)
    assert [type(module) for module in model.modules()] == kinds


class Numbered(FakeSource):
    """Two clips of each recording."""

    def __init__(self, limit: int = 100) -> None:
        super().__init__(num_clips=6)
        self.limit, self.fields = limit, {"episode": EPISODE}

    def __getitem__(self, indices):
        if max(indices) >= self.limit:
            raise KeyboardInterrupt
        return {**super().__getitem__(indices), "episode": torch.tensor([int(index) // 2 for index in indices])}


def test_a_cache_stores_the_recordings_unasked(tmp_path: Path):
    cache = tokenize(FirstPixel(), "first-pixel", Numbered(), tmp_path / "cache", num_clips=6)
    assert cache.info.fields == {"episode": StoredField("int64")}
    assert cache.episodes is not None and cache.episodes.tolist() == [0, 0, 1, 1, 2, 2]
    assert cache[[5]]["episode"].tolist() == [2]


def test_a_finished_cache_of_an_earlier_version_is_used_as_it_is(tmp_path: Path):
    tokenize(FirstPixel(), "first-pixel", Numbered(), tmp_path / "cache", num_clips=6)
    path = tmp_path / "cache" / METADATA
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fields": {}}))
    (tmp_path / "cache" / "episode.npy").unlink()
    cache = tokenize(FirstPixel(), "first-pixel", Numbered(), tmp_path / "cache", num_clips=6)
    assert cache.episodes is None and cache.num_clips == 6
    split = split_clips(cache, 0.3)
    assert split is not None and split.indices.tolist() == [4, 5]  # its last clips


def test_an_unfinished_cache_of_an_earlier_version_is_continued(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        tokenize(FirstPixel(), "first-pixel", Numbered(limit=4), tmp_path / "cache", num_clips=6, batch_size=2)
    partial = tmp_path / "cache.partial"
    progress = json.loads((partial / "progress.json").read_text())
    progress["info"]["fields"] = {}
    (partial / "progress.json").write_text(json.dumps(progress))
    (partial / "episode.npy").unlink()
    cache = tokenize(FirstPixel(), "first-pixel", Numbered(), tmp_path / "cache", num_clips=6)
    assert cache.episodes is None and cache[range(6)]["label"].tolist() == [0, 1, 2, 3, 4, 0]
