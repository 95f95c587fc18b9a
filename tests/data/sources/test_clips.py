import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mutoscope.data.sources.clips import ClipDataset, ClipOptions
from mutoscope.data.sources.folder import read_caption
from mutoscope.data.sources.readers import count_frames
from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError

Sample = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: cats holds 40 and 150 frames, dogs 12 (31x45: 8) frames; captions beside two of them."""
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in {
        "cats/a.mp4": "plain_mp4",
        "cats/b.mp4": "long_mp4",
        "dogs/c.mkv": "variable_rate",
        "dogs/deep/d.webm": "odd_size",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample(kind), folder / name)
    (folder / "cats/a.txt").write_text("a cat walks\n")
    (folder / "dogs/c.txt").write_bytes("ein Hündchen\r\n".encode("utf-16"))  # as editors of Windows do
    (folder / "notes.md").write_text("no video")
    shutil.copy(sample("plain_mp4"), folder / "cats/.unfinished.tmp.mp4")
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1251"])
def test_captions_are_right_or_refused_by_name(encoding: str, tmp_path: Path):
    text = {"latin-1": "ein grüner Kreis", "cp1251": "красный круг"}.get(encoding, "ein grüner Kreis 红")
    (tmp_path / "x.txt").write_bytes(f"{text}\r\n".encode(encoding))
    if encoding in ("latin-1", "cp1251", "utf-16-le"):
        with pytest.raises(UserError, match=r"x\.txt .*save it as UTF-8"):
            read_caption(tmp_path / "x.mp4")
    else:
        assert read_caption(tmp_path / "x.mp4") == text


def test_items_hold_clip_label_caption_and_start(folder: Path):
    dataset = ClipDataset(folder, num_frames=8, height=16, width=24)
    assert dataset.classes == ["cats", "dogs"]
    assert len(dataset) == 40 // 8 + 150 // 8 + 12 // 8 + 1
    item = dataset[1]
    assert item["video"].shape == (8, 16, 24, 3)
    assert item["video"].dtype == torch.uint8
    assert (item["label"], item["caption"], item["start"]) == (0, "a cat walks", 8)
    assert item["path"] == str(folder / "cats/a.mp4")
    last = dataset[-1]
    assert (last["label"], last["caption"]) == (1, "")
    assert dataset[len(dataset) - 2]["caption"] == "ein Hündchen"
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_frames_are_those_of_the_file(folder: Path):
    """At the video's own size nothing is scaled or cropped."""
    item = ClipDataset(folder / "cats/a.mp4", 5, 48, 64, frame_stride=3, clip_step=1)[4]
    assert np.array_equal(item["video"].numpy(), read_video(folder / "cats/a.mp4").frames[4:17:3])
    assert item["label"] == -1


def test_far_clips_are_those_of_the_file(folder: Path):
    dataset = ClipDataset(folder / "cats/b.mp4", 10, 32, 48)
    whole = read_video(folder / "cats/b.mp4").frames
    for item in (dataset[7], dataset[13], dataset[14]):
        assert np.array_equal(item["video"].numpy(), whole[item["start"] : item["start"] + 10])


def test_stride_and_step_decide_how_many_clips_there_are(folder: Path):
    video = folder / "cats/a.mp4"  # 40 frames
    assert len(ClipDataset(video, 8, 16, 16, frame_stride=2)) == 2  # 15 frames each
    assert len(ClipDataset(video, 8, 16, 16, clip_step=1)) == 33
    assert len(ClipDataset(video, 40, 16, 16)) == 1


def test_the_crop_is_centred_and_covers(folder: Path):
    wide = read_video(folder / "cats/a.mp4", size=(24, 32)).frames[:4]
    assert np.array_equal(ClipDataset(folder / "cats/a.mp4", 4, 24, 20)[0]["video"].numpy(), wide[:, :, 6:26])


def test_random_choices_vary_between_items_epochs_and_seeds_and_repeat(folder: Path):
    options: ClipOptions = {"random_start": True, "random_crop": True, "random_flip": True}
    dataset = ClipDataset(folder / "cats/a.mp4", 8, 16, 16, **options)
    same = ClipDataset(folder / "cats/a.mp4", 8, 16, 16, **options)
    other = ClipDataset(folder / "cats/a.mp4", 8, 16, 16, **options, seed=1)
    assert all(torch.equal(dataset[i]["video"], same[i]["video"]) for i in range(len(dataset)))
    starts = [[dataset[i]["start"] for i in range(len(dataset))]]
    starts.append([other[i]["start"] for i in range(len(dataset))])
    dataset.set_epoch(1)
    starts.append([dataset[i]["start"] for i in range(len(dataset))])
    assert len({tuple(s) for s in starts}) == 3
    assert all(0 <= start <= 32 for s in starts for start in s)


