"""Reference conversions between RGB and 4:2:0 planes in floats, and files of exactly known planes."""

from pathlib import Path

import numpy as np
from PIL import Image

BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
MATRIX_CODES = {BT601: 5, BT709: 1}


def scene(height: int, width: int, cell: int, seed: int = 1) -> np.ndarray:
    """Smooth colours with details of `cell` pixels."""
    small = np.random.default_rng(seed).integers(30, 226, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def planes_420(
    rgb: np.ndarray, matrix: tuple[float, float] = BT709, bits: int = 8, full: bool = False
) -> list[np.ndarray]:
    """Y, Cb and Cr, colour sited left as H.264 means it."""
    red, green, blue = (rgb[..., i] / 255 for i in range(3))
    kr, kb = matrix
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    differences = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    scale = 2 ** (bits - 8)
    black, white, middle = (0, 255, 255) if full else (16, 219, 224)
    return [scale * (black + white * luma)] + [scale * _half(128 + middle * values) for values in differences]


def _half(values: np.ndarray) -> np.ndarray:
    values = np.pad(values, ((0, values.shape[0] % 2), (1, 1 + values.shape[1] % 2)), "edge")
    across = (values[:, :-2] + 2 * values[:, 1:-1] + values[:, 2:])[:, ::2] / 4
    return (across[::2] + across[1::2]) / 2


def write_planes(path: Path, planes: list[np.ndarray], matrix: int = 1, full: bool = False, bits: int = 8) -> Path:
    """One frame of these planes as lossless H.264."""
    import av

    height, width = planes[0].shape
    pixel_format = "yuv420p" if bits == 8 else "yuv420p10le"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.options = {"qp": "0", "preset": "ultrafast"}
        color_range = 2 if full else 1
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        frame = av.VideoFrame(width, height, pixel_format)
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size), np.uint8).view("u1" if bits == 8 else "<u2")
            rows[:, : values.shape[1]] = values.round()
            plane.update(rows.tobytes())
        frame.pts, frame.colorspace, frame.color_range = 0, matrix, color_range
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """In dB; about 120 for equal arrays."""
    return float(10 * np.log10(255**2 / (((found.astype(float) - expected) ** 2).mean() + 1e-7)))


def shrunk(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scaled in RGB with an anti-aliasing filter."""
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
