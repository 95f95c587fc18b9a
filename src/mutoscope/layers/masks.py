"""Boolean attention masks: rows (queries) attend to True columns (keys).

Shapes: b clips, n queries, m keys.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "n m"]:
    """Every query sees itself and all earlier positions. Queries are the last `num_queries` of the keys' positions."""
    position = torch.arange(num_keys - num_queries, num_keys, device=device)  # (n,)
    return torch.arange(num_keys, device=device) <= position[:, None]


def num_visible(
    length: int, prefix_length: int, num_parallel: int, device: torch.device, sequential_start: bool = True
) -> Int[Tensor, " n"]:
    """Number of first positions that each query of a parallel autoregressive sequence sees.

    Groups of `num_parallel` positions, counted from the last position of the prefix, see each other and all earlier
    positions (arXiv 2412.15119). The prefix is causal, and with a sequential start so is the first group. With
    `num_parallel` 1 the whole sequence is causal.
    """
    step = torch.arange(length, device=device) - (prefix_length - 1)  # (n,), index of the predicted token
    grouped = num_parallel * (step.div(num_parallel, rounding_mode="floor") + 1)
    causal = step < (num_parallel if sequential_start else 0)
    return torch.where(causal, step + 1, grouped) + prefix_length - 1


def first_positions_mask(visible: Int[Tensor, " n"], num_keys: int) -> Bool[Tensor, "n m"]:
    """Query i sees the first `visible[i]` keys."""
    return torch.arange(num_keys, device=visible.device) < visible[:, None]


def hide_padding(
    mask: Bool[Tensor, "n m"], prefix_mask: Bool[Tensor, "b p"], rows: Int[Tensor, " n"]
) -> Bool[Tensor, "b 1 n m"]:
    """Hides the padded columns of the prefix; each query's own position, `rows`, stays visible.

    A query without any visible key would turn its softmax into NaN.
    """
    columns = F.pad(prefix_mask.bool(), (0, mask.shape[1] - prefix_mask.shape[1]), value=True)  # (b, m)
    itself = torch.arange(mask.shape[1], device=mask.device) == rows[:, None]  # (n, m)
    return (mask & columns[:, None, None]) | itself


def block_causal_mask(blocks: Int[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """Every position sees its own block and the blocks with lower numbers."""
    return blocks <= blocks[:, None]


def visible_frames(
    times: Int[Tensor, " n"], held: Int[Tensor, " m"], window: int | None = None, keeps_first: bool = False
) -> Bool[Tensor, "n m"]:
    """Queries at the 0-based frames `times` see the frames `held`, in any order, up to their own.

    A negative number in `held` is an empty slot. `window`: a frame sees no frame that is `window` or more frames back,
    except frame 0 if `keeps_first`.
    """
    back = times[:, None] - held  # (n, m)
    mask = (back >= 0) & (held >= 0)
    if window is None:
        return mask
    return mask & ((back < window) | (held == 0)) if keeps_first else mask & (back < window)


def frame_history_mask(
    frames: Int[Tensor, " n"], masked: Bool[Tensor, " n"], window: int | None = None, keeps_first: bool = False
) -> Bool[Tensor, "n n"]:
    """Mask of complete teacher forcing (arXiv 2501.12389 §3.2) over slots of frames, in any order.

    `frames`: 0-based frame of every slot, `masked`: which slots are masked copies. Every slot sees itself and the
    complete earlier frames; a masked copy never sees its own complete frame. `window` and `keeps_first`: see
    `visible_frames`.
    """
    itself = torch.eye(len(frames), dtype=torch.bool, device=frames.device)
    earlier = visible_frames(frames, frames, window, keeps_first) & (frames != frames[:, None])
    return (earlier & ~masked) | itself


def frame_slots(num_frames: int, num_given: int = 0, trimmed: bool = False) -> tuple[Tensor, Tensor]:
    """Slots of training, as (0-based frame, whether a masked copy): all frames, then copies of all but context frames.

    `num_given`: context frames at the start. `trimmed` drops the last complete frame, which no slot reads.
    """
    observed = num_frames - trimmed
    frames = torch.cat([torch.arange(observed), torch.arange(num_given, num_frames)])
    return frames, torch.arange(len(frames)) >= observed


def interleaved(frames: Int[Tensor, " n"], masked: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Permutation of the slots that puts every masked copy directly after its frame."""
    return (2 * frames + masked).argsort(stable=True)


def hide_padded_frames(
    mask: Bool[Tensor, "n n"], frames: Int[Tensor, " n"], lengths: Int[Tensor, " b"]
) -> Bool[Tensor, "b n n"]:
    """Hides the padding of clips of different `lengths`: no slot sees padded frames, which see only themselves."""
    real = frames < lengths[:, None]  # (b, n)
    itself = torch.eye(len(frames), dtype=torch.bool, device=mask.device)
    return (mask & real[:, None] & real[:, :, None]) | itself
