"""What families that generate frame by frame have in common."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.errors import UserError
from mutoscope.families.actions import ActionRows
from mutoscope.families.base import Clips, Prompts, as_list
from mutoscope.model_index import ModelIndex
from mutoscope.tokenizers.base import TokenizerSpec


def latent_frames(spec: TokenizerSpec, index: ModelIndex, num_frames: int) -> int:
    """Latent frames of a clip. Raises UserError unless the tokenizer decodes to exactly that length."""
    count = spec.latent_shape(num_frames, index.height, index.width)[0]
    longest = spec.num_frames(count)
    if num_frames < 1 or longest != num_frames:
        below = f"{spec.num_frames(count - 1)} or " if count > 1 else ""
        raise UserError(f"The tokenizer cannot decode {num_frames} frames; the nearest lengths are {below}{longest}.")
    return count


def context_clips(
    spec: TokenizerSpec, index: ModelIndex, context: Clips, count: int | None
) -> UInt8[Tensor, "n t h w 3"] | None:
    """The first `count` frames (None: all, or the first one of a file) of each context, at the model's size.

    Raises UserError for contexts of unequal lengths.
    """
    if context is None:
        return None
    found = as_list(context, max_frames=count or 1)
    clips = [fit_frames(frames[:count], index.height, index.width) for frames in found if frames is not None]
    lengths = {len(clip) for clip in clips}
    if len(lengths) > 1:
        raise UserError(f"All contexts must have the same number of frames, found {sorted(lengths)}.")
    latent_frames(spec, index, lengths.pop())
    return torch.stack([torch.as_tensor(clip) for clip in clips])  # (n, t, h, w, 3)


def unused_actions(actions: ActionRows, frames: int | None) -> tuple[str, ...]:
    """A warning if there are more actions than a clip of `frames` frames has, the last of which leads to none."""
    found = len(actions.clips[0])
    if frames is None or found <= frames:
        return ()
    return (f"A clip of {frames} frames reads {frames - 1} actions, found {found}: the others have no effect.",)


def implied_task(labels: Tensor | None, prompt: Prompts, clips: Tensor | None, actions: object) -> str:
    """The name of what a call without a task amounts to."""
    if clips is not None:
        return "frame-prediction" if labels is None else "class-conditional-frame-prediction"
    for name, value in (("action", actions), ("text", prompt), ("class", labels)):
        if value is not None:
            return f"{name}-conditional"
    return "unconditional"
