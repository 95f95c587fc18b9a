"""Stage 1: the losses that train a tokenizer to reconstruct clips, with or without a discriminator.

arXiv 2212.05199, §3.1 and appendix B.1.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.layers.batch_means import WholeMean, all_at_hand
from mutoscope.layers.draws import Draws
from mutoscope.layers.precision import full_precision
from mutoscope.tokenizers.base import VideoTokenizer, channels_last
from mutoscope.tokenizers.discriminator import (
    discriminator_loss,
    generator_loss,
    lecam_loss,
    make_discriminator,
    r1_penalty,
)
from mutoscope.training.batches import Batch, to_device
from mutoscope.training.callbacks import Callback
from mutoscope.training.config import AdversarialConfig, TokenizerRecipe
from mutoscope.training.tracking import Tracker
from mutoscope.training.trainer import TrainResult, run_loop
from mutoscope.training.update import Objective
from mutoscope.training.validation import ValidationRule

ClipDistance = Callable[[Tensor, Tensor], Tensor]
SQUARED_RANGE = 4.0  # of pixels in [-1, 1]


def training_video(tokenizer: VideoTokenizer, batch: Batch) -> Float[Tensor, "b 3 t h w"]:
    """The batch's clips in [-1, 1], channels last in memory like the kernels."""
    return tokenizer.from_uint8(cast(Tensor, batch["video"])).contiguous(memory_format=torch.channels_last_3d)


class ReconstructionLoss(Objective):
    """The tokenizer's training loss as a forward pass."""

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def has_batch_terms(self) -> bool:
        return self.tokenizer.has_batch_terms

    def forward(self, batch: Batch, draws: Draws, whole: WholeMean = all_at_hand) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.tokenizer.forward_train(training_video(self.tokenizer, batch), draws, whole)
        return output.loss, output.losses


