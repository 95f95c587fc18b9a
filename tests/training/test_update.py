"""A batch has one loss, however it is split; across real processes in `test_distributed.py`."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.layers.draws import rand
from mutoscope.tokenizers.quantizers import LookupFreeQuantizer, VectorQuantizer, VectorQuantizerConfig
from mutoscope.training.distributed import Process
from mutoscope.training.tracking import read_log
from mutoscope.training.update import CORRUPTION, LOSS, Share, SplitMeans, generators, with_value
from training.split_runs import LOOP, ONE_MICRO_BATCH, RUNS, STEPS, main

CPU = torch.device("cpu")
ALONE = Process(0, 1, CPU)


@pytest.mark.parametrize("name", RUNS)
def test_four_micro_batches_train_like_one_batch(tmp_path: Path, name: str):
    for accumulation in (1, 4):
        main(tmp_path / str(accumulation), accumulation, names=[name])
    for folder in (tmp_path / "1").iterdir():
        whole, split = (
            [line["loss"] for line in read_log(tmp_path / parts / folder.name / "log.jsonl")] for parts in ("1", "4")
        )
        assert len(whole) == STEPS
        if folder.name in ONE_MICRO_BATCH:
            assert split == pytest.approx(whole, rel=0.05) and split != pytest.approx(whole, abs=1e-5)
        else:
            assert split == pytest.approx(whole, abs=1e-5)


def drawn(*key: int, clips: range) -> Tensor:
    seed, step, stream = key
    return rand(generators(seed, step, stream, clips, CPU), len(clips), 3)


def test_draws_depend_on_seed_step_stream_and_clip():
    first = drawn(0, 5, LOSS, clips=range(4))
    assert torch.equal(first, drawn(0, 5, LOSS, clips=range(4)))
    others = [
        drawn(1, 5, LOSS, clips=range(4)),
        drawn(0, 6, LOSS, clips=range(4)),
        drawn(0, 5, CORRUPTION, clips=range(4)),
    ]
    assert len({tuple(row.tolist()) for x in [first, *others] for row in x}) == 16


@given(st.integers(0, 2**40), st.integers(0, 10_000), st.lists(st.integers(0, 12), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_draws_of_a_clip_and_of_the_batch_are_those_of_every_split(seed: int, step: int, cuts: list[int]):
    parts = [range(a, b) for a, b in itertools.pairwise(sorted({0, 12, *cuts}))]
    apart = [generators(seed, step, LOSS, part, CPU) for part in parts]
    assert torch.equal(torch.cat([rand(d, len(d.clips), 3) for d in apart]), drawn(seed, step, LOSS, clips=range(12)))
    assert len({float(rand(d.batch)) for d in apart}) == 1


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_the_parts_of_all_processes_are_the_batch(ranks: int, accumulation: int, size: int):
    loop = replace(LOOP, batch_size=ranks * accumulation * size, accumulation=accumulation)
    shares = [Share(loop, Process(rank, ranks, CPU)) for rank in range(ranks)]
    clips = [clip for share in shares for part in range(accumulation) for clip in share.clips(part)]
    assert clips == list(range(loop.batch_size)) == [clip for share in shares for clip in share.clips()]


def test_a_mean_has_the_value_of_the_batch_and_the_gradient_of_its_own_part():
    own = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = with_value(own * 3, torch.tensor([10.0, 20.0]))
    mean.sum().backward()
    assert mean.tolist() == [10, 20] and own.grad is not None and own.grad.tolist() == [3, 3]


def entropies(quantizer: torch.nn.Module, latents: Tensor, parts: int) -> tuple[float, Tensor]:
    """Mean entropy term of the parts, and its gradient for the latents."""
    latents, means = latents.clone().requires_grad_(), SplitMeans(ALONE)
    for part in latents.chunk(parts):
        quantizer(part.detach(), None, means.measure())
    means.finish()
    losses = [quantizer(part, None, means.value())[2]["entropy"] for part in latents.chunk(parts)]
    total = torch.stack(losses).mean()
    total.backward()
    assert latents.grad is not None
    return total.item(), latents.grad


@pytest.mark.parametrize("kind", ["softmax", "argmax", "lookup-free"])
def test_the_entropy_of_a_split_batch_and_its_gradient_are_those_of_the_batch(kind: str):
    torch.manual_seed(0)
    latents = torch.randn(8, 4, 1, 3, 3)
    config = VectorQuantizerConfig(16, 4, entropy_cost=1.0, entropy_temperature=0.5, entropy_kind=kind)  # type: ignore[arg-type]
    quantizer = LookupFreeQuantizer(4, entropy_temperature=1.0) if kind == "lookup-free" else VectorQuantizer(config)
    value, gradient = entropies(quantizer, latents, 1)
    alone = torch.stack([quantizer(part)[2]["entropy"] for part in latents.chunk(4)]).mean().item()
    assert abs(alone - value) > 1e-3  # each part by itself is another loss
    for parts in (2, 4, 8):
        split, split_gradient = entropies(quantizer, latents, parts)
        assert split == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(split_gradient, gradient, atol=1e-7, rtol=1e-4)
