from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.data.media import (
    IMAGE_SUFFIXES,
    covering_size,
    files_below,
    open_image,
    read_image,
    spread,
    visible_matches,
)
from mutoscope.data.sources.images import ImageDataset
from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError


def test_files_count_by_suffix_in_order_of_path_and_hidden_ones_do_not(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("b/2.PNG", "b/1.jpg", "a.png", ".a.png", ".hidden/c.png", "notes.txt"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, IMAGE_SUFFIXES)]
    assert found == ["a.png", "b/1.jpg", "b/2.PNG"]


def test_a_hidden_parent_of_the_folder_itself_does_not_matter(tmp_path: Path):
    folder = tmp_path / ".cache" / "images"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    assert len(files_below(folder, IMAGE_SUFFIXES)) == 1


def listed(folder: Path, suffixes=frozenset([".png"])) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder, suffixes)]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_linked_folders_and_files_count_as_if_they_were_there(tmp_path: Path):
    touch(
        tmp_path / "data/walk/1.png", tmp_path / "disk/run/2.png", tmp_path / "disk/run/deep/3.png", tmp_path / "4.png"
    )
    (tmp_path / "data/run").symlink_to(tmp_path / "disk/run")
    (tmp_path / "data/walk/four.png").symlink_to("../../4.png")
    assert listed(tmp_path / "data") == ["run/2.png", "run/deep/3.png", "walk/1.png", "walk/four.png"]
    (tmp_path / "links").symlink_to(tmp_path / "data")
    assert listed(tmp_path / "links") == listed(tmp_path / "data")


def test_a_file_counts_once_in_a_class_and_again_in_another(tmp_path: Path):
    touch(tmp_path / "data/a/x/1.png", tmp_path / "data/a/x/2.png")
    (tmp_path / "data/a/copy.png").symlink_to("x/1.png")
    (tmp_path / "data/a/again").symlink_to("x")
    (tmp_path / "data/b").symlink_to("a/x")
    assert listed(tmp_path / "data") == ["a/x/1.png", "a/x/2.png", "b/1.png", "b/2.png"]


def test_links_in_a_circle_and_to_nothing_come_to_an_end(tmp_path: Path):
    data = tmp_path / "data"
    touch(data / "a/1.png", tmp_path / "other/2.png")
    for name, target in {
        "itself": ".", "a/up": "..", "a/loop": "loop", "a/nothing.png": "none.png", "a/root": "/",
        "above": str(tmp_path), "a/other": "../../other",
    }.items():  # fmt: skip
        (data / name).symlink_to(target)
    (tmp_path / "other/back").symlink_to(data / "a")
    assert listed(data) == ["a/1.png", "a/other/2.png"]


def test_folders_that_link_to_each_other_are_visited_once(tmp_path: Path):
    for level in range(20):  # two ways at every level: a million paths
        touch(tmp_path / f"{level}/{level}.png")
        for way in ("left", "right"):
            (tmp_path / f"{level}/{way}").symlink_to(f"../{level + 1}")
    (tmp_path / "20").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/class").symlink_to("../0")
    assert len(files_below(tmp_path / "data", {".png"})) == 20


def test_what_is_hidden_behind_a_visible_link_counts_and_a_hidden_link_does_not(tmp_path: Path):
    touch(tmp_path / ".cache/blobs/0a1b", tmp_path / "data/1.png")
    (tmp_path / "data/2.png").symlink_to("../.cache/blobs/0a1b")
    (tmp_path / "data/.3.png").symlink_to("1.png")
    (tmp_path / "data/.more").symlink_to("../.cache")
    assert listed(tmp_path / "data") == ["1.png", "2.png"]


def test_patterns_match_through_links_and_never_hidden_files(tmp_path: Path):
    touch(tmp_path / "a/1.csv", tmp_path / "a/._1.csv", tmp_path / ".b/2.csv")
    (tmp_path / "c").symlink_to("a")
    (tmp_path / "a/gone.csv").symlink_to("nothing")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in visible_matches(tmp_path, "*/*.csv")) == [
        "a/1.csv", "c/1.csv",
    ]  # fmt: skip


