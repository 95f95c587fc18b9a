"""Contact sheets: the frames of one or several clips on one image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

Clips = UInt8[np.ndarray, "t h w 3"] | Sequence[UInt8[np.ndarray, "_ _ _ 3"]]

LABEL_HEIGHT = 14


def contact_sheet(
    clips: Clips,
    columns: int = 16,
    scale: int = 1,
    labels: Sequence[str] | None = None,
    pad: int = 2,
    background: int = 255,
) -> UInt8[np.ndarray, "height width 3"]:
    """One row of frames per clip, left to right in time, wrapped after `columns` frames.

    clips: one array (t, h, w, 3) or several, also of different sizes. scale: whole-number enlargement that keeps
    pixels sharp. pad: pixels between cells (none outside, so that a sheet of one frame is that frame).
    labels: one line of text above each clip.
    """
    listed = [clips] if isinstance(clips, np.ndarray) and clips.ndim == 4 else list(clips)
    clips = [_checked(clip).repeat(scale, axis=1).repeat(scale, axis=2) for clip in listed]
    if not clips or not all(len(clip) for clip in clips):
        raise ValueError("a contact sheet needs at least one clip and one frame in each")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"{len(labels)} labels for {len(clips)} clips")
    columns = max(1, min(columns, max(len(clip) for clip in clips)))
    height, width = (max(clip.shape[axis] for clip in clips) for axis in (1, 2))
    strips = []
    for number, clip in enumerate(clips):
        if labels is not None:
            strips.append(_label(labels[number], columns * (width + pad) - pad, background))
        rows = [clip[i : i + columns] for i in range(0, len(clip), columns)]
        strips += [_row(row, columns, height, width, pad, background) for row in rows]
    gap = np.full((pad, strips[0].shape[1], 3), background, dtype=np.uint8)
    return np.concatenate([part for strip in strips for part in (gap, strip)][1:])


def _checked(clip: np.ndarray) -> np.ndarray:
    clip = np.asarray(clip)
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"expected uint8 (t, h, w, 3), got {clip.dtype} {clip.shape}")
    return clip


def _row(frames: np.ndarray, columns: int, height: int, width: int, pad: int, background: int) -> np.ndarray:
    row = np.full((height, columns * (width + pad) - pad, 3), background, dtype=np.uint8)
    for i, frame in enumerate(frames):
        left = i * (width + pad)
        row[: frame.shape[0], left : left + frame.shape[1]] = frame
    return row


def _label(text: str, width: int, background: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, LABEL_HEIGHT), (background,) * 3)
    ink = (0,) * 3 if background > 127 else (255,) * 3
    printable = text.encode("latin-1", "replace").decode("latin-1")  # the built-in font may know no more
    ImageDraw.Draw(image).text((1, 1), printable, fill=ink)
    return np.array(image)
