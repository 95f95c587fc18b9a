"""The condition region of each of MAGVIT's ten tasks (arXiv 2212.05199 §3.3, appendix Tab. 12).

One geometric rule per task serves two grids. On the pixel grid it selects the pixels of the condition, on the latent
grid the token positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.json_config import nearest

TASKS = (
    "frame-prediction",
    "frame-interpolation",
    "outpaint-central",
    "outpaint-vertical",
    "outpaint-horizontal",
    "outpaint-dynamic",
    "inpaint-central",
    "inpaint-dynamic",
    "class-conditional",
    "class-conditional-frame-prediction",
)


RECTANGULAR = tuple(task for task in TASKS if task.startswith(("outpaint", "inpaint")))


@dataclass(frozen=True)
class Rectangle:
    """A part of the frame, each side as a fraction of its width or height: 0 is left and top, 1 right and bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            found = (self.left, self.top, self.right, self.bottom)
            raise UserError(
                "A region is left, top, right and bottom as fractions of the frame, with 0 <= left < right <= 1 and "
                f"0 <= top < bottom <= 1; found {found}."
            )

    @classmethod
    def of(cls, sides: object) -> "Rectangle":
        """From four numbers. Raises UserError for anything else."""
        values = cast(Sequence[object], sides) if isinstance(sides, list | tuple) else ()
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if len(values) != 4 or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
            raise UserError(f"A region is four numbers: left, top, right and bottom; found {sides!r}.")
        return cls(*numbers)

    def rows(self, height: int) -> slice:
        """Of a grid of this height: at least one."""
        return _cells(self.top, self.bottom, height)

    def columns(self, width: int) -> slice:
        """Of a grid of this width: at least one."""
        return _cells(self.left, self.right, width)


def _cells(start: float, stop: float, count: int) -> slice:
    first = min(round(start * count), count - 1)
    return slice(first, max(round(stop * count), first + 1))


def check_task(task: str, known: tuple[str, ...] = TASKS) -> str:
    """Returns `task`, or raises a UserError that names the nearest known task."""
    if task in known:
        return task
    if task in TASKS:
        raise UserError(f"This model was not trained for the task {task!r}; it can do {', '.join(known)}.")
    raise UserError(f"There is no task {task!r}; {nearest(str(task), known)} Tasks: {', '.join(known)}.")


def check_rectangular(task: str) -> None:
    """Raises UserError for a task that shows whole frames."""
    if task not in RECTANGULAR:
        raise UserError(f"The task {task!r} shows whole frames. A region is for {', '.join(RECTANGULAR)}.")


def strip_starts(end: int, num_frames: int) -> list[int]:
    """Left column of the moving strip in each frame of the dynamic tasks: from 0 to `end`, half to even."""
    return torch.linspace(0, end, num_frames, dtype=torch.float64).round().long().tolist()


def condition_region(
    task: str,
    shape: tuple[int, int, int],
    first_frames: int = 1,
    last_frames: int = 1,
    rectangle: Rectangle | None = None,
) -> Bool[Tensor, "t h w"]:
    """True at the condition of a task, on a grid of `shape` (frames, rows, columns) of pixels or of latents.

    `first_frames`: context frames at the start of the clip, for the tasks that have any; `last_frames`: at its end,
    for interpolation. `rectangle`: what outpainting shows and inpainting hides, in place of the paper's central half;
    the dynamic tasks move it from the left edge to the right one. On the latent grid, dynamic tasks follow the released
    rule (a strip of half the latent width), which excludes some tokens whose pixels are partly in the condition.
    Raises UserError for an unknown task, and for a rectangle of a task that shows whole frames.
    """
    check_task(task)
    if rectangle is not None:
        check_rectangular(task)
    frames, height, width = shape
    region = torch.zeros(shape, dtype=torch.bool)
    rows, columns, strip = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4), width // 2
    if rectangle is not None:
        rows, columns = rectangle.rows(height), rectangle.columns(width)
        strip = columns.stop - columns.start
    if task in ("frame-prediction", "class-conditional-frame-prediction"):
        region[:first_frames] = True
    elif task == "frame-interpolation":
        region[:first_frames] = True
        region[frames - last_frames :] = True
    elif task in ("outpaint-central", "inpaint-central"):
        region[:, rows, columns] = True
    elif task == "outpaint-vertical":
        region[:, :, columns] = True
    elif task == "outpaint-horizontal":
        region[:, rows] = True
    elif task in ("outpaint-dynamic", "inpaint-dynamic"):
        strip_rows = slice(None) if task == "outpaint-dynamic" else rows
        # The paper's strip ends at width // 2, one column short of the right edge where the width is odd.
        end = width // 2 if rectangle is None else width - strip
        for frame, left in enumerate(strip_starts(end, frames)):
            region[frame, strip_rows, left : left + strip] = True
    # The condition of inpainting is everything outside the condition of the outpainting task of the same name.
    return ~region if task.startswith("inpaint") else region


def touched_tokens(pixels: Bool[Tensor, "t h w"], latent_shape: tuple[int, int, int]) -> Bool[Tensor, "lt lh lw"]:
    """True at the tokens whose supervoxel contains at least one True pixel.

    This is the paper's definition of the condition region; the released code applies `condition_region` to the latent
    grid instead, which excludes 128 of 1024 tokens of dynamic outpainting and 64 of dynamic inpainting.
    """
    voxel = tuple(size // cells for size, cells in zip(pixels.shape, latent_shape, strict=True))
    return F.max_pool3d(pixels[None, None].float(), voxel, voxel)[0, 0].bool()
