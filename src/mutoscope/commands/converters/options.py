"""What a user says about a published checkpoint; imports nothing, so that help is fast."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What a checkpoint may not say about itself, and how its folder is written."""

    tokenizer: str | None = None
    """Converted tokenizer (or any other model folder) whose tokens a transformer was trained on."""
    text_encoder: str | None = None
    """llamagen, par: folder of the encoder (flan-t5-xl in the layout of Hugging Face) whose features a text model was
    trained on; it is not copied, model_index.json names it."""
    grid: tuple[int, int] | None = None
    """llamagen, par: rows and columns of tokens, if the file does not say (24 24 for images of 384 pixels). far, dc-ae:
    rows and columns of latents (default: 8 8, as published)."""
    num_heads: int | None = None
    """llamagen, par: attention heads, needed for sizes that were not published."""
    rope_base: float = 10_000.0
    """llamagen, par: base of the rotary embedding."""
    norm_eps: float = 1e-5
    """llamagen, par: epsilon of the norms."""
    ema: bool = False
    """llamagen, par, vq16: take the averaged weights that a training checkpoint may keep."""
    num_frames: int = 16
    """magvit-flax, far: frames of the clips the model was trained on; the name of a published FAR file says it too."""
    window: int | None = None
    """far: frames with a loss in training, which a long model reads in fine patches (default: that of a published file,
    else 16)."""
    action_names: tuple[str, ...] | None = None
    """far: names of the actions, in the order of their numbers."""
    height: int = 128
    """magvit-flax: of those clips."""
    width: int = 128
    """magvit-flax: of those clips."""
    fps: float = 8
    """Frames per second of clips."""
    num_classes: int = 0
    """magvit-flax: classes of a class-conditional transformer."""
    tasks: tuple[str, ...] | None = None
    """magvit-flax: tasks of a transformer (default: class-conditional with classes, else frame-prediction; all tasks
    if it has a task token)."""
    padding: Literal["zero", "reflect", "replicate"] = "zero"
    """magvit-flax: of the tokenizer's convolutions, which the weights do not say; zero in the released settings."""
    half: bool = False
    """Round the weights to half precision, which halves the folder."""
