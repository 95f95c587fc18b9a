"""Which part of a clip each of the ten tasks is given (arXiv 2212.05199 §3.3, appendix Tab. 12).

One geometric rule per task serves both grids: applied to pixels it says which pixels are given, applied to the latent
grid it says which token positions belong to the condition.
"""

import difflib

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from mutoscope.errors import UserError

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
    """Return `task`, or raise a UserError that names the nearest known task."""
    if task in known:
        return task
    if task in TASKS:
        raise UserError(f"This model was not trained for the task {task!r}; it can do {', '.join(known)}.")
    nearest = difflib.get_close_matches(str(task), known, n=1, cutoff=0.0)
    raise UserError(f"There is no task {task!r}; did you mean {nearest[0]!r}? Tasks: {', '.join(known)}.")


def strip_starts(width: int, num_frames: int) -> list[int]:
    """Left column of the half-width strip in each frame of the dynamic tasks: from 0 to width // 2, half to even."""
    return torch.linspace(0, width // 2, num_frames, dtype=torch.float64).round().long().tolist()


def condition_region(
    task: str, shape: tuple[int, int, int], first_frames: int = 1, last_frames: int = 1
) -> Bool[Tensor, "t h w"]:
    """True where a grid of `shape` (frames, rows, columns), pixels or latents, is given to the model.

    `first_frames` counts for the tasks that are given the start of the clip, `last_frames` for interpolation. Dynamic
    tasks follow the released rule on the latent grid (a strip of half the latent width), which leaves out some tokens
    whose pixels are partly given. Raises UserError for an unknown task.
    """
    check_task(task)
    frames, height, width = shape
    given = torch.zeros(shape, dtype=torch.bool)
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    if task in ("frame-prediction", "class-conditional-frame-prediction"):
        given[:first_frames] = True
    elif task == "frame-interpolation":
        given[:first_frames] = True
        given[frames - last_frames :] = True
    elif task in ("outpaint-central", "inpaint-central"):
        given[:, rows, columns] = True
    elif task == "outpaint-vertical":
        given[:, :, columns] = True
    elif task == "outpaint-horizontal":
        given[:, rows] = True
    elif task in ("outpaint-dynamic", "inpaint-dynamic"):
        strip_rows = slice(None) if task == "outpaint-dynamic" else rows
        for frame, left in enumerate(strip_starts(width, frames)):
            given[frame, strip_rows, left : left + width // 2] = True
    # Inpainting is given everything outside the rectangle that the matching outpainting is given.
    return ~given if task.startswith("inpaint") else given


def touched_tokens(given: Bool[Tensor, "t h w"], latent_shape: tuple[int, int, int]) -> Bool[Tensor, "lt lh lw"]:
    """True where the supervoxel of a token holds at least one given pixel.

    This is how the paper defines the condition region; the released code applies `condition_region` to the latent grid
    instead, which leaves out 128 of 1024 tokens for dynamic outpainting and 64 for dynamic inpainting.
    """
    voxel = tuple(size // cells for size, cells in zip(given.shape, latent_shape, strict=True))
    return F.max_pool3d(given[None, None].float(), voxel, voxel)[0, 0].bool()
