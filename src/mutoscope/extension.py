"""Beyond the size a model was trained for: longer clips by repeated prediction, wider ones by repeated outpainting.

arXiv 2212.05199, §4.4 and appendix C: the ultra-wide panorama is vertical outpainting applied again and again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mutoscope.data.fit import Frames
from mutoscope.errors import UserError
from mutoscope.pipeline import Generation, VideoPipeline


def longer(
    pipeline: VideoPipeline,
    frames: Frames,
    num_frames: int,
    *,
    context_frames: int | None = None,
    class_label: int | str | None = None,
    seed: int = 0,
    on_round: Callable[[Generation], None] = lambda generation: None,
    **options: Any,
) -> Frames:
    """Continues a clip of the model's size to `num_frames` by predicting from its last frames, round after round.

    `context_frames` are given to every round (default: one step of the tokenizer in time, so that one row of latents
    is fully given). Round r is drawn with seed + r. What is given is never changed. `on_round` receives every round.
    Raises UserError if the model was not trained to predict frames.
    """
    index = pipeline.index
    given = context_frames or pipeline.tokenizer.spec.temporal_stride
    if not 1 <= given < index.num_frames:
        raise UserError(f"context_frames must be between 1 and {index.num_frames - 1}, found {given}.")
    if len(frames) < given:
        raise UserError(f"{given} context frames are needed to continue a clip, found {len(frames)}.")
    task = "class-conditional-frame-prediction" if class_label is not None else "frame-prediction"
    round_index = 0
    while len(frames) < num_frames:
        generation = pipeline.generate(
            task=task,
            context=frames[-given:],
            context_frames=given,
            class_label=class_label,
            seed=seed + round_index,
            **options,
        )
        on_round(generation)
        frames = np.concatenate([frames, generation.clips[0].frames[given:]])
        round_index += 1
    return frames[:num_frames]


def wider(
    pipeline: VideoPipeline,
    frames: Frames,
    num_rounds: int,
    *,
    seed: int = 0,
    on_round: Callable[[Generation], None] = lambda generation: None,
    **options: Any,
) -> Frames:
    """A panorama: every round adds a quarter of the model's width on either side by vertical outpainting.

    `frames` have the model's length and height and at least half its width. Round r is drawn with seeds + 2r (left)
    and + 2r + 1 (right). What is there is never changed. `on_round` receives both sides of every round.
    Raises UserError for other sizes, or if the model was not trained for vertical outpainting.
    """
    index, (t, h, w) = pipeline.index, frames.shape[:3]
    if index.width % 4:
        raise UserError(f"A panorama needs a model whose width is a multiple of 4, found {index.width}.")
    if (t, h) != (index.num_frames, index.height) or w < index.width // 2:
        raise UserError(
            f"A panorama starts from {index.num_frames} frames of height {index.height} and at least "
            f"{index.width // 2} columns, found {t} frames of {h}×{w}."
        )
    quarter, half = index.width // 4, index.width // 2

    def outpainted(strip: Frames, strip_seed: int) -> Frames:
        """The strip at an edge becomes the middle of the picture; of the result only the outer quarter is new."""
        video = np.pad(strip, ((0, 0), (0, 0), (quarter, quarter), (0, 0)), mode="edge")
        generation = pipeline.generate(task="outpaint-vertical", task_video=video, seed=strip_seed, **options)
        on_round(generation)
        return generation.clips[0].frames

    for r in range(num_rounds):
        left = outpainted(frames[:, :, :half], seed + 2 * r)[:, :, :quarter]
        right = outpainted(frames[:, :, -half:], seed + 2 * r + 1)[:, :, -quarter:]
        frames = np.concatenate([left, frames, right], axis=2)
    return frames
