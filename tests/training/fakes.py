"""Networks and batch sources small enough to train for real within a test."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws, dropout, randn
from mutoscope.tokenizers.base import TokenizerOutput, VideoTokenizer
from mutoscope.tokenizers.vq3d import VQ3DConfig
from mutoscope.training.config import FeaturesRecipe, LoopConfig, OptimConfig, TokenizerRecipe

LOOP = LoopConfig(num_steps=12, batch_size=4, log_every=1, sample_every=100, checkpoint_every=4, num_workers=0)


def features_recipe(**loop: object) -> FeaturesRecipe:
    return FeaturesRecipe("fake", ShapesData(), OptimConfig(1e-2, warmup_steps=2), replace(LOOP, **loop))


def tokenizer_recipe(**loop: object) -> TokenizerRecipe:
    optim = OptimConfig(1e-2, beta1=0.0, beta2=0.99, warmup_steps=2)
    return TokenizerRecipe("fake", ShapesData(), VQ3DConfig(), optim, replace(LOOP, **loop))


class FakeSource(ClipSource[ClipBatch]):
    """Clip `index` is drawn from a generator seeded with it."""

    def __init__(self, num_clips: int | None = None):
        self.num_clips = num_clips

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        draws = [torch.Generator().manual_seed(int(i)) for i in indices]
        clips = [torch.randint(256, (2, 4, 4, 3), generator=g, dtype=torch.uint8) for g in draws]
        label = torch.tensor([int(i) % 5 for i in indices])
        return {"video": torch.stack(clips), "label": label, "caption": [""] * len(clips)}


class FakeModel(nn.Module):
    """A classifier with dropout and input noise."""

    def __init__(self, dropout: float = 0.2, noise: float = 0.1):
        super().__init__()
        torch.manual_seed(0)
        self.noise, self.dropout = noise, dropout
        self.layers = nn.Sequential(nn.Linear(96, 16), nn.ReLU())
        self.output = nn.Linear(16, 5)

    def loss(self, batch: dict, generator: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["video"].flatten(1).float() / 255
        x = x + self.noise * randn(generator, *x.shape)
        h = dropout(self.layers(x), self.dropout, generator if self.training else None)
        loss = nn.functional.cross_entropy(self.output(h), batch["label"])
        return loss, {"half": loss.detach() / 2}


class FakeTokenizer(VideoTokenizer):
    """One convolution that is meant to become the identity."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(3, 3, 1)

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)

    def forward_train(
        self, video: Tensor, draws: Draws | None = None, whole: WholeMean = all_at_hand
    ) -> TokenizerOutput:
        decoded = self.layer(video)
        terms = {"reconstruction": (decoded - video).square().mean(), "commitment": decoded.abs().mean() * 0.01}
        return TokenizerOutput(decoded, torch.zeros(len(video), 1, 1, 1, dtype=torch.int64), terms)