def test_flipping_mirrors_about_half_of_the_clips(folder: Path):
    plain = ClipDataset(folder / "cats/b.mp4", 3, 32, 48)
    flipped = ClipDataset(folder / "cats/b.mp4", 3, 32, 48, random_flip=True)
    mirrored = 0
    for i in range(30):
        before, after = plain[i]["video"], flipped[i]["video"]
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
        mirrored += torch.equal(after, before.flip(2))
    assert 5 < mirrored < 25


@given(
    seed=st.integers(0, 2**40),
    num_frames=st.integers(1, 12),
    stride=st.integers(1, 3),
    epoch=st.integers(0, 5),
    size=st.tuples(st.integers(8, 30), st.integers(8, 30)),
)
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.slow
def test_items_do_not_depend_on_the_number_of_workers(folder: Path, seed, num_frames, stride, epoch, size):
    options = dict(random_start=True, random_crop=True, random_flip=True, short="loop", seed=seed, clip_step=29)
    dataset = ClipDataset(folder, num_frames, *size, stride, **options)
    dataset.set_epoch(epoch)
    loaded = []
    for workers in (0, 1, 2):
        loader = DataLoader(dataset, batch_size=2, num_workers=workers)
        loaded.append(list(loader))
    for batches in loaded[1:]:
        for one, other in zip(loaded[0], batches, strict=True):
            assert torch.equal(one["video"], other["video"])
            assert torch.equal(one["start"], other["start"])
            assert one["path"] == other["path"]


@pytest.mark.slow
def test_a_new_epoch_reaches_workers_that_stay_alive(folder: Path):
    dataset = ClipDataset(folder / "cats/a.mp4", 8, 16, 16, random_start=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append([int(item["start"]) for item in loader])
    assert epochs[0] != epochs[1]
    assert epochs[1] == [dataset[i]["start"] for i in range(len(dataset))]


def test_short_videos_are_skipped_and_listed(folder: Path):
    with pytest.warns(UserWarning, match=r"2 of 4 videos .* are skipped"):
        dataset = ClipDataset(folder, 16, 16, 16)
    assert sorted(Path(entry.path).name for entry in dataset.skipped) == ["c.mkv", "d.webm"]
    assert "12 frames, a clip needs 16" in {entry.reason for entry in dataset.skipped}
    assert dataset.broken == []
    assert dataset.classes == ["cats", "dogs"]  # labels do not shift when files drop out


def test_short_videos_can_be_looped(folder: Path):
    dataset = ClipDataset(folder / "dogs/c.mkv", 10, 32, 32, frame_stride=2, short="loop")
    whole = read_video(folder / "dogs/c.mkv").frames
    assert len(dataset) == 1
    assert np.array_equal(dataset[0]["video"].numpy(), whole[np.arange(10) * 2 % 12])


def copy_samples(sample: Sample, folder: Path, *kinds: str) -> Path:
    for kind in kinds:
        shutil.copy(sample(kind), folder)
    return folder


def test_broken_files_are_reported_once_counted_and_skipped(sample: Sample, tmp_path: Path):
    bad = ["cut_off_index", "no_frame", "zero_length", "not_a_video", "audio_only"]
    copy_samples(sample, tmp_path, "plain_mp4", "long_mp4", *bad)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = ClipDataset(tmp_path, 8, 16, 16)
        items = [dataset[i] for i in range(len(dataset))]
    assert len(caught) == len(bad)
    assert sorted(Path(entry.path).stem for entry in dataset.broken) == sorted(bad)
    assert {Path(item["path"]).stem for item in items} == {"plain_mp4", "long_mp4"}


def test_an_error_when_nothing_readable_is_left(sample: Sample, tmp_path: Path):
    copy_samples(sample, tmp_path, "not_a_video", "zero_length")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="nothing readable is left"):
        ClipDataset(tmp_path, 8, 16, 16)


def test_an_error_when_all_videos_are_too_short(folder: Path):
    with pytest.raises(UserError, match=r"4 of 4 videos .* shorter than 500 frames"):
        ClipDataset(folder, 500, 16, 16)


