"""How a stored frame or image has to be turned or mirrored to stand upright: display matrices and EXIF tags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay pixels out; the default is upright. `applied` transposes first, then reverses."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def applied(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """The frame upright."""
        upright = frame.transpose(1, 0, 2) if self.transposed else frame
        return np.ascontiguousarray(upright[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1])

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) upright of stored (h, w), and the other way round."""
        return (width, height) if self.transposed else (height, width)


UPRIGHT = Orientation()

# Values 1 to 8 of the EXIF tag Orientation.
EXIF_ORIENTATIONS = {
    1: UPRIGHT,
    2: Orientation(columns_reversed=True),
    3: Orientation(rows_reversed=True, columns_reversed=True),
    4: Orientation(rows_reversed=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, columns_reversed=True),
    7: Orientation(transposed=True, rows_reversed=True, columns_reversed=True),
    8: Orientation(transposed=True, rows_reversed=True),
}


def of_display_matrix(matrix: Sequence[int]) -> Orientation:
    """The orientation nearest to a display matrix (a, b, u, c, d, v, x, y, w) of ISO/IEC 14496-12.

    The matrix takes the stored point (p, q) to (a p + c q, b p + d q).
    """
    a, b, _, c, d = matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transposed=True, rows_reversed=b < 0, columns_reversed=c < 0)
    return Orientation(rows_reversed=d < 0, columns_reversed=a < 0)


def is_oblique(matrix: Sequence[int]) -> bool:
    """Whether a display matrix turns by an angle between quarter turns, by more than a degree or so."""
    a, b, _, c, d = (abs(value) for value in matrix[:5])
    straight, turned = max(a, d), max(b, c)
    return min(straight, turned) > max(straight, turned) / 50
