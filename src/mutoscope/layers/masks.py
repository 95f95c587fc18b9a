"""Who may look at whom: boolean attention masks, True where a query may look at a key."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "n m"]:
    """Every query sees itself and what came before. The queries are the last `num_queries` of the keys' positions."""
    position = torch.arange(num_keys - num_queries, num_keys, device=device)  # (n,)
    return torch.arange(num_keys, device=device) <= position[:, None]


def num_visible(
    length: int, prefix_length: int, num_parallel: int, device: torch.device, sequential_start: bool = True
) -> Int[Tensor, " n"]:
    """How many positions each query of a parallel autoregressive sequence sees, always the first ones.

    Groups of `num_parallel` positions, counted from the last position of the prefix, see each other and everything
    before (arXiv 2412.15119). With a sequential start the first group, and the prefix always, is causal instead.
    With `num_parallel` 1 this is plain causality.
    """
    step = torch.arange(length, device=device) - (prefix_length - 1)  # number of the token that is predicted
    grouped = num_parallel * (step.div(num_parallel, rounding_mode="floor") + 1)
    causal = step < (num_parallel if sequential_start else 0)
    return torch.where(causal, step + 1, grouped) + prefix_length - 1


def first_positions_mask(visible: Int[Tensor, " n"], num_keys: int) -> Bool[Tensor, "n m"]:
    """Each query sees its number of first keys."""
    return torch.arange(num_keys, device=visible.device) < visible[:, None]


def hide_padding(
    mask: Bool[Tensor, "n m"], prefix_mask: Bool[Tensor, "b p"], rows: Int[Tensor, " n"]
) -> Bool[Tensor, "b 1 n m"]:
    """Takes the padded columns of the prefix out of the mask; each query's own position, in `rows`, stays visible."""
    columns = F.pad(prefix_mask.bool(), (0, mask.shape[1] - prefix_mask.shape[1]), value=True)  # (b, m)
    itself = torch.arange(mask.shape[1], device=mask.device) == rows[:, None]  # (n, m)
    return (mask & columns[:, None, None]) | itself


def block_causal_mask(blocks: Int[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """Every position sees its own block and those with lower numbers."""
    return blocks <= blocks[:, None]


def frame_history_mask(
    frames: Int[Tensor, " n"], masked: Bool[Tensor, " n"], window: int | None = None
) -> Bool[Tensor, "n n"]:
    """Complete teacher forcing (arXiv 2501.12389): slots of frames, some of them masked copies.

    Every slot sees the complete earlier frames. A complete frame sees itself too; a masked copy sees itself and never
    its own frame. With a `window` only frames less than that far back are seen. Any order of slots will do.
    """
    complete, itself = ~masked, torch.eye(len(frames), dtype=torch.bool, device=frames.device)
    mask = (complete & (frames < frames[:, None])) | itself
    return mask if window is None else mask & (frames > frames[:, None] - window)


def frame_slots(num_frames: int, num_given: int = 0, trimmed: bool = False) -> tuple[Tensor, Tensor]:
    """Frame (0-based) and whether masked of every slot in training: all frames, then masked copies of those not given.

    `trimmed` leaves out the last complete frame, which nobody reads.
    """
    observed = num_frames - trimmed
    frames = torch.cat([torch.arange(observed), torch.arange(num_given, num_frames)])
    return frames, torch.arange(len(frames)) >= observed


def interleaved(frames: Int[Tensor, " n"], masked: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The order in which every masked copy follows its frame: a permutation of the slots."""
    return (2 * frames + masked).argsort(stable=True)


def causal_frames_mask(
    num_queries: int, num_keys: int, device: torch.device, window: int | None = None
) -> Bool[Tensor, "n m"]:
    """Frames, the last `num_queries` of `num_keys`, see themselves and earlier ones less than `window` back."""
    mask = causal_mask(num_queries, num_keys, device)
    if window is None:
        return mask
    position = torch.arange(num_keys - num_queries, num_keys, device=device)
    return mask & (torch.arange(num_keys, device=device) > position[:, None] - window)


def hide_padded_frames(
    mask: Bool[Tensor, "n n"], frames: Int[Tensor, " n"], lengths: Int[Tensor, " b"]
) -> Bool[Tensor, "b n n"]:
    """Clips of different lengths: padded frames are seen by nobody, and see only themselves."""
    real = frames < lengths[:, None]  # (b, n)
    itself = torch.eye(len(frames), dtype=torch.bool, device=mask.device)
    return (mask & real[:, None] & real[:, :, None]) | itself
