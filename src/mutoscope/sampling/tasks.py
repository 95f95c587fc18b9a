"""The ten tasks: what a model is shown of a clip (arXiv 2212.05199 §3.3 and appendix Tab. 12).

`condition_video` and `pixel_mask` describe the pixels; which token positions are given is a matter of the model's
configuration (`MagvitConfig.condition_mask`). A model learns its tasks from tokens of the *condition video*: the clip
with everything not given padded over.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.condition_regions import TASKS, Rectangle, check_task, condition_region

__all__ = [
    "TASKS",
    "balanced_task_order",
    "check_task",
    "condition_key",
    "condition_video",
    "needs_video",
    "pixel_mask",
]

BLACK = -1.0
PIXELLESS = ("unconditional", "class-conditional", "text-conditional", "action-conditional")


def needs_video(task: str) -> bool:
    """Whether the task is given any pixels."""
    return task not in PIXELLESS and check_task(task) in TASKS


def condition_key(task: str) -> str:
    """The task whose condition video `task` shares: the class adds nothing to the frames that are shown."""
    return "frame-prediction" if task == "class-conditional-frame-prediction" else task


def pixel_mask(
    task: str, num_frames: int, height: int, width: int, context_frames: int = 1, rectangle: Rectangle | None = None
) -> Bool[Tensor, "t h w"]:
    """True where a pixel is given. `context_frames` counts at the start, and for interpolation at either end.

    `rectangle`: see `condition_region`.
    """
    if not 1 <= context_frames <= num_frames:
        raise UserError(f"{context_frames} context frames of a clip of {num_frames}; choose 1 to {num_frames}.")
    return condition_region(task, (num_frames, height, width), context_frames, context_frames, rectangle)


def condition_video(
    task: str, video: Float[Tensor, "b 3 t h w"], context_frames: int = 1, rectangle: Rectangle | None = None
) -> Float[Tensor, "b 3 t h w"]:
    """The clip with everything outside the conditioning region padded; values in [-1, 1].

    Frame prediction repeats the last context frame, interpolation blends the two inner context frames linearly, the
    static outpainting tasks repeat the nearest pixel of the region; the dynamic tasks and inpainting are black outside.
    Full generation gives an entirely black clip.
    """
    t, h, w = video.shape[-3:]
    given = pixel_mask(task, t, h, w, context_frames, rectangle).to(video.device)
    if task in ("frame-prediction", "class-conditional-frame-prediction"):
        return video[:, :, [min(frame, context_frames - 1) for frame in range(t)]]
    if task == "frame-interpolation":
        return _interpolate(video, context_frames)
    if task in ("outpaint-central", "outpaint-vertical", "outpaint-horizontal"):
        rows = _nearest(given.any(dim=2).any(dim=0))  # (h,)
        columns = _nearest(given.any(dim=1).any(dim=0))  # (w,)
        return video[:, :, :, rows][..., columns]
    return torch.where(given, video, BLACK)


def balanced_task_order(weights: dict[str, float], generator: torch.Generator) -> list[str]:
    """One period of the training mix: step s uses entry s modulo the length, the whole batch one task.

    Each task appears round(100 * weight / min(1, smallest weight)) times, shuffled once, so the mix is exactly
    balanced over one period (800 steps for eight equal tasks).
    """
    if not weights or min(weights.values()) <= 0:
        raise UserError("The task mix needs at least one task, and every weight must be positive.")
    unit = 100 / min(1.0, *weights.values())
    entries = [check_task(task) for task, weight in weights.items() for _ in range(round(weight * unit))]
    return [entries[int(i)] for i in torch.randperm(len(entries), generator=generator)]


def _interpolate(video: Tensor, context_frames: int) -> Tensor:
    """Missing frame j of m is start + (end - start) * j / (m + 1), j = 1 ... m."""
    missing = video.shape[2] - 2 * context_frames
    if missing < 0:
        raise UserError(f"{context_frames} context frames at both ends do not fit a clip of {video.shape[2]} frames.")
    start, end = video[:, :, context_frames - 1, None], video[:, :, -context_frames, None]  # (b, 3, 1, h, w)
    position = torch.arange(1, missing + 1, device=video.device, dtype=video.dtype) / (missing + 1)
    blend = start + (end - start) * position[:, None, None]  # (b, 3, missing, h, w)
    return torch.cat([video[:, :, :context_frames], blend, video[:, :, video.shape[2] - context_frames :]], dim=2)


def _nearest(given: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Index of the nearest given row or column, for one contiguous run of them."""
    indices = given.nonzero().flatten()
    return torch.arange(len(given), device=given.device).clamp(int(indices.min()), int(indices.max()))
