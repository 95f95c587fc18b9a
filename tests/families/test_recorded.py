"""Recorded steps give what the plain networks give. Without a GPU, a recording is replayed on its own inputs."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_far
import tiny_magi
import tiny_nova
from mutoscope.errors import UserError
from mutoscope.families.recorded import RecordedMagvit, RecordedMagvitAR, RecordedPAR
from mutoscope.layers import compiled
from mutoscope.layers.compiled import Compiler
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
    assert len(captured.steps.recorded) == 1  # both passes of guidance, all tasks and all classes


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


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled steps without a compiler: the traced operations themselves."""
    monkeypatch.setattr(compiled, "_loaded", lambda graph, inputs: graph)


CALLS: dict[str, dict[str, Any]] = {
    "magvit": {"class_label": 1, "guidance_scale": 2.0},
    "par": {"class_label": 1, "guidance_scale": 2.0},
    "magi": {"class_label": 1, "num_frames": 8, "guidance_scale": 2.0},
    "magi-history": {"class_label": 1, "num_frames": 8, "guidance_scale": 2.0, "guidance_by": "history"},
    "magi-sliding": {"class_label": 1, "num_frames": 9, "window_mode": "sliding", "eta": 0.5},
    "magi-growing": {"class_label": 1, "num_frames": 7, "window_mode": "growing"},
    "magi-rolling": {"class_label": 1, "num_frames": 9, "window_mode": "rolling"},
    "far": {"class_label": 1, "num_frames": 7, "guidance_scale": 2.0, "window": 5},
    "far-long": {"class_label": 1, "num_frames": 7},
    "nova": {"class_label": 1, "num_frames": 4},
    "nova-renorm": {"class_label": 1, "num_frames": 2, "guidance_renorm": 0.5},
}


@pytest.mark.parametrize("case", CALLS)
@torch.inference_mode()
def test_a_compiled_pipeline_generates_the_same_clips_and_compiles_nothing_again(case: str, interpreted: None):
    pipeline, again, counted = pipelines()[case], pipelines()[case], [0.0]
    request = pipeline.prepare(seed=1, **CALLS[case])
    (latents,) = pipeline._sample(request, lambda event: None)
    recorded = Steps(Compiler(counted.append))
    again.family.record_steps(recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            (found,) = again._sample(again.prepare(seed=1, **CALLS[case]), lambda event: None)
            torch.testing.assert_close(found, latents, atol=2e-4, rtol=1e-3)
            number = len(counted)
            counted.append(0.0)  # a second call adds this one alone
    assert len(counted) == number + 1 and len(recorded.recorded) + 3 == len(counted)


@torch.inference_mode()
def test_compiled_streams_of_one_model_do_not_disturb_each_other(interpreted: None):
    """Each stream has memory of its own, unlike with CUDA graphs."""
    for case in ("magi", "magi-rolling", "far", "par"):
        plain, pipeline = pipelines()[case], pipelines()[case]
        pipeline.family.record_steps(Steps(Compiler()))
        calls = [{**CALLS[case], "seed": seed} for seed in (1, 2)]
        expected = [plain.generate(**call).clips[0].frames for call in calls]
        streams = [pipeline.stream(**call) for call in calls]
        found = [np.stack(frames) for frames in zip(*zip(*streams, strict=True), strict=True)]
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize("case", ["magi", "magi-rolling", "far"])
@torch.inference_mode()
def test_after_a_warm_up_a_stream_compiles_nothing(case: str, interpreted: None):
    plain, counted = pipelines()[case], list[float]()
    pipeline = VideoPipeline(plain.tokenizer, plain.model, plain.index, compile=True, on_compiled=counted.append)
    pipeline.warm_up()
    before, stream = len(counted), pipeline.stream(num_frames=None)
    for frame in range(12):
        next(stream)
        if frame == 6:
            stream.change(class_label=1)
    assert len(counted) == before > 0


def test_other_families_and_processors_are_refused():
    with pytest.raises(UserError, match="on a CUDA GPU, this is cpu"):
        VideoPipeline(tiny_image_tokenizer(), tiny_par(), tiny_par_index(), capture=True)
    model = tiny_magi.tiny_magi()
    with pytest.raises(UserError, match="of MAGI models cannot be captured"):
        VideoPipeline(tiny_magi.tiny_vae(), model, tiny_magi.tiny_index(model), capture=True)


def pipelines() -> dict[str, VideoPipeline]:
    magi = tiny_magi.tiny_magi()
    relative = tiny_magi.tiny_magi(time_positions="relative", keeps_first=True, window=3)
    rolling = {**tiny_magi.SAMPLING, "window_mode": "rolling"}
    far, long = tiny_far.tiny_far(), tiny_far.tiny_far(**tiny_far.LONG)
    nova, named = tiny_nova.tiny_nova(text_size=None, num_classes=2), {"tasks": ("class-conditional",)}
    of_magi = VideoPipeline(tiny_magi.tiny_vae(), magi, tiny_magi.tiny_index(magi))
    of_nova = VideoPipeline(tiny_nova.tiny_autoencoder(), nova, tiny_nova.tiny_nova_index(**named))
    return {
        "magvit": VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index()),
        "par": VideoPipeline(tiny_image_tokenizer(), tiny_par(), tiny_par_index()),
        **dict.fromkeys(("magi", "magi-history", "magi-sliding", "magi-growing"), of_magi),
        "magi-rolling": VideoPipeline(tiny_magi.tiny_vae(), relative, tiny_magi.tiny_index(relative, sampling=rolling)),
        "far": VideoPipeline(tiny_magi.tiny_vae(), far, tiny_far.tiny_index(far)),
        "far-long": VideoPipeline(tiny_magi.tiny_vae(), long, tiny_far.tiny_index(long)),
        **dict.fromkeys(("nova", "nova-renorm"), of_nova),
    }


def labels(seed: int, device: str) -> Tensor:
    return torch.tensor([seed, 4 - seed], device=device)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def condition(model: PAR, label: Tensor) -> PrefixCondition:
    names = (*label.tolist(), 5, 5)
    return PrefixCondition(model.class_prefix(label, 2), model.class_prefix(None, 2), labels=names)
