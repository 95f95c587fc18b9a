"""MAGVIT's adversarial stage against its official implementation: discriminator, losses, training steps, inflation."""

from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from mutoscope.interop import magvit_flax
from mutoscope.tokenizers.discriminator import (
    DiscriminatorConfig,
    GanLoss,
    discriminator_loss,
    generator_loss,
    lecam_loss,
    r1_penalty,
)
from mutoscope.tokenizers.inflation import inflate_kernel
from mutoscope.tokenizers.perceptual import PerceptualLoss, ResNet, ResNetConfig
from mutoscope.training.config import AdversarialConfig, OptimConfig
from mutoscope.training.optim import learning_rate_factor, make_ema, make_optimizer
from mutoscope.training.tokenizer_trainer import AdversarialLoss
from parity.cases import Case, assert_close, family, for_each, holding, matching, renamed
from parity.magvit_support import ADVERSARIAL_KEYS, channels_first, resnet_state, stage1_tokenizer_config

CASES = family("magvit")
LOSSES = matching(CASES, "*losses*")


@for_each(CASES, "*discriminator_forward*")
def test_discriminator_and_gradient_penalty(case: Case):
    for index, described in enumerate(case.info["configs"]):
        video = channels_first(case.tensors[f"input{index}"])
        t, h, w = video.shape[-3:]
        config = DiscriminatorConfig(described["filters"], tuple(described["channel_multipliers"]), (t, h, w))
        network = magvit_flax.load_discriminator(case.under(f"params{index}/"), config)
        video.requires_grad_(True)
        logits = network(video)
        assert_close(logits, case.tensors[f"logit{index}"], atol=2e-4, what="logit")
        penalty = r1_penalty(logits, video)
        (gradient,) = torch.autograd.grad(logits.sum(), video)
        assert_close(gradient, channels_first(case.tensors[f"input_gradient{index}"]), atol=2e-4, what="gradient")
        for name, expected in case.under("r1_penalty_cost").items():
            cost, which = name.rsplit("_", 1)
            if int(which) == index:
                assert_close(float(cost) * penalty, expected.squeeze(), rtol=5e-4, what="r1")


@for_each(CASES, "*discriminator_forward*")
def test_the_configuration_is_read_off_the_shapes(case: Case):
    for index, described in enumerate(case.info["configs"]):
        t, h, w = case.tensors[f"input{index}"].shape[1:4]
        config = magvit_flax.infer_discriminator_config(case.under(f"params{index}/"), (t, h, w))
        assert (config.filters, list(config.channel_multipliers)) == (
            described["filters"],
            described["channel_multipliers"],
        )


@for_each(holding(LOSSES, "real_logit"))
def test_adversarial_losses(case: Case):
    real, fake = case.tensors["real_logit"], case.tensors["fake_logit"]
    for kind, expected in case.under("d_loss/").items():
        assert_close(discriminator_loss(real, fake, cast(GanLoss, kind)), expected.squeeze(), rtol=1e-4, what=kind)
    for kind, expected in case.under("g_loss/").items():
        assert_close(generator_loss(fake, cast(GanLoss, kind)), expected.squeeze(), rtol=1e-4, what=kind)
    averages, values = case.tensors["lecam/ema_real_fake"], case.tensors["lecam/value"]
    for (average_real, average_fake), expected in zip(averages, values, strict=True):
        actual = lecam_loss(real.mean(), fake.mean(), average_real, average_fake)
        assert_close(actual, expected, rtol=1e-4, atol=1e-7, what="LeCam")


@for_each(holding(LOSSES, "params_resnet/init_conv/kernel"))
def test_perceptual_loss(case: Case):
    flax, stats = case.under("params_resnet/"), case.under("params_resnet_stats/")
    stages = sorted({name.split("/")[0] for name in flax if name.startswith("stage")})
    blocks = tuple(len({n.split("/")[1] for n in flax if n.startswith(f"{stage}/")}) for stage in stages)
    config = ResNetConfig(blocks, flax["init_conv/kernel"].shape[-1], len(flax["head/bias"]), flavor="released")
    network = ResNet(config)
    missing = network.load_state_dict(resnet_state(flax, stats), strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)

    real, fake = (rearrange(case.tensors[f"perceptual/{name}"], "n h w c -> n c 1 h w") for name in ("real", "fake"))
    for compare in ("logits", "features"):
        loss = PerceptualLoss(network, compare).train()(real, fake)
        assert_close(loss, case.tensors[f"perceptual/loss_{compare}"].squeeze(), rtol=1e-4, what=compare)


