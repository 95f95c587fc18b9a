"""Recorded steps give what the plain networks give. Without a GPU, a recording is replayed on its own inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_magi
from mutoscope.errors import UserError
from mutoscope.families.recorded import RecordedMagvit, RecordedMagvitAR, RecordedPAR
from mutoscope.layers.cuda_graph import CUDAGraphs
from mutoscope.layers.recorded import RecordedStep, Step, Steps
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.models.magvit.baselines import MagvitAR, MagvitARConfig
from mutoscope.models.par import PAR, PARConfig
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.autoregressive import AutoregressiveSampler, TokenCondition
from mutoscope.sampling.base import last_of
from mutoscope.sampling.masked import MaskedCondition, MaskedSampler, MaskedSamplerConfig
from mutoscope.sampling.parallel_ar import ParallelARSampler, ParallelARSamplerConfig, PrefillMemo, PrefixCondition
from tiny_models import tiny_image_tokenizer, tiny_index, tiny_model, tiny_par, tiny_par_index, tiny_tokenizer

SHAPE, TASK = (2, 4, 4), "class-conditional"
ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


class Replayed:
    """As a CUDA graph: only the contents of the first call's inputs change, and the result is overwritten."""

    def __init__(self, function: Step, *examples: Tensor) -> None:
        self.function, self.arguments = function, [example.clone() for example in examples]
        self.result = function(*self.arguments).clone()

    def __call__(self, *values: Tensor, memory: Sequence[Tensor] = ()) -> Tensor:
        for argument, value in zip(self.arguments, values, strict=True):
            assert argument.shape == value.shape
            argument.copy_(value)
        return self.result.copy_(self.function(*self.arguments))


class Replays:
    """Records steps as `Replayed`."""

    holds_memory = True

    def __call__(self, function: Step, *examples: Tensor, memory: Sequence[Tensor]) -> RecordedStep:
        return Replayed(function, *examples)


RECORD = {"cpu": Replays, "cuda": CUDAGraphs}


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.inference_mode()
def test_a_captured_magvit_decodes_the_same_tokens(device: str, guidance: float):
    torch.manual_seed(0)
    model = (
        Magvit(MagvitConfig(2, 32, 2, 64, 24, 5, latent_shape=SHAPE, tasks=("class-conditional",))).to(device).eval()
    )
    sampler = MaskedSampler(MaskedSamplerConfig(num_decoding_steps=4, guidance_scale=guidance))
    captured = RecordedMagvit(model, Steps(RECORD[device]()))
    for seed in range(2):  # the second clip replays what the first one recorded
        tokens = [
            last_of(
                sampler.sample(
                    network,
                    MaskedCondition("class-conditional", len(labels(seed, device)), labels(seed, device)),
                    seeded(seed),
                )
            ).proposal
            for network in (model, captured)
        ]
        assert torch.equal(*tokens)
    assert len(captured.steps.recorded) == (1 if guidance == 1 else 2)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@torch.inference_mode()
