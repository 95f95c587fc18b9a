"""Motion in a clip by dense optical flow, a condition of NOVA's text-to-video models (arXiv 2412.14169 §3.2)."""

import itertools

import numpy as np
from jaxtyping import UInt8

from mutoscope.errors import UserError

# Scale of the pyramid, its levels, window, iterations, neighbourhood and its Gaussian: the values of OpenCV's tutorial.
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2)


def motion_score(frames: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Mean length of Farnebäck's optical flow in pixels, over all pixels and pairs of neighbouring frames.

    A single frame has score 0. Raises UserError without OpenCV.
    """
    try:
        import cv2
    except ImportError:
        raise UserError("Optical flow needs OpenCV: install mutoscope with the extra [data].") from None
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    lengths = []
    for before, after in itertools.pairwise(grey):
        start = np.zeros((*before.shape, 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(before, after, start, *FARNEBACK, 0)
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return float(np.mean(lengths)) if lengths else 0.0
