"""Float32 inside autocast: results equal those without autocast, bit for bit, whatever autocast would do to them."""

from collections.abc import Callable
from math import prod
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from mutoscope.layers.gaussian_diffusion import LearnedVariance
from mutoscope.layers.precision import autocast_off, full_precision, project_exactly
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig
from mutoscope.models.magvit.model import masked_cross_entropy
from mutoscope.models.par import PAR
from mutoscope.tokenizers.discriminator import discriminator_loss, generator_loss, lecam_loss
from mutoscope.tokenizers.perceptual import LPIPS, AlexNet, PerceptualLoss
from mutoscope.tokenizers.quantizers import (
    FiniteScalarQuantizer,
    GaussianBottleneck,
    LookupFreeQuantizer,
    VectorQuantizer,
    VectorQuantizerConfig,
    entropy_loss,
    squared_distances,
)
from tiny_magi import tiny_magi
from tiny_models import tiny_model, tiny_par
from tiny_nova import tiny_nova

CPU = torch.device("cpu")
R = TypeVar("R")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def narrowed(function: Callable[..., R], *arguments: object) -> R:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return function(*arguments)


def tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def product(x: Tensor, y: Tensor) -> Tensor:
    return x @ y


def test_autocast_narrows_a_product_that_was_cast_and_full_precision_does_not():
    x, y = randn(8, 8), randn(8, 8, seed=1)
    assert not torch.equal(narrowed(lambda: x.float() @ y.float()), x @ y)
    assert torch.equal(narrowed(full_precision(product), x, y), x @ y)
    assert torch.equal(narrowed(full_precision(product), x.bfloat16(), y), x.bfloat16().float() @ y)

    def within() -> Tensor:
        with autocast_off(CPU):
            return x @ y

    assert torch.equal(narrowed(within), x @ y)


def test_outside_of_autocast_nothing_is_cast():
    x = randn(2, 2).bfloat16()
    assert full_precision(product)(x, x).dtype == torch.bfloat16
    assert project_exactly(nn.Linear(2, 2).bfloat16(), x).dtype == torch.bfloat16
    assert full_precision(product)(x.to("meta"), x.to("meta")).device.type == "meta"  # has no autocast


def vector_quantizer(normalized: bool) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VectorQuantizerConfig(4096, 8, normalized=normalized))


@pytest.mark.parametrize("normalized", [True, False])
def test_codes_and_losses_of_the_vector_quantizer_do_not_depend_on_autocast(normalized: bool):
    quantizer, latents = vector_quantizer(normalized), randn(2, 8, 1, 16, 16)
    assert torch.equal(narrowed(quantizer.tokens, latents), quantizer.tokens(latents))
    for plain, under in zip(tensors(quantizer(latents)), tensors(narrowed(quantizer, latents)), strict=True):
        assert torch.equal(plain, under)


@pytest.mark.parametrize(
    ("quantizer", "channels"),
    [
        (LookupFreeQuantizer(10, group_bits=4), 10),
        (FiniteScalarQuantizer((8, 5, 5)), 3),
        (GaussianBottleneck(1e-6, 4), 8),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_bottlenecks_do_not_depend_on_autocast(
    quantizer: LookupFreeQuantizer | FiniteScalarQuantizer | GaussianBottleneck, channels: int, dtype: torch.dtype
):
    latents = randn(2, channels, 1, 8, 8).to(dtype)  # bfloat16 is what convolutions under autocast give
    for function in (quantizer.encode, quantizer.forward):
        found, wanted = tensors(narrowed(function, latents)), tensors(function(latents.float()))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def alex() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet()


FRAMES = torch.rand(2, 1, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0))
LOGITS = [randn(6, 1), randn(6, 1, seed=1)]

LOSSES: dict[str, tuple[Callable[..., object], list[Tensor]]] = {
    "distances": (squared_distances, [randn(9, 4), randn(5, 4, seed=1)]),
    "entropy": (lambda x: entropy_loss(x, 0.01), [randn(9, 5)]),
    "generator": (generator_loss, LOGITS[:1]),
    "generator, hinge": (lambda x: generator_loss(x, "hinge"), LOGITS[:1]),
    "discriminator": (discriminator_loss, LOGITS),
    "discriminator, hinge": (lambda x, y: discriminator_loss(x, y, "hinge"), LOGITS),
    "lecam": (lecam_loss, list(randn(4))),
    "masked tokens": (
        lambda x: masked_cross_entropy(x, torch.arange(8).view(2, 4), torch.ones(2, 4), 1e-4),
        [randn(2, 4, 8)],
    ),
    "sequence": (lambda x: PAR.sequence_loss(x, torch.arange(8).view(2, 4)), [randn(2, 4, 8)]),
    "learned variance": (
        lambda output, x, noise: LearnedVariance().losses(output, x, noise, torch.tensor([0, 500, 999])),
        [randn(3, 8), randn(3, 4, seed=1), randn(3, 4, seed=2)],
    ),
    "features": (PerceptualLoss(alex()), list(FRAMES)),
    "LPIPS": (LPIPS(alex()), list(FRAMES)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_autocast(name: str):
    loss, arguments = LOSSES[name]
    for plain, under in zip(tensors(loss(*arguments)), tensors(narrowed(loss, *arguments)), strict=True):
        assert under.dtype == torch.float32 and torch.equal(plain, under)


def is_rounded(x: Tensor) -> bool:
    return torch.equal(x.float(), x.bfloat16().float())


def test_logits_are_not_rounded_by_autocast():
    magvit, par, magi = tiny_model(), tiny_par(), tiny_magi(codebook_parts=(4, 4), latent_channels=1, patch_size=1)
    nn.init.normal_(par.output.weight)  # starts at zero
    tokens = torch.zeros(1, *magvit.latent_shape, dtype=torch.int64)
    sequence, prefix = torch.zeros(1, prod(par.latent_shape), dtype=torch.int64), par.class_prefix(None, 1)
    baseline = MagvitAR(MagvitARConfig(1, 16, 2, 24, 12, latent_shape=(1, 2, 2)))
    for logits in (
        narrowed(magvit.logits, tokens, "class-conditional"),
        narrowed(par, sequence, prefix),
        narrowed(magi.code_logits, randn(1, 3, magi.config.hidden_size)),
        narrowed(baseline, torch.zeros(1, 3, dtype=torch.int64)),
    ):
        assert isinstance(logits, Tensor) and logits.dtype == torch.float32 and not is_rounded(logits)


def test_outputs_of_diffusion_heads_are_not_rounded_by_autocast():
    for model, head in ((magi := tiny_magi(), magi.denoiser), (nova := tiny_nova(), nova.head)):
        x, z = randn(1, 3, model.config.token_size), randn(1, 3, model.config.hidden_size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = head(x, head.condition(z), head.time(torch.tensor(500.0)))
        assert output.dtype == torch.float32 and not is_rounded(output)
