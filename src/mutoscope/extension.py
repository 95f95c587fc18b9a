"""Clips beyond the size of training: longer ones by repeated prediction, wider ones by repeated outpainting.

arXiv 2212.05199, §4.4 and appendix C: the ultra-wide panorama is vertical outpainting applied again and again.
"""

from collections.abc import Callable

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
    on_segment: Callable[[Generation], None] = lambda generation: None,
    **options: object,
) -> Frames:
    """Continue a clip of the model's size to `num_frames` by predicting from its last frames, segment after segment.

    Each segment starts from `context_frames` (default: one step of the tokenizer in time, so that one row of latents
    is fully known). Segment r is drawn with seed + r. Frames that exist never change. `on_segment` receives every
    segment. Raises UserError if the model was not trained to predict frames.
    """
    index = pipeline.index
    count = context_frames or pipeline.tokenizer.spec.temporal_stride
    if not 1 <= count < index.num_frames:
        raise UserError(f"context_frames must be between 1 and {index.num_frames - 1}, found {count}.")
    if len(frames) < count:
        raise UserError(f"{count} context frames are needed to continue a clip, found {len(frames)}.")
    task = "class-conditional-frame-prediction" if class_label is not None else "frame-prediction"
    segment = 0
    while len(frames) < num_frames:
        call = {"task": task, "context": frames[-count:], "context_frames": count, "class_label": class_label}
        generation = pipeline.generate(pipeline.family.build_call({**options, **call, "seed": seed + segment}))
        on_segment(generation)
        frames = np.concatenate([frames, generation.clips[0].frames[count:]])
        segment += 1
    return frames[:num_frames]


def wider(
    pipeline: VideoPipeline,
    frames: Frames,
    num_segments: int,
    *,
    seed: int = 0,
    on_segment: Callable[[Generation], None] = lambda generation: None,
    **options: object,
) -> Frames:
    """A panorama: each segment adds a quarter of the model's width on either side by vertical outpainting.

    `frames` have the model's length and height and at least half its width. Segment r is drawn with seeds + 2r (left)
    and + 2r + 1 (right). Pixels that exist never change. `on_segment` receives both sides of every segment.
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
        """The strip at an edge becomes the middle of the image; only the outer quarter of the result is new."""
        video = np.pad(strip, ((0, 0), (0, 0), (quarter, quarter), (0, 0)), mode="edge")
        call = {"task": "outpaint-vertical", "task_video": video, "seed": strip_seed}
        generation = pipeline.generate(pipeline.family.build_call({**options, **call}))
        on_segment(generation)
        return generation.clips[0].frames

    for r in range(num_segments):
        left = outpainted(frames[:, :, :half], seed + 2 * r)[:, :, :quarter]
        right = outpainted(frames[:, :, -half:], seed + 2 * r + 1)[:, :, -quarter:]
        frames = np.concatenate([left, frames, right], axis=2)
    return frames