RAMP = np.tile(np.arange(0, 256, 5), (6, 1))  # (6, 52)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", (RAMP * 257).astype(np.uint16)),
        ("a.tif", (RAMP * 257).astype(np.uint16)),
        ("a.tif", (RAMP * 257).astype(">u2")),
        ("a.tif", (RAMP * 257).astype(np.int32)),
        ("a.tif", (RAMP / 255).astype(np.float32)),
        ("a.tif", RAMP.astype(np.float32)),
    ],
)
def test_grey_of_any_depth_becomes_8_bit_in_every_reader(tmp_path: Path, name: str, values: np.ndarray):
    Image.fromarray(values).save(tmp_path / name)
    shown = read_image(tmp_path / name)
    assert (shown == RAMP[..., None]).all()
    assert (read_video(tmp_path / name).frames[0] == shown).all()
    assert (ImageDataset(tmp_path, *RAMP.shape)[0]["video"][0].numpy() == shown).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((2, 2), np.inf, np.float32), "not finite"),
        (np.full((2, 2), -0.5, np.float32), "from -0.5"),
        (np.full((2, 2), 300, np.float32), "to 300"),
        (np.full((2, 2), 70000, np.int32), "to 70000"),
        (np.full((2, 2), -1, np.int32), "from -1"),
    ],
)
def test_values_outside_the_range_of_pixels_are_refused(tmp_path: Path, values: np.ndarray, reason: str):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=reason):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "RGBA", "LA"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str):
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    image.save(tmp_path / ("a.png" if mode in ("1", "L", "P", "RGBA", "LA") else "a.tif"))
    file = next(tmp_path.iterdir())
    assert (read_image(file) == read_video(file).frames[0]).all()
    assert read_image(file).shape == (4, 4, 3) and read_image(file).min() >= 250


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "colour"])
@pytest.mark.filterwarnings("error")
def test_transparent_pixels_keep_their_colour_and_are_reported(tmp_path: Path, kind: str):
    grey = Image.new("L", (4, 4), 90)
    if kind == "RGBA":
        Image.merge("RGBA", [grey, grey, grey, Image.new("L", (4, 4), 0)]).save(tmp_path / "a.png")
    elif kind == "LA":
        Image.merge("LA", [grey, Image.new("L", (4, 4), 100)]).save(tmp_path / "a.png")
    elif kind == "palette":
        grey.convert("P").save(tmp_path / "a.png", transparency=bytes(256))
    else:
        grey.convert("RGB").save(tmp_path / "a.png", transparency=(90, 90, 90))
    notes: list[str] = []
    assert (np.asarray(open_image(tmp_path / "a.png", notes)) == 90).all()
    assert len(notes) == 1 and "transparent pixels" in notes[0]
    with pytest.warns(UserWarning, match="transparent pixels"):
        ImageDataset(tmp_path, 4, 4)[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_upright_in_every_reader(tmp_path: Path, suffix: str, orientation: int):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(inverse(upright, orientation)).save(tmp_path / f"a{suffix}", exif=exif, quality=100)
    for found in (
        read_image(tmp_path / f"a{suffix}"),
        read_video(tmp_path / f"a{suffix}").frames[0],
        ImageDataset(tmp_path, 8, 16)[0]["video"][0].numpy(),
    ):
        assert np.abs(found.astype(int) - upright).max() < 40


def inverse(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores that states this orientation (EXIF 2.3, Orientation: where row 0 and column 0 are)."""
    return {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip


def test_images_are_turned_upright_by_their_exif_tag(tmp_path: Path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shown = read_image(tmp_path / "a.png")
    assert shown.shape == (4, 2, 3)
    assert (shown[:, 1] == 255).all() and (shown[:, 0] == 0).all()


def test_sixteen_bit_grey_and_palettes_become_rgb(tmp_path: Path):
    Image.fromarray(np.full((2, 2), 0x8000, np.uint16)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == 128).all()
    Image.new("RGB", (2, 2), (10, 20, 30)).quantize(4).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0, 0].tolist() == [10, 20, 30]


def test_an_image_is_scaled_to_cover_a_size_and_a_broken_one_is_reported(tmp_path: Path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (10, 10)).shape == (10, 20, 3)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="not an image that can be read"):
        read_image(tmp_path / "b.png")


def test_a_covering_size_keeps_the_shape_and_one_side():
    assert covering_size((20, 40), (10, 10)) == (10, 20)
    assert covering_size((40, 20), (10, 10)) == (20, 10)


def test_a_spread_covers_everything_at_equal_distances():
    assert list(spread(10, 5)) == [0, 2, 4, 6, 8] and list(spread(3, 5)) == [0, 1, 2]
