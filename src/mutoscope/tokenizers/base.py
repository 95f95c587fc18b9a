"""The contract of every tokenizer: pixels to tokens or latents, and back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws
from mutoscope.layers.finite import require_finite

LATENTS = "The latents of the tokenizer's encoder"  # in messages
Network = TypeVar("Network", bound=nn.Module)
PIXEL_SCALE = 127.5  # half of 255: 0…255 is mapped linearly to [-1, 1]


@dataclass(frozen=True)
class TokenizerSpec:
    """Strides, vocabulary and causality of a tokenizer.

    Exactly one of `vocab_size` (discrete tokens) and `latent_channels` (continuous latents) is set.
    `causal_in_time`: the first frame is encoded alone and later frames never change earlier latents. `per_frame`: each
    frame is encoded and decoded separately. `first_frame_alone`: clips have 1 + k·stride frames, as with a causal
    tokenizer, though earlier latents may depend on later frames.
    """

    temporal_stride: int
    spatial_stride: int
    vocab_size: int | None = None
    latent_channels: int | None = None
    causal_in_time: bool = False
    per_frame: bool = False
    first_frame_alone: bool = False

    @property
    def num_alone(self) -> int:
        """Frames that are encoded alone before the groups of `temporal_stride` frames: 1 or 0."""
        return 1 if self.causal_in_time or self.first_frame_alone else 0

    @property
    def decodes_in_order(self) -> bool:
        """Whether a latent frame can be decoded before the later ones are known."""
        return self.causal_in_time or self.per_frame

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(latent_frames, latent_height, latent_width) of a clip; sizes are padded up to the strides.

        A causal tokenizer keeps its first frame alone: 17 frames at temporal stride 4 give 5 latent frames.
        """
        latent_frames = self.num_alone + -(-(num_frames - self.num_alone) // self.temporal_stride)
        return latent_frames, -(-height // self.spatial_stride), -(-width // self.spatial_stride)

    def num_frames(self, latent_frames: int) -> int:
        """Frames that `latent_frames` latent frames decode to."""
        return self.num_alone + (latent_frames - self.num_alone) * self.temporal_stride


@dataclass(frozen=True)
class TokenizerOutput:
    """Result of a training pass: reconstruction in [-1, 1], tokens or latents, and the weighted terms of `loss`."""

    reconstruction: Float[Tensor, "b 3 t h w"]
    tokens: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """Sum of the weighted terms."""
        return torch.stack([term.float() for term in self.losses.values()]).sum()


@dataclass
class StreamState:
    """State of a causal tokenizer in a stream: features of earlier frames, by layer."""

    past: dict[nn.Module, Tensor] = field(default_factory=dict)

    def copy(self) -> "StreamState":
        """A state that stays as it is when the stream goes on. Layers replace their tensors and never write to them."""
        return StreamState(dict(self.past))


class VideoTokenizer(nn.Module):
    """Base of all tokenizers. Subclasses define `spec`, `encode` and `decode`."""

    @property
    def spec(self) -> TokenizerSpec:
        """Strides, vocabulary and causality."""
        raise AttributeError(f"{type(self).__name__} does not define its spec.")

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Int[Tensor, "b lt lh lw"] | Float[Tensor, "b d lt lh lw"]:
        """Tokens (or latents) of pixels in [-1, 1]. Raises UserError for sizes that the strides do not divide."""
        raise AttributeError(f"{type(self).__name__} does not define encode.")

    def continuous_latents(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d lt lh lw"]:
        """Latents of a continuous tokenizer; of a discrete one, those before quantization."""
        if self.spec.vocab_size is None:
            return self.encode(video)
        raise AttributeError(f"{type(self).__name__} does not define continuous_latents.")

    @property
    def has_batch_terms(self) -> bool:
        """Whether the training loss depends on means over the whole batch, which `forward_train` takes from `whole`."""
        return False

    def forward_train(
        self, video: Float[Tensor, "b 3 t h w"], draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> TokenizerOutput:
        """Reconstruction and losses of stage 1, for pixels in [-1, 1].

        Each loss is a mean over clips with equal weights, or a function of means that `whole` extends to the batch.
        """
        raise AttributeError(f"{type(self).__name__} has no training loss.")

    def draw_latents(
        self, video: Float[Tensor, "b 3 t h w"], generator: torch.Generator
    ) -> Float[Tensor, "b d lt lh lw"]:
        """Latents of context frames: drawn from their distribution if the published pipeline does so, else `encode`."""
        return self.encode(video)

    def decode(self, tokens: Int[Tensor, "b lt lh lw"] | Float[Tensor, "b d lt lh lw"]) -> Float[Tensor, "b 3 t h w"]:
        """Pixels of tokens (or latents), nominally in [-1, 1] but not clipped."""
        raise AttributeError(f"{type(self).__name__} does not define decode.")

    def encode_part(self, video: Float[Tensor, "b 3 t h w"], state: StreamState) -> Tensor:
        """Tokens or latents of the next frames of a stream, for causal tokenizers."""
        raise AttributeError(f"{type(self).__name__} does not encode in parts.")

    def decode_part(self, latents: Tensor, state: StreamState) -> Float[Tensor, "b 3 t h w"]:
        """Pixels of the next tokens or latents of a stream, for causal tokenizers."""
        raise AttributeError(f"{type(self).__name__} does not decode in parts.")

    @property
    def can_rewind(self) -> bool:
        """Whether `stream_decode` keeps everything that it remembers in a given state."""
        return self.spec.per_frame

    def stream_decode(self, latents: Iterable[Tensor], state: StreamState | None = None) -> Iterator[Tensor]:
        """Pixels (b, 3, t, h, w) of latent frames (b, n, lh, lw) or (b, d, n, lh, lw), one part after another.

        All parts together equal `decode` of the whole. `state`: of earlier parts, which this stream continues.
        Subclasses with a state override this. Raises AttributeError for a tokenizer whose decoder needs later frames.
        """
        if not self.spec.per_frame:
            raise AttributeError(f"{type(self).__name__} does not decode frame by frame.")
        for part in latents:
            yield self.decode(part)

    def set_latent_statistics(self, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
        """Normalises continuous latents by their statistics over these clips, after training."""
        raise AttributeError(f"{type(self).__name__} does not normalise its latents by statistics.")

    def from_uint8(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 t h w"]:
        """0…255 to [-1, 1]: black is -1."""
        return rearrange(frames, "b t h w c -> b c t h w").float() / PIXEL_SCALE - 1.0

    def to_uint8(self, video: Float[Tensor, "b 3 t h w"]) -> UInt8[Tensor, "b t h w 3"]:
        """[-1, 1] to 0…255, by the rule of `levels`. Raises UserError for pixels that are NaN or infinite."""
        require_finite(video, "The pixels of the tokenizer's decoder", self.weights_dtype, option="tokenizer_dtype")
        return rearrange(self.levels(video.float()).to(torch.uint8), "b c t h w -> b t h w c")

    def levels(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """[-1, 1] to 0…255: clip, then round to nearest. A tokenizer whose paper truncates overrides this.

        The fraction of the result is dropped.
        """
        return ((video + 1.0) * PIXEL_SCALE).clamp(0.0, 255.0).round()

    @property
    def weights_dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)


def checked_latents(latents: Tensor, tokenizer: VideoTokenizer) -> Tensor:
    """Latents (or tokens) that `tokenizer` encoded. Raises UserError for latents that are NaN or infinite."""
    require_finite(latents, LATENTS, tokenizer.weights_dtype, option="tokenizer_dtype")
    return latents


def channels_last(network: Network) -> Network:
    """Stores every convolution kernel with channels last, in place: a quarter faster on CPU and GPU."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return network