def test_a_captured_autoregressive_transformer_draws_the_same_tokens(device: str):
    torch.manual_seed(0)
    model = MagvitAR(MagvitARConfig(2, 32, 2, 64, 24, 5, latent_shape=SHAPE)).to(device).eval()
    captured = RecordedMagvitAR(model, Steps(RECORD[device]()))
    for seed in range(2):
        tokens = [
            list(AutoregressiveSampler().sample(network, TokenCondition(2, labels(seed, device)), seeded(seed)))[
                -1
            ].proposal
            for network in (model, captured)
        ]
        assert torch.equal(*tokens)
    assert len(captured.steps.recorded) == 1


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("num_parallel", [1, 4])
@pytest.mark.parametrize("interval", [None, 2])
@torch.inference_mode()
def test_a_captured_par_draws_the_same_tokens(device: str, num_parallel: int, interval: int | None):
    torch.manual_seed(0)
    model = PAR(PARConfig(2, 32, 2, codebook_size=24, latent_shape=SHAPE, num_parallel=num_parallel, num_classes=5))
    torch.nn.init.normal_(model.output.weight, std=0.5)
    model = model.to(device).eval()
    sampler = ParallelARSampler(ParallelARSamplerConfig(guidance_scale=2.0, guidance_interval=interval))
    captured, memo = RecordedPAR(model, Steps(RECORD[device]())), PrefillMemo()
    for seed in range(3):
        given = condition(model, labels(seed, device))
        plain = list(sampler.sample(model, given, seeded(seed)))[-1].proposal
        again = list(sampler.sample(captured, given, seeded(seed), static=True, memo=memo))[-1].proposal
        assert torch.equal(plain, again)
    phases = 1 if num_parallel == 1 else 3
    assert len(captured.states) == 1 and phases <= len(captured.steps.recorded) <= 3 * phases


@pytest.mark.parametrize("options", [{"class_label": 1}, {"class_label": 0, "guidance_scale": 2.0}])
@pytest.mark.parametrize("family", ["magvit", "par"])
def test_a_captured_pipeline_makes_the_same_clips(family: str, options: dict[str, Any]):
    pipeline = pipelines()[family]
    expected = [pipeline.generate(seed=seed, **options).clips[0].frames for seed in range(2)]
    pipeline.family.record_steps(Steps(Replays()))
    for seed in range(2):
        assert (pipeline.generate(seed=seed, **options).clips[0].frames == expected[seed]).all()


def test_a_stream_may_follow_a_call_and_a_call_a_stream():
    pipeline = pipelines()["par"]
    expected = pipeline.generate(class_label=1, seed=3).clips[0].frames
    pipeline.family.record_steps(Steps(Replays()))
    for _ in range(2):
        assert (pipeline.generate(class_label=1, seed=3).clips[0].frames == expected).all()
        assert (np.stack(list(pipeline.stream(class_label=1, seed=3))) == expected).all()


@torch.inference_mode()
def test_a_recording_belongs_to_its_memory():
    """Guidance that ends leaves half of a larger state, whose shapes are those of a state without guidance."""
    torch.manual_seed(0)
    model = PAR(PARConfig(2, 32, 2, codebook_size=24, latent_shape=SHAPE, num_parallel=4, num_classes=5)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    captured = RecordedPAR(model, Steps(Replays()))
    for scale, interval in ((2.0, 2), (1.0, None), (2.0, 2)):
        sampler = ParallelARSampler(ParallelARSamplerConfig(guidance_scale=scale, guidance_interval=interval))
        given = condition(model, labels(1, "cpu"))
        plain = list(sampler.sample(model, given, seeded(0)))[-1].proposal
        assert torch.equal(plain, list(sampler.sample(captured, given, seeded(0), static=True))[-1].proposal)


def test_other_families_and_processors_are_refused():
    with pytest.raises(UserError, match="on a CUDA GPU, this is cpu"):
        VideoPipeline(tiny_image_tokenizer(), tiny_par(), tiny_par_index(), capture=True)
    model = tiny_magi.tiny_magi()
    with pytest.raises(UserError, match="of MAGI models cannot be captured"):
        VideoPipeline(tiny_magi.tiny_vae(), model, tiny_magi.tiny_index(model), capture=True)


def pipelines() -> dict[str, VideoPipeline]:
    return {
        "magvit": VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index()),
        "par": VideoPipeline(tiny_image_tokenizer(), tiny_par(), tiny_par_index()),
    }


def labels(seed: int, device: str) -> Tensor:
    return torch.tensor([seed, 4 - seed], device=device)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def condition(model: PAR, label: Tensor) -> PrefixCondition:
    names = (*label.tolist(), 5, 5)
    return PrefixCondition(model.class_prefix(label, 2), model.class_prefix(None, 2), labels=names)
