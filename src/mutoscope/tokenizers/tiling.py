"""A tokenizer round trip for videos of any size and length in bounded memory.

Time is divided into chunks and each chunk into tiles, all overlapping. Each window is encoded and decoded separately.
The results are blended with weights that fall linearly across the overlap and sum to one at every pixel, so that no
seams are visible. One chunk of frames is in memory at a time.

    frames ──► chunk of 16 ──► tiles of 256×256 ──► encode, decode ──► blend in space ──► blend in time ──► frames
                 4 shared         16 pixels shared

A causal tokenizer needs no overlap in time: its state holds earlier frames, so its chunks equal the whole video.

All windows of an axis have the same size: the last tile is moved back to end at the edge, and the last chunk is padded
by repeating the last frame. Sizes that the strides do not divide are padded by repeating the edge, then cropped.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.tokenizers.base import StreamState, TokenizerSpec, VideoTokenizer, checked_latents

MIN_LATENT_CELLS = 2  # along an axis: reflection padding copies the inner neighbour of a border cell


@dataclass(frozen=True)
class TilingConfig:
    """Windows of the round trip, in pixels and frames; rounded up to the strides of the tokenizer.

    Memory grows with `tile`² · `chunk` (network) and height · width · `chunk` (blending). Larger windows spend less
    time on overlap and have fewer seams; the defaults keep a small network under 4 GB at 1080p.
    """

    tile: int = 256
    tile_overlap: int = 16
    chunk: int = 16
    chunk_overlap: int = 4

    def __post_init__(self) -> None:
        for name, size, shared in (
            ("tile", self.tile, self.tile_overlap),
            ("chunk", self.chunk, self.chunk_overlap),
        ):
            if size < 1 or not 0 <= 2 * shared <= size:
                raise UserError(f"{name} must be positive and its overlap at most half of it, found {size}, {shared}.")


@dataclass(frozen=True)
class Axis:
    """One axis divided into windows of equal length. `weights[i]` belongs to `starts[i]`; they sum to 1 everywhere."""

    size: int  # after padding
    length: int
    starts: tuple[int, ...]
    weights: tuple[Float32[np.ndarray, " length"], ...]


def round_up(size: int, stride: int) -> int:
    """The smallest multiple of `stride` that is at least `size`."""
    return -(-size // stride) * stride


def plan_axis(size: int, window: int, overlap: int, stride: int) -> Axis:
    """Divides `size` pixels into windows that start at multiples of `stride` and share at least `overlap`.

    A size below one window becomes one window of the size rounded up to the stride (at least two latent cells).
    """
    padded = max(round_up(size, stride), MIN_LATENT_CELLS * stride)
    smallest = MIN_LATENT_CELLS * stride
    largest = min(max(round_up(window, stride), smallest), padded)
    count = 1 if largest == padded else -(-(padded - overlap) // (largest - overlap))
    # As many windows as the largest length needs, but no longer than necessary: 336 pixels for 320, not 512.
    length = min(
        largest, max(round_up(-(-(padded + (count - 1) * overlap) // count), stride), MIN_LATENT_CELLS * stride)
    )
    step = max((length - overlap) // stride * stride, stride)
    starts = (*range(0, padded - length, step), padded - length)
    ramps = np.zeros((len(starts), padded))
    for i, start in enumerate(starts):
        ramps[i, start : start + length] = _ramp(length, starts, i)
    ramps /= ramps.sum(axis=0)
    weights = tuple(ramps[i, start : start + length].astype(np.float32) for i, start in enumerate(starts))
    return Axis(padded, length, starts, weights)


def _ramp(length: int, starts: tuple[int, ...], i: int) -> Float64[np.ndarray, " length"]:
    """Weights of window i: rising linearly across the overlap with the last one, falling with the next."""
    ramp = np.ones(length)
    for shared, window in (
        (starts[i - 1] + length - starts[i] if i > 0 else 0, ramp),
        (starts[i] + length - starts[i + 1] if i < len(starts) - 1 else 0, ramp[::-1]),
    ):
        if shared > 0:
            window[:shared] = np.minimum(window[:shared], (np.arange(shared) + 0.5) / shared)
    return ramp


@dataclass(frozen=True)
class WindowPlan:
    """Windows over the rows and columns of frames, in pixels, for a network with a spatial `stride`."""

    rows: Axis
    columns: Axis
    stride: int


def plan_windows(height: int, width: int, window: int | None, overlap: int, stride: int) -> WindowPlan | None:
    """Windows of at most `window` pixels for frames of this size, which `stride` divides; None if one suffices."""
    if window is None or max(height, width) <= window:
        return None
    whole = [Axis(size, size, (0,), (np.ones(size, np.float32),)) for size in (height, width)]
    cut = [plan_axis(size, window, overlap, stride) for size in (height, width)]
    rows, columns = (a if size <= window else b for size, a, b in zip((height, width), whole, cut, strict=True))
    return WindowPlan(rows, columns, stride)


def in_windows(
    network: Callable[[Tensor], Tensor], x: Float[Tensor, "n c t h w"], plan: WindowPlan | None, encoding: bool
) -> Float[Tensor, "n c2 t2 h2 w2"]:
    """Blended results of `network` for all windows. It maps pixels to latents if `encoding`, else latents to pixels."""
    if plan is None:
        return network(x)
    before, after = (1, plan.stride) if encoding else (plan.stride, 1)  # pixels along the side of a cell
    blended: Tensor | None = None
    for top, row_weights in zip(plan.rows.starts, plan.rows.weights, strict=True):
        for left, column_weights in zip(plan.columns.starts, plan.columns.weights, strict=True):
            window = [slice(top, top + plan.rows.length), slice(left, left + plan.columns.length)]
            part = network(x[..., *(slice(s.start // before, s.stop // before) for s in window)])
            if blended is None:
                sizes = (plan.rows.size // after, plan.columns.size // after)
                blended = part.new_zeros(*part.shape[:-2], *sizes)
            weights = np.outer(*(w.reshape(-1, after).mean(1) for w in (row_weights, column_weights)))
            target = blended[..., *(slice(s.start // after, s.stop // after) for s in window)]
            target += part * torch.from_numpy(weights).to(part)
    assert blended is not None
    return blended


def chunk_length(spec: TokenizerSpec, chunk: int) -> int:
    """Frames per chunk: `chunk` rounded up to a length the tokenizer accepts (its first frame alone, if causal)."""
    alone, stride = spec.num_alone, spec.temporal_stride
    return alone + max(round_up(max(chunk - alone, 1), stride), MIN_LATENT_CELLS * stride)


States = dict[tuple[int, int], StreamState]


def encode_decode_chunk(
    tokenizer: VideoTokenizer,
    frames: UInt8[Tensor, "t h w 3"],
    rows: Axis,
    columns: Axis,
    device: torch.device,
    states: States | None = None,
) -> Float32[Tensor, "3 t h w"]:
    """One chunk through the tokenizer, tile by tile; values in [-1, 1], cropped to the size of `frames`.

    `states`: a causal tokenizer's states after the last chunk, by tile; None for other tokenizers.
    """
    t, height, width, _ = frames.shape
    blended = torch.zeros(3, t, rows.size, columns.size)
    for top, row_weights in zip(rows.starts, rows.weights, strict=True):
        for left, column_weights in zip(columns.starts, columns.weights, strict=True):
            # Clamped indices pad by repeating the last row and column.
            y = torch.arange(top, top + rows.length).clamp(max=height - 1)
            x = torch.arange(left, left + columns.length).clamp(max=width - 1)
            tile = frames[:, y][:, :, x][None].to(device)  # (1, t, tile, tile, 3)
            video = tokenizer.from_uint8(tile)
            if states is None:
                decoded = tokenizer.decode(checked_latents(tokenizer.encode(video), tokenizer))
            else:
                state = states.setdefault((top, left), StreamState())
                latents = checked_latents(tokenizer.encode_part(video, state), tokenizer)
                decoded = tokenizer.decode_part(latents, state)
            result = decoded[0].float().cpu()  # (3, t, tile, tile)
            weights = torch.from_numpy(np.outer(row_weights, column_weights))  # (tile, tile)
            blended[:, :, top : top + rows.length, left : left + columns.length] += result * weights
    return blended[:, :, :height, :width]


@torch.inference_mode()
def encode_decode_stream(
    tokenizer: VideoTokenizer,
    frames: Iterable[UInt8[np.ndarray, "h w 3"]],
    height: int,
    width: int,
    config: TilingConfig | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "n h w 3"]]]:
    """Round trip of a stream of frames, all of one size; yields blocks of (original, reconstruction).

    The blocks follow each other without gap or overlap and have as many frames in all as the stream. At most one chunk
    of frames is read ahead. Raises UserError if the frame size changes.
    """
    config = config or TilingConfig()
    spec = tokenizer.spec
    rows = plan_axis(height, config.tile, config.tile_overlap, spec.spatial_stride)
    columns = plan_axis(width, config.tile, config.tile_overlap, spec.spatial_stride)
    length = chunk_length(spec, config.chunk)
    overlap = 0 if spec.causal_in_time else min(config.chunk_overlap, length // 2)
    states: States | None = {} if spec.causal_in_time else None
    source = iter(frames)
    held: list[np.ndarray] = []  # the frames of the current chunk
    tail: Tensor | None = None  # reconstruction of the shared frames by the last chunk
    more = True
    while more:
        more = _fill(held, source, length + 1, height, width)  # one frame more shows whether this chunk is the last
        if not held:
            return
        chunk = held[:length]
        # A later chunk is padded to the usual length, a video shorter than one chunk only to the strides.
        if states:
            padded = round_up(len(chunk), spec.temporal_stride)
        else:
            padded = length if tail is not None else min(length, chunk_length(spec, len(chunk)))
        video = np.stack(chunk + [chunk[-1]] * (padded - len(chunk)))  # (padded, h, w, 3)
        result = encode_decode_chunk(tokenizer, torch.from_numpy(video), rows, columns, torch.device(device), states)
        if tail is not None:
            fade = ((torch.arange(overlap) + 0.5) / overlap)[:, None, None]  # (overlap, 1, 1)
            result[:, :overlap] = tail * (1 - fade) + result[:, :overlap] * fade
        done = length - overlap if more else len(chunk)
        tail = result[:, done:].clone() if more and overlap else None
        # Two frames at a time, since every step of the conversion is a copy in float32.
        after = [tokenizer.to_uint8(part[None])[0].numpy() for part in result[:, :done].split(2, dim=1)]
        yield np.stack(chunk[:done]), np.concatenate(after)
        held = held[done:]
        if states is not None:
            length = max(
                round_up(config.chunk, spec.temporal_stride), spec.temporal_stride
            )  # only the first chunk has a frame alone


def _fill(held: list[np.ndarray], source: Iterator[np.ndarray], count: int, height: int, width: int) -> bool:
    """Reads until `held` has `count` frames; False if the stream ended before."""
    while len(held) < count:
        frame = next(source, None)
        if frame is None:
            return False
        if frame.shape != (height, width, 3):
            raise UserError(f"The frame size changes within the video: {frame.shape[:2]} after {(height, width)}.")
        held.append(frame)
    return True


@torch.inference_mode()
def encode_decode(
    tokenizer: VideoTokenizer,
    video: UInt8[np.ndarray, "t h w 3"],
    config: TilingConfig | None = None,
    device: torch.device | str = "cpu",
) -> UInt8[np.ndarray, "t h w 3"]:
    """Round trip of a whole clip in memory, with the same frame count and size."""
    _, height, width, _ = video.shape
    blocks = [after for _, after in encode_decode_stream(tokenizer, video, height, width, config, device)]
    return np.concatenate(blocks)


@dataclass(frozen=True)
class TokenCount:
    """Size of the tokens of a video.

    `latent_shape`: latent frames, rows and columns of the video padded to the strides; `num_tokens`: their product.
    `compression_ratio`: 24 bits per pixel over log2(vocabulary) bits per token (32 bits per channel for continuous
    latents). `num_tokens_encoded`: tokens of all overlapping windows together.
    """

    latent_shape: tuple[int, int, int]
    num_tokens: int
    num_tokens_encoded: int
    compression_ratio: float


def count_tokens(
    spec: TokenizerSpec, num_frames: int, height: int, width: int, config: TilingConfig | None = None
) -> TokenCount:
    """Tokens of a video of this size, see `TokenCount`."""
    config = config or TilingConfig()
    grid = spec.latent_shape(num_frames, height, width)
    bits = np.log2(spec.vocab_size) if spec.vocab_size else 32 * (spec.latent_channels or 1)
    tiles = [plan_axis(size, config.tile, config.tile_overlap, spec.spatial_stride) for size in (height, width)]
    tokens, num_tiles = int(np.prod(grid)), len(tiles[0].starts) * len(tiles[1].starts)
    ratio = float(num_frames * height * width * 24 / (tokens * bits))
    if spec.causal_in_time:
        per_tile = int(np.prod(spec.latent_shape(num_frames, tiles[0].length, tiles[1].length)))
        return TokenCount(grid, tokens, per_tile * num_tiles, ratio)
    length = chunk_length(spec, config.chunk)
    step = length - min(config.chunk_overlap, length // 2)
    chunks = 1 + max(0, -(-(num_frames - length) // step))
    length = min(length, chunk_length(spec, num_frames)) if chunks == 1 else length
    per_window = np.prod(spec.latent_shape(length, tiles[0].length, tiles[1].length))
    return TokenCount(grid, tokens, int(per_window) * chunks * num_tiles, ratio)
