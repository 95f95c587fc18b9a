"""The published KL autoencoders of NOVA's models: for images (Stable Diffusion) and for video (Open-Sora Plan).

`encode` returns normalised latents, z = (mean − shift)·scale; `decode` reads them.

    2-D     (b, 3, t, 8h, 8w)      ──► (b, 4, t, h, w)      each frame separately
    3-D     (b, 3, 1+4k, 8h, 8w)   ──► (b, 4, 1+k, h, w)    in tiles of 17 frames, 5 latents, that share one
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.tokenizers.autoencoder_kl_network import AutoencoderKLConfig, Decoder, Encoder, as_clips, as_frames, conv
from mutoscope.tokenizers.base import PIXEL_SCALE, StreamState, TokenizerSpec, VideoTokenizer
from mutoscope.tokenizers.quantizers import draw_gaussian
from mutoscope.tokenizers.tiling import in_windows, plan_windows

Partial = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True)
class TileOptions:
    """Sizes of the parts that are computed together, and the treatment of incomplete tiles. Not part of the weights.

    `at_once`: tiles in one pass of the network, over time and batch; 1 needs the least memory. Each tile is normalised
    separately, so the result is the same.
    `partial`, for clips longer than one tile: "refuse" raises UserError for frames that do not fill a tile; "drop"
    omits them, as the released code does silently; "keep" shortens the last tile.
    `spatial`: rows and columns of pixels of a window; None computes whole frames. Windows overlap by `spatial_overlap`
    pixels and are blended, which changes the result slightly, since norms and attention then see one window.
    """

    at_once: int = 1
    partial: Partial = "refuse"
    spatial: int | None = None
    spatial_overlap: int = 64

    def __post_init__(self) -> None:
        if self.at_once < 1 or self.partial not in ("refuse", "drop", "keep"):
            raise UserError(f'at_once must be positive and partial "refuse", "drop" or "keep", found {self}.')
        if self.spatial is not None and not 0 <= 2 * self.spatial_overlap <= self.spatial:
            raise UserError(f"spatial must be at least twice its overlap {self.spatial_overlap}, found {self.spatial}.")


class AutoencoderKL(VideoTokenizer):
    """Encoder, Gaussian latents and decoder; pixels in [-1, 1]. `tiles` may be replaced at any time.

    Weights may be in half precision, which halves their memory: inputs are converted to their dtype, outputs are
    float32.

    The 3-D network takes clips of 1 + 4k frames: up to 17 in a single pass, longer ones in tiles that share a frame,
    hence of 17 + 16k frames unless `tiles.partial` allows others. Later frames of a tile influence earlier ones through
    its norms, so a stream advances tile by tile.
    """

    def __init__(self, config: AutoencoderKLConfig, tiles: TileOptions | None = None) -> None:
        super().__init__()
        self.config, self.tiles = config, tiles or TileOptions()
        channels, dim = config.latent_channels, config.up_dims[0]
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = conv(dim, 2 * channels, 2 * channels, 1) if config.quant_conv else None
        self.post_quant_conv = conv(dim, channels, channels, 1) if config.post_quant_conv else None

    @property
    def spec(self) -> TokenizerSpec:
        config = self.config
        return TokenizerSpec(
            temporal_stride=config.temporal_stride,
            spatial_stride=2 ** (len(config.block_channels) - 1),
            latent_channels=config.latent_channels,
            causal_in_time=config.is_3d,
            per_frame=not config.is_3d,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def tile_latents(self) -> int:
        """Latent frames of one tile."""
        return 1 + (self.config.tile_frames - 1) // self.config.temporal_stride

    def moments(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d2 lt lh lw"]:
        """Mean and log-variance of the latents, before normalisation.

        Raises UserError for sizes that the strides do not divide and, unless `tiles.partial` allows them, for numbers
        of frames that do not fill the tiles.
        """
        return self._moments(video, self.tiles.partial)

    def encode(
        self, video: Float[Tensor, "b 3 t h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b d lt lh lw"]:
        """Normalised latents: their mean, or, with a generator, a draw from their distribution."""
        return self._normalized(draw_gaussian(self.moments(video), generator))

    def draw_latents(
        self, video: Float[Tensor, "b 3 t h w"], generator: torch.Generator
    ) -> Float[Tensor, "b d lt lh lw"]:
        return self.encode(video, generator)

    def decode(self, tokens: Float[Tensor, "b d lt lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        """Pixels of normalised latents. Raises UserError for numbers of latents that do not fill the tiles."""
        return self._decode(tokens, self.tiles.partial)

    def encode_part(self, video: Float[Tensor, "b 3 t h w"], state: StreamState) -> Float[Tensor, "b d lt lh lw"]:
        """Latents of the next frames of a stream: a first part of 1 + 4k frames, then multiples of 4.

        If every part ends at the end of a tile, all parts together equal `encode` of the whole.
        """
        past, state.past[self.encoder] = state.past.get(self.encoder), video[:, :, -1:]
        if past is None or not self.config.is_3d:
            return self._normalized(draw_gaussian(self._moments(video, "keep")))
        moments = self._moments(torch.cat([past, video], dim=2), "keep")
        return self._normalized(draw_gaussian(moments))[:, :, 1:]

    def decode_part(self, latents: Float[Tensor, "b d lt lh lw"], state: StreamState) -> Float[Tensor, "b 3 t h w"]:
        """Pixels of the next latents of a stream, equal to `decode` of the whole if every part ends with a tile."""
        past, state.past[self.decoder] = state.past.get(self.decoder), latents[:, :, -1:]
        if past is None or not self.config.is_3d:
            return self._decode(latents, "keep")
        return self._decode(torch.cat([past, latents], dim=2), "keep")[:, :, 1:]

    @property
    def can_rewind(self) -> bool:
        return not self.config.is_3d  # the frames of an incomplete tile are in no state

    def stream_decode(self, latents: Iterable[Tensor], state: StreamState | None = None) -> Iterator[Tensor]:
        """Pixels tile by tile. Raises UserError at the end for a number of latents that `decode` would refuse."""
        if not self.config.is_3d:
            yield from super().stream_decode(latents)
            return
        state, count = StreamState() if state is None else state, 0
        waiting: list[Tensor] = []  # latent frames (b, d, 1, lh, lw) of the incomplete tile
        for part in latents:
            for frame in part.split(1, dim=2):
                waiting, count = [*waiting, frame], count + 1
                if count == self.tile_latents or (count > self.tile_latents and len(waiting) == self.tile_latents - 1):
                    yield self.decode_part(torch.cat(waiting, dim=2), state)
                    waiting = []
        parts = self._parts(count, self.tile_latents, 1, "latent frames", self.tiles.partial) if count else []
        if waiting and parts[-1].stop == count:
            yield self.decode_part(torch.cat(waiting, dim=2), state)

    def levels(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """[-1, 1] to 0…255 as the official pipeline does: 127.5 x + 127.5, clipped, truncated."""
        return (PIXEL_SCALE * video + PIXEL_SCALE).clamp(0, 255)

    # ------------------------------------------------------------------------------------------------------- tiles

    def _moments(self, video: Float[Tensor, "b 3 t h w"], partial: Partial) -> Float[Tensor, "b d2 lt lh lw"]:
        config, side = self.config, self.spec.spatial_stride
        t, h, w = video.shape[-3:]
        if h % side or w % side:
            raise UserError(f"The tokenizer needs sizes in multiples of {side}, found {h}×{w}. Pad or resize them.")
        plan = plan_windows(h, w, self.tiles.spatial, self.tiles.spatial_overlap, side)
        parts = self._parts(t, config.tile_frames, config.temporal_stride, "frames", partial)
        return self._in_tiles(video, parts, lambda tile: in_windows(self._encode_tile, tile, plan, encoding=True))

    def _decode(self, latents: Float[Tensor, "b d lt lh lw"], partial: Partial) -> Float[Tensor, "b 3 t h w"]:
        config, side = self.config, self.spec.spatial_stride
        h, w = (size * side for size in latents.shape[-2:])
        plan = plan_windows(h, w, self.tiles.spatial, self.tiles.spatial_overlap, side)
        parts = self._parts(latents.shape[2], self.tile_latents, 1, "latent frames", partial)
        latents = latents / config.scaling_factor + config.shift_factor
        return self._in_tiles(latents, parts, lambda tile: in_windows(self._decode_tile, tile, plan, encoding=False))

    def _normalized(self, latents: Float[Tensor, "b d lt lh lw"]) -> Float[Tensor, "b d lt lh lw"]:
        return (latents - self.config.shift_factor) * self.config.scaling_factor

    def _encode_tile(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n d2 lt lh lw"]:
        features = self.encoder(video.to(self.dtype))
        return as_clips(features if self.quant_conv is None else self.quant_conv(features), len(video)).float()

    def _decode_tile(self, latents: Float[Tensor, "n d lt lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        x = (latents if self.config.is_3d else as_frames(latents)).to(self.dtype)
        pixels = self.decoder(x if self.post_quant_conv is None else self.post_quant_conv(x))
        return as_clips(pixels, len(latents)).float()

    def _parts(self, count: int, size: int, stride: int, noun: str, partial: Partial) -> list[slice]:
        """Frames of each pass of the network: one in 2-D; in 3-D up to `size`, which share one."""
        if not self.config.is_3d:
            return [slice(i, i + 1) for i in range(count)]
        step = stride if count <= size else size - 1
        left = (count - 1) % (stride if partial == "keep" else step)  # frames that fill no tile
        if left and partial != "drop":
            allowed = f"1 + k·{stride} {noun} up to {size}" if stride > 1 else f"up to {size} {noun}"
            raise UserError(
                f"The video autoencoder takes {allowed} and {size} + k·{size - 1} beyond, found {count}. Use "
                f"{count - left} or {count - left + (stride if partial == 'keep' else step)}, or choose what happens "
                "to the rest with TileOptions(partial=...)."
            )
        if count <= size:
            return [slice(0, count)]
        last = count if partial == "keep" else count - left
        return [slice(start, min(start + size, last)) for start in range(0, last - 1, size - 1)]

    def _in_tiles(
        self, x: Float[Tensor, "b c t h w"], parts: list[slice], network: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "b c2 t2 h2 w2"]:
        """`network` of every part of every clip, joined; of a frame in two parts, the earlier part's output is kept."""
        shared = 1 if self.config.is_3d else 0
        tiles = [clip[:, :, part] for clip in x.split(1) for part in parts]
        done: list[Tensor] = []
        for _, same in itertools.groupby(tiles, key=lambda tile: tile.shape[2]):  # a clip's last tile may be shorter
            same = list(same)
            for i in range(0, len(same), self.tiles.at_once):
                done += network(torch.cat(same[i : i + self.tiles.at_once])).split(1)
        rows = [done[i : i + len(parts)] for i in range(0, len(done), len(parts))]
        return torch.cat([torch.cat([row[0], *(part[:, :, shared:] for part in row[1:])], dim=2) for row in rows])