class AdversarialLoss(Objective):
    """Tokenizer and discriminator in one pass and one sum of losses; both are updated from the same forward pass.

    The generator's terms see the discriminator's weights as constants, the discriminator's terms see the
    reconstruction as a constant, so one backward pass gives each network its own gradient. Autocast narrows the
    tokenizer alone: the comparisons below are differences of nearly equal numbers.

        L_G = reconstruction + quantizer + 0.1 · softplus(−D(v̂)) + 0.1 · perceptual(v, v̂)
        L_D = softplus(−D(v)) + softplus(D(v̂)) + 10 · ‖∂D(v)/∂v‖² + w · LeCam

    LeCam compares the mean logits of the whole batch with their moving averages, which move once per update. Batch
    norms of a PatchGAN take their statistics over all processes, but over the clips of one micro-batch: they are the
    one thing that micro-batches change.
    """

    average_real: Tensor
    average_fake: Tensor

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        discriminator: nn.Module,
        config: AdversarialConfig,
        perceptual: ClipDistance | None = None,
    ):
        super().__init__()
        self.tokenizer, self.discriminator, self.config = tokenizer, discriminator, config
        # Inside a function, so that the frozen network is no submodule: neither trained nor saved with checkpoints.
        self.perceptual = None if perceptual is None else lambda real, fake: perceptual(real, fake)
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))
        self._means: Float[Tensor, "2"] | None = None  # of the logits of real and decoded clips in this update

    @property
    def has_batch_terms(self) -> bool:
        return self.tokenizer.has_batch_terms or self.config.lecam_weight > 0

    def forward(self, batch: Batch, draws: Draws, whole: WholeMean = all_at_hand) -> tuple[Tensor, dict[str, Tensor]]:
        step = cast(int, batch.get("step", self.config.start_step))
        return self.losses(training_video(self.tokenizer, batch), draws, step >= self.config.start_step, whole)

    def statistics(self, batch: Batch, draws: Draws, whole: WholeMean) -> None:
        video = training_video(self.tokenizer, batch)
        output = self.tokenizer.forward_train(video, draws, whole)
        if self.config.lecam_weight > 0:
            self._mean_logits((video + 1) / 2, (output.reconstruction.float() + 1) / 2, whole)

    @full_precision
    def _mean_logits(self, real: Tensor, fake: Tensor, whole: WholeMean) -> None:
        whole(torch.stack([self.discriminator(real).mean(), self.discriminator(fake).mean()]))

    @torch.no_grad()
    def updated(self) -> None:
        """Moves LeCam's averages towards the mean logits of the update."""
        if self._means is not None:
            for average, mean in zip((self.average_real, self.average_fake), self._means, strict=True):
                average.lerp_(mean.float(), 1 - self.config.lecam_decay)
        self._means = None

    def losses(
        self,
        video: Float[Tensor, "b 3 t h w"],
        draws: Draws | None = None,
        adversarial: bool = True,
        whole: WholeMean = all_at_hand,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Sum and weighted terms for clips in [-1, 1].

        adversarial: whether adversarial training has started; before, its terms are weighted 0.
        """
        output = self.tokenizer.forward_train(video, draws, whole)
        # [0, 1], as the discriminator reads them
        real, fake = (video + 1) / 2, (output.reconstruction.float() + 1) / 2
        opposed = self._generator_terms(real, fake) | self._discriminator_terms(real, fake.detach(), whole)
        weight = 1.0 if adversarial else 0.0
        terms = output.losses | {name: term * weight for name, term in opposed.items()}
        if self.perceptual is not None:
            terms["perceptual"] = self.config.perceptual_weight * self.perceptual(real, fake)
        return torch.stack([term.float() for term in terms.values()]).sum(), terms

    @full_precision
    def _generator_terms(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = functional_call(self.discriminator, frozen, (fake,))
        return {"generator": self.config.gan_weight * generator_loss(logits, self.config.gan_loss)}

    @full_precision
    def _discriminator_terms(self, real: Tensor, fake: Tensor, whole: WholeMean) -> dict[str, Tensor]:
        config = self.config
        real = real.detach().requires_grad_(config.r1_weight > 0)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)  # (n, 1, ...)
        loss = discriminator_loss(real_logits, fake_logits, config.gan_loss)
        terms = {"discriminator": config.discriminator_weight * loss}
        if config.r1_weight > 0:
            terms["r1"] = config.r1_weight * r1_penalty(real_logits, real)
        if config.lecam_weight > 0:
            means = whole(torch.stack([real_logits.mean(), fake_logits.mean()]))  # (2,)
            averages = self.average_real.clone(), self.average_fake.clone()
            terms["lecam"] = config.lecam_weight * lecam_loss(means[0], means[1], *averages)
            self._means = means.detach()
        return terms


def tokenizer_figures(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of a tokenizer on held-back clips, without a discriminator's terms, and PSNR in dB, the mean over clips."""
    tokenizer = cast(VideoTokenizer, network)
    video = training_video(tokenizer, batch)
    output = tokenizer.forward_train(video, generator)
    error = (output.reconstruction.float().clamp(-1, 1) - video).square().flatten(1).mean(1)  # (b,)
    return {"loss": output.loss, "psnr": (10 * torch.log10(SQUARED_RANGE / error.clamp(min=1e-10))).mean()}


def train_tokenizer(
    tokenizer: VideoTokenizer,
    recipe: TokenizerRecipe,
    source: ClipSource[ClipBatch],
    out: str | Path,
    *,
    discriminator: nn.Module | None = None,
    perceptual: ClipDistance | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    device: str | torch.device | None = None,
) -> TrainResult:
    """Trains `tokenizer` in place on batches with "video" uint8 (b, t, h, w, 3); returns what to export.

    With `recipe.adversarial` a discriminator (`discriminator`, or a fresh one) is trained in place beside it, and
    `perceptual(real, fake)` of clips in [0, 1] is added to the loss unless it is None; only the tokenizer is averaged
    and returned.
    Writes `log.jsonl`, `curve.png`, `checkpoints/` and `samples/` below `out`. With `loop.validation_share`, whole
    recordings of `source` are held back, loss and PSNR on them are logged, and the weights with the higher PSNR, raw or
    averaged, are returned. With `resume`, continues the newest good checkpoint there; on CPU the continued run equals
    an uninterrupted one bit for bit.
    Raises UserError for a changed recipe, a full disk, damaged checkpoints or a diverging loss.
    """
    if recipe.adversarial is None:
        objective: Objective = ReconstructionLoss(tokenizer)
        clip_groups = None
    else:
        discriminator = discriminator or make_discriminator(recipe.adversarial.discriminator)
        objective = AdversarialLoss(tokenizer, discriminator, recipe.adversarial, perceptual)
        clip_groups = (tokenizer, discriminator)
    return run_loop(
        tokenizer,
        channels_last(objective),
        recipe,
        source,
        out,
        rule=ValidationRule(tokenizer_figures, cost=lambda figures: -figures["psnr"]),
        prepare_batch=lambda batch, step: {**batch, "step": step},
        resume=resume,
        callbacks=callbacks,
        trackers=trackers,
        device=device,
        clip_groups=clip_groups,
    )


def set_latent_statistics(
    tokenizer: VideoTokenizer, source: ClipSource[ClipBatch], num_clips: int = 256, batch_size: int = 16
) -> None:
    """Latents of mean 0 and variance 1 over the first clips of `source`, which video models are trained on."""
    device, count = next(tokenizer.parameters()).device, min(num_clips, source.num_clips or num_clips)
    parts = (list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size))
    videos = (training_video(tokenizer, to_device(source[part], device)) for part in parts)
    tokenizer.set_latent_statistics(videos)