def test_a_file_that_breaks_later_is_replaced_the_same_way_each_time(sample: Sample, tmp_path: Path):
    copy_samples(sample, tmp_path, "plain_mp4", "long_mp4", "odd_size")
    dataset = ClipDataset(tmp_path, 8, 16, 16)
    (tmp_path / "long_mp4.mp4").write_bytes(b"broken now")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = ([dataset[i] for i in range(10)] for _ in range(2))
    assert len(caught) == 1
    assert "long_mp4" in str(caught[0].message)
    assert [Path(entry.path).stem for entry in dataset.broken] == ["long_mp4"]
    assert all("long" not in entry["path"] for entry in first)
    assert [(e["path"], e["start"]) for e in first] == [(e["path"], e["start"]) for e in second]
    assert len({(e["path"], e["start"]) for e in first}) > 1


def test_an_error_when_every_file_breaks_later(sample: Sample, tmp_path: Path):
    copy_samples(sample, tmp_path, "plain_mp4", "long_mp4")
    dataset = ClipDataset(tmp_path, 8, 16, 16)
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken now")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="nothing readable is left"):
        dataset[0]


@pytest.mark.slow
def test_files_a_worker_finds_broken_are_counted_in_the_main_process(sample: Sample, tmp_path: Path):
    copy_samples(sample, tmp_path, "plain_mp4", "long_mp4")
    dataset = ClipDataset(tmp_path, 8, 16, 16)
    (tmp_path / "long_mp4.mp4").write_bytes(b"broken now")
    assert len(list(DataLoader(dataset, batch_size=None, num_workers=1))) == len(dataset)
    assert [Path(entry.path).stem for entry in dataset.broken] == ["long_mp4"]


def test_a_damaged_tail_gives_clips_from_before_the_damage(sample: Sample, tmp_path: Path):
    copy_samples(sample, tmp_path, "damaged_tail")  # 30 frames by its header, about 20 decode
    readable = read_video(tmp_path / "damaged_tail.mp4").frames
    dataset = ClipDataset(tmp_path, 10, 48, 64)
    assert len(dataset) == 3
    with pytest.warns(UserWarning, match=f"ends after {len(readable)} of 30 frames"):
        items = [dataset[i] for i in range(3)]
    for item in items:
        assert np.array_equal(item["video"].numpy(), readable[item["start"] : item["start"] + 10])
    assert len(dataset.damaged) == 1
    assert dataset.broken == []


def test_frames_are_counted_where_the_header_has_no_count(sample: Sample):
    assert count_frames(sample("odd_size")) == 8
    assert count_frames(sample("variable_rate")) == 12


@pytest.mark.parametrize("options", [{"num_frames": 0}, {"frame_stride": 0}, {"seed": -1}, {"short": "pad"}])
def test_impossible_options_are_refused(folder: Path, options: dict):
    with pytest.raises(UserError):
        ClipDataset(folder, **({"num_frames": 8, "height": 16, "width": 16} | options))  # pyright: ignore[reportArgumentType]


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder"):
        ClipDataset(tmp_path / "none", 8, 16, 16)
    with pytest.raises(UserError, match="holds no videos"):
        ClipDataset(tmp_path, 8, 16, 16)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_clips_load_or_are_reported(clips_dir: Path, tmp_path: Path):
    for name in os.listdir(clips_dir):
        (tmp_path / name).symlink_to(clips_dir / name)
    dataset = ClipDataset(tmp_path, 16, 32, 32, clip_step=100)
    names = {Path(item["path"]).name for item in (dataset[i] for i in range(len(dataset)))}
    assert len(names) == 12
    assert {Path(entry.path).name for entry in dataset.broken} == {"invalid_vp9.webm", "truncated_no_moov_av1.mp4"}
    assert {Path(entry.path).name for entry in dataset.skipped} == {"bracelet_rot270_hevc10_hdr.mp4"}
    assert dataset.damaged == []  # clips of this step end before the damage


def test_drawn_intervals_give_frames_that_far_apart(folder: Path):
    video = folder / "cats/a.mp4"
    every = ClipDataset(video, 1, 16, 16, clip_step=1)
    dataset = ClipDataset(video, 4, 16, 16, max_interval=3, clip_step=1, seed=2)
    seen = set()
    for number in range(len(dataset)):
        item = dataset[number]
        seen.add(item["interval"])
        for frame in range(4):
            single = every[item["start"] + frame * item["interval"]]["video"][0]
            assert torch.equal(item["video"][frame], single)
    assert seen == {1, 2, 3}


def test_an_interval_is_no_longer_than_the_video_allows(folder: Path):
    video = folder / "cats/a.mp4"
    count = len(ClipDataset(video, 1, 16, 16, clip_step=1))
    dataset = ClipDataset(video, count // 2 + 1, 16, 16, max_interval=25, clip_step=1)
    assert {dataset[i]["interval"] for i in range(min(8, len(dataset)))} <= {1, 2}
