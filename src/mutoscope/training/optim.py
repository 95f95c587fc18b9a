"""Optimiser, learning-rate schedule, gradient clipping and averaged weights."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mutoscope.errors import UserError
from mutoscope.training.config import OptimConfig
from mutoscope.training.muon import Muon

DECAYED_LAYERS = (nn.Linear, nn.MultiheadAttention)
NORMS = (nn.LayerNorm, nn.GroupNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def decayed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of dense and attention layers, called kernels in the papers' code.

    A matrix that is also an embedding (tied output layer) counts as an embedding and is excluded.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, DECAYED_LAYERS):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim >= 2 and id(parameter) not in embeddings:
                    found[id(parameter)] = parameter
    return list(found.values())


def embedding_tables(model: nn.Module) -> list[nn.Parameter]:
    """The tables of every embedding."""
    found = (module.weight for module in model.modules() if isinstance(module, nn.Embedding))
    return list({id(table): table for table in found if isinstance(table, nn.Parameter)}.values())


def all_but_norms(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter outside layer and group norms."""
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    return [p for p in model.parameters() if id(p) not in norms]


def convolution_kernels(model: nn.Module) -> list[nn.Parameter]:
    """The kernels of every convolution."""
    found = (module.weight for module in model.modules() if isinstance(module, CONVOLUTIONS))
    return [weight for weight in found if isinstance(weight, nn.Parameter)]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW with decoupled decay on `decayed_parameters` (and embeddings with `decay_embeddings`); Adam if it is 0.

    With `muon_learning_rate` those matrices and all convolution kernels get Muon's updates instead.
    """
    muon = config.muon_learning_rate is not None
    matrices = decayed_parameters(model) if config.weight_decay or muon else []
    matrices += convolution_kernels(model) if muon else []
    ids = {id(p) for p in matrices}
    tables = embedding_tables(model) if config.weight_decay and config.decay_embeddings else []
    ids |= {id(p) for p in tables}
    if config.decay_tensors:
        named = [(f".{name}", p) for name, p in model.named_parameters()]
        matrices = [p for name, p in named if p.ndim > 1 and ".head." not in name]
        ids = {id(p) for p in matrices}
    if config.decay_all:
        matrices = [p for p in all_but_norms(model) if p.requires_grad]
        ids = {id(p) for p in matrices}
    matrices = [p for p in matrices if p.requires_grad]
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups: list[dict] = [{"params": rest, "weight_decay": 0.0}]
    if tables:
        groups.append({"params": tables, "weight_decay": config.weight_decay})
    if matrices:
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
    betas = (config.beta1, config.beta2)
    if muon and matrices:
        groups[-1] |= {"lr": config.muon_learning_rate, "orthogonal": True}
    kind = Muon if muon else torch.optim.AdamW
    return kind(groups, lr=config.peak_learning_rate, betas=betas, eps=config.eps, weight_decay=0.0)


def learning_rate_factor(step: int, warmup_steps: int, num_steps: int) -> float:
    """lr(s) / peak = min(1, s/W) · max(0, ½(1 + cos(π · frac(max(0, s−W)/(S−W))))), with s counted from 0.

    The first update therefore has learning rate 0 whenever W > 0 (arXiv 2212.05199, released code).
    """
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    progress = max(0, step - warmup_steps) / (num_steps - warmup_steps)
    return warmup * max(0.0, 0.5 * (1.0 + math.cos(math.pi * math.fmod(progress, 1.0))))


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int) -> LambdaLR:
    """One `step()` per update. Raises UserError when the warm-up does not fit into the run."""
    check_warmup(config, num_steps)
    return LambdaLR(optimizer, schedule(config, num_steps))


def check_warmup(config: OptimConfig, num_steps: int) -> None:
    """Raises UserError when the warm-up does not fit into the run."""
    if config.warmup_steps >= num_steps:
        raise UserError(
            f"optim.warmup_steps is {config.warmup_steps}; it must be less than the {num_steps} updates of "
            "loop.num_steps: change one of them."
        )


def schedule(config: OptimConfig, num_steps: int) -> Callable[[int], float]:
    """`learning_rate_factor` with the run's numbers filled in; a constant rate ends with the warm-up."""
    if config.schedule == "constant":
        return lambda step: min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    return lambda step: learning_rate_factor(step, config.warmup_steps, num_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, step: int) -> None:
    """Applies the schedule of this run at `step`, whatever schedule the restored optimiser was saved under."""
    for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)


class WarmedAverage(AveragedModel):
    """Averaged weights whose decay rises from 0.1 towards `decay` (see `warmed_decay`).

    With a constant decay of 0.998, the average consists of the random initial weights to 82 % after 100 updates.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        done = max(0, int(self.n_averaged) - 1)  # the first call copies the initial weights
        self.multi_avg_fn = get_ema_multi_avg_fn(warmed_decay(self.decay, done))
        super().update_parameters(model)


def warmed_decay(decay: float, done: int) -> float:
    """min(decay, (1 + t) / (10 + t)) for the step of an average that follows t = `done` earlier ones.

    The rule of TensorFlow's `tf.train.ExponentialMovingAverage` (`num_updates`) and of diffusers' `EMAModel`.
    """
    return min(decay, (1 + done) / (10 + done))


def make_ema(model: nn.Module, decay: float | None, warmup: bool = False) -> AveragedModel | None:
    """Averaged copy of the weights, already updated once so that it starts from the initial weights.

    warmup: raise the decay with the number of steps (`warmed_decay`), which is part of the average's state.
    """
    if decay is None:
        return None
    ema = WarmedAverage(model, decay) if warmup else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ema.update_parameters(model)
    return ema


def clip_gradients(
    model: nn.Module, clip_norm: float | None, groups: Sequence[nn.Module] | None = None
) -> torch.Tensor:
    """Scales all gradients to a global norm of at most `clip_norm`; returns the norm before clipping.

    groups: networks clipped separately, such as a tokenizer and its discriminator; the norm is that of the first, and
    NaN where that of another one is not finite.
    """
    if clip_norm is not None:
        norms = torch.stack([nn.utils.clip_grad_norm_(part.parameters(), clip_norm) for part in groups or [model]])
        return torch.where(norms.isfinite().all(), norms[0], torch.nan)
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
