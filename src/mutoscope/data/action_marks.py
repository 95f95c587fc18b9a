"""Actions drawn below frames, for contact sheets: a bar for an axis, a square for a button."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from mutoscope.actions import ActionSpec

ROW, MARGIN, MAX_ROWS = 12, 3, 8  # pixels of a row and at its sides; rows at most
MIN_WIDTH = 96  # pixels that a name and a bar need
BACKGROUND, INK, GREY = (24, 24, 28), (235, 235, 235), (88, 88, 96)
AXIS_COLOR, BUTTON_COLOR = (94, 170, 255), (255, 176, 64)
FONT_SIZE = 9


def marked_frames(
    frames: UInt8[np.ndarray, "t h w 3"],
    actions: Float32[np.ndarray, "t a"],
    spec: ActionSpec,
    largest: Sequence[float],
) -> UInt8[np.ndarray, "t h_taller w 3"]:
    """The frames with a strip below each that shows its action: at most eight numbers, each with its name.

    largest: the largest absolute value of each number, which is the full length of its bar.
    """
    strips = [_strip(row, spec, largest, frames.shape[2]) for row in actions]
    return np.concatenate([frames, np.stack(strips)], axis=1)


def _strip(
    row: Float32[np.ndarray, " a"], spec: ActionSpec, largest: Sequence[float], width: int
) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image, ImageDraw, ImageFont

    shown = min(spec.size, MAX_ROWS)
    hidden = spec.size - shown
    image = Image.new("RGB", (width, ROW * (shown + (hidden > 0)) + 2), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE)
    for number in range(shown):
        top, value = 1 + ROW * number, float(row[number])
        name = fitted(spec.names[number], width // 2 - 2 * MARGIN, font.getlength)
        draw.text((MARGIN, top), name, fill=INK if value == value else GREY, font=font)
        left, right = width // 2, width - MARGIN
        if spec.is_button[number]:
            box = (left, top + 2, left + ROW - 5, top + ROW - 3)
            draw.rectangle(box, fill=BUTTON_COLOR if value > 0.5 else None, outline=GREY)
        else:
            middle = (left + right) // 2
            draw.line((left, top + ROW // 2, right, top + ROW // 2), fill=GREY)
            draw.line((middle, top + 2, middle, top + ROW - 3), fill=GREY)
            if value == value and largest[number] > 0:
                end = middle + round((right - left) / 2 * max(-1.0, min(1.0, value / largest[number])))
                draw.rectangle((min(middle, end), top + 3, max(middle, end), top + ROW - 4), fill=AXIS_COLOR)
    if hidden:
        draw.text((MARGIN, 1 + ROW * shown), f"and {hidden} more", fill=GREY, font=font)
    return np.array(image)


def fitted(name: str, width: int, length_of: Callable[[str], float]) -> str:
    """The name, or its end where it is longer than `width` pixels: long names differ at their ends."""
    printable = name.encode("latin-1", "replace").decode("latin-1")
    if length_of(printable) <= width:
        return printable
    while printable and length_of("…" + printable) > width:
        printable = printable[1:]
    return "…" + printable
