"""mutoscope reconstruct: the round trip of a real video through a tokenizer."""

import math
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import mutoscope.commands.common as common
from mutoscope.errors import UserError
from mutoscope.writing import new_folder

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8


@dataclass
class Error:
    """Squared error of 8-bit values, summed over the video."""

    total: float = 0.0
    count: int = 0

    def add(self, before: "UInt8[np.ndarray, 'n h w 3']", after: "UInt8[np.ndarray, 'n h w 3']") -> None:
        for a, b in zip(before, after, strict=True):  # frame by frame: int32 of a whole chunk would be large
            difference = a.astype("int32") - b
            self.total += float((difference * difference).sum())
            self.count += difference.size

    @property
    def psnr_db(self) -> float | None:
        """10 log10(255² / mean squared error); None where nothing was lost."""
        return 10 * math.log10(255**2 * self.count / self.total) if self.total else None


def reconstruct(
    model: str,
    input: str,
    output: str,
    /,
    *,
    tile: int = 256,
    chunk: int = 16,
    max_frames: int | None = None,
    device: str = "cpu",
) -> common.Report:
    """Encode a video to tokens and decode it again.

    Any size and length: the video streams through in overlapping tiles and chunks, in bounded memory. The output has
    the frames and size of the input at its measured average rate, so that it lasts as long (MP4 repeats the last row or
    column of odd sizes; .webm and .gif do not).

    The report's psnr_db compares 8-bit frames before the output's own compression (null where they are equal).
    latent_shape is the grid of tokens of the video filled up to the strides, num_tokens its product,
    compression_ratio the 24 bits of every pixel over the bits of all tokens; num_tokens_encoded also counts what
    overlapping tiles and chunks encode twice.

    Args:
        model: bundled name or folder of a tokenizer, or of a model with one
        input: video to read
        output: file to write: .mp4 .webm .gif
        tile: height and width of a tile in pixels
        chunk: frames per chunk
        max_frames: stop after this many frames
        device: cpu, cuda, cuda:1, mps ...
    """
    path = common.check_output_file(output, common.VIDEO_SUFFIXES)
    source = common.check_input_file(input)
    if path.exists() and path.samefile(source):
        raise UserError(f"Input and output are the same file {output!r}. Choose another output.")
    common.check_range("--tile", tile, low=32)
    common.check_range("--chunk", chunk, low=8, high=256)
    common.check_range("--max-frames", max_frames, low=1)

    from mutoscope import hub
    from mutoscope.data.video.read import VideoWriter, iter_frames
    from mutoscope.pipeline import reset_peak_memory
    from mutoscope.tokenizers.base import channels_last
    from mutoscope.tokenizers.tiling import TilingConfig, count_tokens, encode_decode_stream

    with iter_frames(source, max_frames=max_frames) as frames:
        total = frames.expected_frames()
        first = next(frames)  # a video without any frame is refused before the model is loaded
        height, width, _ = first.shape
        torch_device = common.parse_device(device)
        tokenizer = hub.load_tokenizer(model).to(torch_device)
        channels_last(tokenizer)
        tiling = TilingConfig(tile=tile, chunk=chunk)
        error, num_frames = Error(), 0
        reset_peak_memory(torch_device)
        start = time.perf_counter()
        new_folder(path.parent)
        stream = common.progress(chain([first], frames), total, "reconstruct")
        with VideoWriter(path, frames.fps) as writer:
            for before, after in encode_decode_stream(tokenizer, stream, height, width, tiling, torch_device):
                error.add(before, after)
                num_frames += len(after)
                for frame in after:
                    writer.write(frame)
        seconds = time.perf_counter() - start
    count = count_tokens(tokenizer.spec, num_frames, height, width, tiling)
    file_height, file_width = common.size_in_file(path, height, width)
    return {
        "model": model,
        "input": input,
        "output": output,
        "frames": num_frames,
        "height": file_height,
        "width": file_width,
        "fps": float(writer.fps),
        "psnr_db": error.psnr_db,
        "num_tokens": count.num_tokens,
        "num_tokens_encoded": count.num_tokens_encoded,
        "latent_shape": list(count.latent_shape),
        "compression_ratio": count.compression_ratio,
        "seconds": seconds,
        "frames_per_second": num_frames / seconds,
        "peak_memory_bytes": common.peak_memory(torch_device),
        **common.machine(torch_device, "float32"),
        "warnings": [*frames.warnings, *writer.warnings],
    }


def summary(report: common.Report) -> str:
    quality = "without loss" if report["psnr_db"] is None else f"{report['psnr_db']:.2f} dB"
    return (
        f"{report['output']}\n"
        f"{report['frames']} frames of {report['height']}×{report['width']} as {report['num_tokens']} tokens "
        f"{tuple(report['latent_shape'])}, {report['compression_ratio']:.0f} times smaller, {quality}\n"
        f"{report['seconds']:.1f} s, {report['frames_per_second']:.1f} frames/s, "
        f"peak memory {common.human_bytes(report['peak_memory_bytes'])}"
    )
