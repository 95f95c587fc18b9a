from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.data.media import IMAGE_SUFFIXES, covering_size, files_below, read_image, spread
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
