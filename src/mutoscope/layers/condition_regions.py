"""The condition region of each of MAGVIT's ten tasks (arXiv 2212.05199 §3.3, appendix Tab. 12).

One geometric rule per task serves two grids. On the pixel grid it selects the pixels of the condition, on the latent
grid the token positions.
"""

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


def check_task(task: str, known: tuple[str, ...] = TASKS) -> str:
    """Returns `task`, or raises a UserError that names the nearest known task."""
    if task in known:
        return task
    if task in TASKS:
        raise UserError(f"This model was not trained for the task {task!r}; it can do {', '.join(known)}.")
    raise UserError(f"There is no task {task!r}; {nearest(str(task), known)} Tasks: {', '.join(known)}.")


def strip_starts(width: int, num_frames: int) -> list[int]:
    """Left column of the half-width strip in each frame of the dynamic tasks: from 0 to width // 2, half to even."""
    return torch.linspace(0, width // 2, num_frames, dtype=torch.float64).round().long().tolist()


def condition_region(
    task: str, shape: tuple[int, int, int], first_frames: int = 1, last_frames: int = 1
) -> Bool[Tensor, "t h w"]:
    """True at the condition of a task, on a grid of `shape` (frames, rows, columns) of pixels or of latents.

    `first_frames`: context frames at the start of the clip, for the tasks that have any; `last_frames`: at its end,
    for interpolation. On the latent grid, dynamic tasks follow the released rule (a strip of half the latent width),
    which excludes some tokens whose pixels are partly in the condition. Raises UserError for an unknown task.
    """
    check_task(task)
    frames, height, width = shape
    region = torch.zeros(shape, dtype=torch.bool)
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
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
        for frame, left in enumerate(strip_starts(width, frames)):
            region[frame, strip_rows, left : left + width // 2] = True
    # The condition of inpainting is everything outside the condition of the outpainting task of the same name.
    return ~region if task.startswith("inpaint") else region


def touched_tokens(pixels: Bool[Tensor, "t h w"], latent_shape: tuple[int, int, int]) -> Bool[Tensor, "lt lh lw"]:
    """True at the tokens whose supervoxel contains at least one True pixel.

    This is the paper's definition of the condition region; the released code applies `condition_region` to the latent
    grid instead, which excludes 128 of 1024 tokens of dynamic outpainting and 64 of dynamic inpainting.
    """
    voxel = tuple(size // cells for size, cells in zip(pixels.shape, latent_shape, strict=True))
    return F.max_pool3d(pixels[None, None].float(), voxel, voxel)[0, 0].bool()