@for_each(CASES, "*vqgan_train_steps*")
def test_adversarial_training_steps(case: Case):
    info, batches = case.info["config"], case.tensors["batches"]
    tokenizer = magvit_flax.load_tokenizer(case.under("params_g/"), stage1_tokenizer_config(info["vqvae"]))
    described = info["discriminator"]
    t, h, w = batches.shape[2:5]
    shape = DiscriminatorConfig(described["filters"], tuple(described["channel_multipliers"]), (t, h, w))
    discriminator = magvit_flax.load_discriminator(case.under("params_d/"), shape)
    settings = renamed(info["vqgan"], ADVERSARIAL_KEYS) | {"lecam_weight": info["lecam_weight"]}
    objective = AdversarialLoss(tokenizer, discriminator, AdversarialConfig(shape, **settings))
    start = case.info["lecam_start"]
    objective.average_real.fill_(start["real"])
    objective.average_fake.fill_(start["fake"])
    layouts = {
        "g": (tokenizer, magvit_flax.tokenizer_layout(tokenizer.config)),
        "d": (discriminator, magvit_flax.discriminator_layout(shape)),
    }
    rates, adam = info["lr_configs"], info["optimizer"]
    optimizer = make_optimizer(objective, OptimConfig(adam["lr"], adam["beta1"], adam["beta2"]))
    ema = make_ema(tokenizer, info["polyak_decay"])
    assert ema is not None
    for step, batch in enumerate(batches):
        rate = adam["lr"] * learning_rate_factor(step, rates["warmup_steps"], rates["steps_per_cycle"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss, terms = objective.losses(channels_first(batch) * 2 - 1)
        loss.backward()
        objective.updated()
        check_metrics(case, step, terms, objective)
        for player, (network, layout) in layouts.items():
            check_gradients(case, step, player, network, layout)
        optimizer.step()
        ema.update_parameters(tokenizer)
    averaged = {"ema": (ema.module, layouts["g"][1])}
    for player, (network, layout) in {**layouts, **averaged}.items():
        flax = magvit_flax.to_flax(network.state_dict(), layout)
        for name, expected in case.under(f"after3/{player}/").items():
            far = (flax[name] - expected).abs() > 3e-5
            assert_close(flax[name], expected, atol=2e-4, what=f"{player} {name}")
            # Entries with a numerically zero gradient may go either way, as Adam without beta1 divides by its size.
            assert far.float().mean() < 0.02, f"{player} {name}"


def check_metrics(case: Case, step: int, terms: dict[str, Tensor], objective: AdversarialLoss) -> None:
    quantizer = sum(terms[name] for name in ("commitment", "codebook", "entropy"))
    discriminator = sum(terms[name] for name in ("discriminator", "r1", "lecam"))
    measured = {
        "reconstruction_loss": terms["reconstruction"],
        "quantizer_loss": quantizer,
        "g_adversarial_loss": terms["generator"],
        "g_loss": terms["reconstruction"] + quantizer + terms["generator"],
        "d_adversarial_loss": terms["discriminator"],
        "grad_penalty": terms["r1"],
        "lecam_loss": terms["lecam"],
        "d_loss": discriminator,
        "lecam_ema_real": objective.average_real,
        "lecam_ema_fake": objective.average_fake,
    }
    for name, expected in case.under("metrics/").items():
        if name in measured:
            assert_close(measured[name], expected[step], rtol=5e-4, atol=1e-7, what=f"{name} step {step}")


def check_gradients(case: Case, step: int, player: str, network: torch.nn.Module, layout: list) -> None:
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    flax = magvit_flax.to_flax(gradients, layout)
    for name, expected in case.under(f"step{step}/grad_{player}/").items():
        atol = 1e-5 if player == "d" else 0.03 * float(expected.abs().max())
        assert_close(flax[name], expected, atol=atol, what=f"step {step} {player} {name}")
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    expected = case.tensors.get(f"step{step}/grad_norm_{player}")
    if expected is not None:
        assert_close(norm, expected.squeeze(), rtol=2e-2, what=f"step {step} norm of {player}")


@for_each(CASES, "*misc*")
def test_inflation(case: Case):
    kernels = {
        name.removeprefix("kernel"): k for name, k in case.under("inflate/").items() if name.startswith("kernel")
    }
    for method in ("central", "average"):
        for name, expected in case.under(f"inflate/{method}/kernel").items():
            depth, rest = name.split("x", 1)
            # The 1x1 kernel is not stored where it equals a corner of the larger one.
            kernel = kernels.get(rest, next(iter(kernels.values()))[:1, :1])
            ours = inflate_kernel(rearrange(kernel, "h w i o -> o i 1 h w"), int(depth), method)
            assert_close(rearrange(ours, "o i t h w -> t h w i o"), expected, what=f"{method} {name}")
