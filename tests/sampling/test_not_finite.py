"""No sampler draws from numbers that are not finite, and every message names the stage and the dtype."""

import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from mutoscope.errors import UserError
from mutoscope.models.magi import MAGI, FrameConditions
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig
from mutoscope.sampling.autoregressive import AutoregressiveSampler, TokenCondition
from mutoscope.sampling.base import last_of
from mutoscope.sampling.categorical import drawable
from mutoscope.sampling.frame_ar import FrameARSampler, FrameARSamplerConfig
from mutoscope.sampling.frame_history import StreamCondition
from mutoscope.sampling.frame_stream import FrameStreamSampler, FrameStreamSamplerConfig
from mutoscope.sampling.masked import MaskedCondition, MaskedSampler, MaskedSamplerConfig
from mutoscope.sampling.parallel_ar import ParallelARSampler, ParallelARSamplerConfig, PrefixCondition
from tiny_magi import tiny_magi
from tiny_models import tiny_model, tiny_par
from tiny_nova import condition, tiny_nova

BAD = [math.nan, math.inf]


Network = TypeVar("Network", bound=nn.Module)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def damaged(network: Network, name: str, value: float) -> Network:
    """The network with one weight, or one number of its bias, that is not finite."""
    with torch.no_grad():
        network.get_parameter(name).view(-1)[0] = value
    return network


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_masked_decoding_refuses_bad_logits(bad: float, scale: float):
    model = damaged(tiny_model(), "head.dense.bias", bad)
    sampler = MaskedSampler(MaskedSamplerConfig(guidance_scale=scale))
    with pytest.raises(UserError, match=r"^The model's logits hold .* float32"):
        last_of(sampler.sample(model, MaskedCondition("class-conditional"), seeded()))


@pytest.mark.parametrize("bad", BAD)
def test_token_by_token_decoding_refuses_bad_logits(bad: float):
    torch.manual_seed(0)
    model = MagvitAR(MagvitARConfig(1, 16, 2, 24, 12, latent_shape=(1, 2, 2))).eval()
    with pytest.raises(UserError, match="^The model's logits hold"):
        last_of(AutoregressiveSampler().sample(damaged(model, "norm.bias", bad), TokenCondition(2), seeded()))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_parallel_decoding_refuses_bad_logits(bad: float, scale: float):
    model = damaged(tiny_par(), "output.weight", bad)
    prefix = PrefixCondition(model.class_prefix(torch.tensor([0]), 1), model.class_prefix(None, 1))
    sampler = ParallelARSampler(ParallelARSamplerConfig(guidance_scale=scale))
    with pytest.raises(UserError, match="^The model's logits hold"):
        last_of(sampler.sample(model, prefix, seeded()))


def test_the_dtype_is_that_of_the_network_not_of_the_draw():
    model = damaged(tiny_par(), "output.weight", math.nan).bfloat16()
    prefix = PrefixCondition(model.class_prefix(torch.tensor([0]), 1))
    with pytest.raises(UserError, match="computed in bfloat16: use --dtype float32"):
        last_of(ParallelARSampler().sample(model, prefix, seeded()))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("renorm", [1.0, 0.5])
def test_set_by_set_decoding_names_the_frame_of_bad_latents(bad: float, renorm: float):
    model = damaged(tiny_nova(), "head.output.bias", bad)
    sampler = FrameARSampler(FrameARSamplerConfig(3, 4, guidance_renorm=renorm))
    with pytest.raises(UserError, match="^The latents of frame 0 hold .* float32"):
        last_of(sampler.sample(model, condition(model, 1), seeded()))


def streamed(model: MAGI, **options: Any) -> Tensor:
    at = lambda frame: FrameConditions(torch.ones(1, dtype=torch.int64))  # noqa: E731
    sampler = FrameStreamSampler(FrameStreamSamplerConfig(3, 4, **options))
    return last_of(sampler.sample(model, StreamCondition(at, 1, 3), seeded())).proposal


@pytest.mark.parametrize("bad", [*BAD, -math.inf])
@pytest.mark.parametrize("options", [{}, {"sample_range": 3.0}, {"sample_range": 3.0, "eta": 0.0}])
def test_streams_name_the_frame_of_bad_latents(bad: float, options: dict):
    with pytest.raises(UserError, match="^The latents of frame 0 hold"):
        streamed(damaged(tiny_magi(), "head.output.bias", bad), **options)


@pytest.mark.parametrize("selection", ["random", "confidence"])
def test_streams_of_codes_name_the_frame_of_bad_logits(selection: str):
    model = tiny_magi(codebook_parts=(4, 4), latent_channels=1, patch_size=1)
    with pytest.raises(UserError, match="^The model's logits for frame 0 hold"):
        streamed(damaged(model, "head.bias", math.nan), selection=selection)


def test_a_later_frame_is_named_by_its_own_number(monkeypatch: pytest.MonkeyPatch):
    model, restore = tiny_magi(), tiny_magi().restore

    def breaks(*arguments: Any) -> Tensor:
        return restore(*arguments) + (math.nan if arguments[4] == 2 else 0.0)

    monkeypatch.setattr(model, "restore", breaks)
    with pytest.raises(UserError, match="^The latents of frame 2 hold"):
        streamed(model)


def test_minus_infinity_excludes_entries_but_never_all_of_a_row():
    logits = torch.tensor([[0.0, -math.inf], [-math.inf, 1.0]])
    assert drawable(logits, torch.float32) is logits
    for bad in ([[0.0, 0.0], [-math.inf, -math.inf]], [[0.0, math.inf]], [[0.0, math.nan]]):
        with pytest.raises(UserError, match="float16, which ends at 65504"):
            drawable(torch.tensor(bad), torch.float16)
    large = torch.full((2, 2), 3e38)
    assert drawable(large, torch.float32) is large
