"""Videos, images and episodes as one kind of thing, with names, lengths, rates and pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.fakes import write_videos
from mutoscope.data.video.read import read_video, write_video
from mutoscope.errors import UserError
from mutoscope.evaluation.sources.footage import FileFootage, FootageInfo, Take, is_padded, open_footage
from mutoscope.hub import save_pretrained
from tiny_models import tiny_index, tiny_tokenizer


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> FileFootage:
    """Eighty frames, frame i of grey level 3 i."""
    path = tmp_path_factory.mktemp("footage") / "levels.mp4"
    write_video(
        path, np.arange(80, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(48, 2).repeat(3, 3) * 3, 20
    )
    return FileFootage(path, "levels")


def levels(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 3) for frame in frames]


@pytest.mark.parametrize("numbers", [(0, 1, 2), (70, 72, 74), (5, 7, 10, 12), (66, 67, 69), (79,)])
def test_any_rising_frames_can_be_read(numbered: FileFootage, numbers):
    assert levels(numbered.read(numbers)) == list(numbers)
    assert numbered.read(numbers, (16, 16)).shape == (len(numbers), 16, 24, 3)


@pytest.mark.parametrize("numbers", [(78, 79, 80), (70, 79, 82), (90,)])
def test_frames_after_the_end_are_an_error(numbered: FileFootage, numbers):
    with pytest.raises(UserError):
        numbered.read(numbers)


def test_info_has_length_rate_and_size(numbered: FileFootage):
    assert numbered.info() == FootageInfo(80, 20.0, 32, 48)


def test_a_common_rate_shortens_faster_videos_only_and_whole_steps_stay_whole():
    assert FootageInfo(60, 30, 1, 1).step(10) == 3 and FootageInfo(60, 29.97, 1, 1).step(10) == 3
    assert FootageInfo(60, 25, 1, 1).step(10) == 2.5 and FootageInfo(60, 5, 1, 1).step(10) == 1
    assert FootageInfo(60, None, 1, 1).step(10) == 1 and FootageInfo(60, 30, 1, 1).step(None) == 1
    assert FootageInfo(60, 30, 1, 1).length(10) == 20 and FootageInfo(0, 30, 1, 1).length(10) == 0


def test_files_are_named_by_their_path_and_by_the_suffix_only_where_needed(tmp_path: Path):
    for name in ("b/x.mp4", "b/x.webm", "a.mp4", ".hidden.mp4", "sheet.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = open_footage(tmp_path)
    assert [video.name for video in found.videos] == ["a", "b/x.mp4", "b/x.webm"] and found.kind == "videos"
    assert "1 images beside the videos" in found.notes[0]


def test_images_are_read_where_there_are_no_videos(tmp_path: Path):
    Image.new("RGB", (8, 6), (10, 20, 30)).save(tmp_path / "one.png")
    frames = [Image.new("L", (8, 6), level) for level in (0, 100, 200)]
    frames[0].save(tmp_path / "two.gif.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    still, animated = open_footage(tmp_path).videos
    assert still.info() == FootageInfo(1, None, 6, 8) and animated.info().num_frames == 3
    assert still.read([0])[0, 0, 0].tolist() == [10, 20, 30]
    assert [int(frame.mean()) for frame in animated.read([0, 2])] == [0, 200]


def test_a_file_alone_is_a_folder_of_one(numbered: FileFootage):
    assert [video.name for video in open_footage(numbered.path).videos] == ["levels"]


def test_paths_with_nothing_to_compare_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="There is no folder or file"):
        open_footage(tmp_path / "none")
    with pytest.raises(UserError, match="holds no videos and no images"):
        open_footage(tmp_path)
    model = save_pretrained(tmp_path / "model", tiny_index(model=None, family="tokenizer"), tiny_tokenizer())
    for named in (model, "magi-shapes"):
        with pytest.raises(UserError, match="is a model: save its clips"):
            open_footage(named)


def test_broken_files_say_what_is_wrong(tmp_path: Path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="broken.mp4"):
        open_footage(tmp_path).videos[0].info()


def test_a_clip_has_the_pixels_that_training_reads(tmp_path: Path):
    write_videos(tmp_path, 1)
    path = tmp_path / "0.mp4"
    take = Take(FileFootage(path, "0"), tuple(range(16)), (32, 32), (16, 24))
    assert np.array_equal(take.read(), read_video(path, size=(16, 24), keep_aspect=True).frames[:, 4:20])


def test_a_repeated_last_row_and_column_are_cut_off_instead_of_resizing(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 21, 33, 3), dtype=np.uint8)
    write_video(tmp_path / "odd.mp4", frames, 10)
    video = FileFootage(tmp_path / "odd.mp4", "odd")
    take = Take(video, (0, 1, 2), (22, 34), (21, 33))
    assert np.array_equal(take.read(), video.read((0, 1, 2))[:, :21, :33])
    assert is_padded((22, 34), (21, 33)) and is_padded((22, 33), (21, 33)) and is_padded((22, 34), (22, 34))
    assert not is_padded((23, 34), (22, 34)) and not is_padded((23, 34), (21, 33))
