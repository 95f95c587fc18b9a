"""The eight orientations, by EXIF tag and by display matrix."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from mutoscope.data.orientation import EXIF_ORIENTATIONS, UPRIGHT, is_oblique, of_display_matrix

FRAME = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
ONE, W = 1 << 16, 1 << 30
TURNED = FRAME.transpose(1, 0, 2)
MATRICES: dict[tuple[int, ...], np.ndarray] = {
    (ONE, 0, 0, 0, ONE, 0, 0, 0, W): FRAME,
    (-ONE, 0, 0, 0, ONE, 0, 0, 0, W): FRAME[:, ::-1],
    (ONE, 0, 0, 0, -ONE, 0, 0, 0, W): FRAME[::-1],
    (-ONE, 0, 0, 0, -ONE, 0, 0, 0, W): FRAME[::-1, ::-1],
    (0, ONE, 0, -ONE, 0, 0, 0, 0, W): np.rot90(FRAME, -1),
    (0, -ONE, 0, ONE, 0, 0, 0, 0, W): np.rot90(FRAME),
    (0, ONE, 0, ONE, 0, 0, 0, 0, W): TURNED,
    (0, -ONE, 0, -ONE, 0, 0, 0, 0, W): TURNED[::-1, ::-1],
}


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_tags_mean_what_pillow_means(value: int):
    image = Image.fromarray(FRAME)
    image.getexif()[0x0112] = value
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(EXIF_ORIENTATIONS[value].applied(FRAME), expected)
    assert EXIF_ORIENTATIONS[value].size(2, 3) == expected.shape[:2]


@pytest.mark.parametrize("matrix", MATRICES)
def test_display_matrices_turn_and_mirror(matrix: tuple[int, ...]):
    np.testing.assert_array_equal(of_display_matrix(matrix).applied(FRAME), MATRICES[matrix])
    assert not is_oblique(matrix)


def test_an_angle_between_quarter_turns_becomes_the_nearest():
    by_80_degrees = (round(0.17 * ONE), round(0.98 * ONE), 0, round(-0.98 * ONE), round(0.17 * ONE), 0, 0, 0, W)
    assert is_oblique(by_80_degrees)
    np.testing.assert_array_equal(of_display_matrix(by_80_degrees).applied(FRAME), np.rot90(FRAME, -1))
    assert of_display_matrix((0,) * 9) == UPRIGHT
