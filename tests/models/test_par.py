import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.token_order import region_order
from mutoscope.meta_device import on_meta_device
from mutoscope.models.par import PAR, PARBatch, PARConfig
from mutoscope.sampling.parallel_ar import ParallelARSampler, PrefixCondition

SMALL = PARConfig(
    2, 16, 2, codebook_size=11, latent_shape=(2, 4, 4), num_parallel=4, num_classes=3, mlp_size=24,
    token_dropout=0.0, residual_dropout=0.0, mlp_dropout=0.0,
)  # fmt: skip
CAPTIONS = {"num_classes": None, "caption_size": 6, "caption_length": 5}
VARIANTS = {
    "four": {},
    "llamagen": {"num_parallel": 1},
    "sixteen": {"num_parallel": 16},
    "raster": {"order": "raster"},
    "causal-groups": {"group_attention": "causal"},
    "no-sequential-start": {"sequential_start": False},
    "grouped-queries": {"num_kv_heads": 1},
    "text": CAPTIONS,
}


def small(**changes) -> PAR:
    torch.manual_seed(0)
    model = PAR(replace(SMALL, **changes)).eval()
    with torch.no_grad():
        model.output.weight.normal_()
    return model


def sequence(model: PAR, seed: int = 0) -> Tensor:
    shape = (2, math.prod(model.latent_shape))
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def prefix_of(model: PAR) -> Tensor:
    if model.config.caption_size:
        features = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
        return model.caption_prefix(features, 2)
    return model.class_prefix(torch.tensor([0, 2]), 2)


@pytest.mark.parametrize(
    "size, n, count",
    [
        ("B", 1, 110_888_448), ("B", 4, 110_890_752), ("B", 16, 110_899_968),
        ("L", 1, 342_910_976), ("L", 4, 342_914_048), ("L", 16, 342_926_336),
        ("XL", 1, 774_699_520), ("XL", 4, 774_703_360), ("XL", 16, 774_718_720),
        ("XXL", 1, 1_410_972_672), ("XXL", 4, 1_410_977_280), ("XXL", 16, 1_410_995_712),
        ("XXXL", 1, 3_893_027_840), ("XXXL", 4, 3_893_035_520), ("XXXL", 16, 3_893_066_240),
        ("3B", 1, 3_096_659_200), ("3B", 4, 3_096_668_800), ("3B", 16, 3_096_707_200),
    ],
)  # fmt: skip
def test_published_sizes_have_the_published_parameter_counts(size: str, n: int, count: int):
    with on_meta_device():
        model = PAR(PARConfig.paper(size, num_parallel=n))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    "size, count", [("XL", 777_678_080), ("1B", 1_205_954_560), ("3B", 3_110_249_600), ("7B", 6_635_655_168)]
)
def test_published_text_models_have_the_published_parameter_counts(size: str, count: int):
    with on_meta_device():
        model = PAR(PARConfig.paper(size, num_classes=None, caption_size=2048))
    assert sum(p.numel() for p in model.parameters()) == count


@settings(max_examples=30, deadline=None)
@given(variant=st.sampled_from(sorted(VARIANTS)), position=st.integers(0, 31), seed=st.integers(0, 9))
@torch.no_grad()
def test_a_token_reaches_the_steps_after_its_own_and_nothing_else(variant: str, position: int, seed: int):
    model = small(**VARIANTS[variant])
    tokens, prefix, n = sequence(model, seed), prefix_of(model), model.num_parallel
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 3) % 11
    difference = (model(tokens, prefix) - model(changed, prefix)).abs().amax(dim=(0, 2))  # (n,)
    # The first step that may have read this token: the next one, or the next group.
    start = model.num_start
    reads = position + 1 if position < start else start + n * ((position - start) // n + 1)
    assert difference[:reads].max() == 0
    if reads < len(difference) and model.config.group_attention == "full":
        assert difference[reads : reads + n].max() > 0


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@torch.no_grad()
def test_cached_and_uncached_logits_agree(variant: str, static: bool):
    model = small(**VARIANTS[variant])
    tokens, prefix = sequence(model), prefix_of(model)
    expected = model(tokens, prefix)
    seen = []

    def forced(logits: Tensor, positions: slice) -> Tensor:
        seen.append(logits)
        return tokens[:, positions]

    *_, last = ParallelARSampler().sample(model, PrefixCondition(prefix), torch.Generator(), draw=forced, static=static)
    torch.testing.assert_close(torch.cat(seen, dim=1), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(last.tokens.flatten(1)[:, model.token_order()], tokens)


@torch.no_grad()
def test_static_steps_have_two_shapes_only(monkeypatch: pytest.MonkeyPatch):
    model, shapes = small(), set()
    advance = model.run_blocks

    def watched(x: Tensor, table: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        assert mask is not None
        shapes.add((x.shape[1], tuple(table.shape), tuple(mask.shape)))
        return advance(x, table, mask, cache)

    monkeypatch.setattr(model, "run_blocks", watched)
    sampler = ParallelARSampler()
    for _ in sampler.sample(model, PrefixCondition(prefix_of(model)), torch.Generator().manual_seed(0), static=True):
        pass
    assert {shape[0] for shape in shapes} == {1, 4} and len(shapes) == 2


@torch.no_grad()
def test_padded_captions_do_not_matter():
    model = small(**CAPTIONS)
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    features = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    other = torch.where(mask[..., None], features, features + 5)
    tokens = sequence(model)
    first, second = (model(tokens, model.caption_prefix(x, 2), prefix_mask=mask) for x in (features, other))
    assert torch.equal(first, second)
    unmasked = model(tokens, model.caption_prefix(other, 2))
    assert not torch.allclose(first[0], unmasked[0])


@torch.no_grad()
def test_larger_grids_than_trained_on_are_a_longer_table():
    model = small(num_parallel=4)
    large = (2, 8, 8)
    tokens = torch.randint(11, (1, 128), generator=torch.Generator().manual_seed(0))
    prefix = model.class_prefix(torch.tensor([1]), 1)
    assert model(tokens, prefix, large).shape == (1, 128, 11)
    assert torch.equal(model.token_order(large), region_order(large, 4))


def test_first_loss_is_the_logarithm_of_the_vocabulary_and_learning_lowers_it():
    torch.manual_seed(0)
    model = PAR(SMALL)
    batch: PARBatch = {"tokens": torch.zeros(4, 2, 4, 4, dtype=torch.int64), "label": torch.zeros(4, dtype=torch.int64)}
    loss, parts = model.loss(batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(math.log(11), rel=1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss, parts = model.loss(batch, torch.Generator().manual_seed(0))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 and parts["accuracy"] == 1


def test_labels_are_dropped_as_often_as_configured():
    model = small(condition_dropout=0.25)
    batch: PARBatch = {
        "tokens": torch.zeros(4000, 2, 4, 4, dtype=torch.int64),
        "label": torch.zeros(4000, dtype=torch.int64),
    }
    prefix = model.batch_prefix(batch, torch.Generator().manual_seed(0))
    share = (prefix == model.condition.weight[-1]).all(-1).float().mean().item()
    assert abs(share - 0.25) < 0.03


def test_samples_of_weight_zero_do_not_count():
    model, tokens = small(), sequence(small())
    logits = model(tokens, prefix_of(model))
    alone, _ = model.sequence_loss(logits[:1], tokens[:1])
    weighted, _ = model.sequence_loss(logits, tokens, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(weighted, alone)


def test_a_batch_without_its_condition_is_refused():
    tokens = torch.zeros(2, 2, 4, 4, dtype=torch.int64)
    with pytest.raises(UserError, match="needs the label"):
        small().loss({"tokens": tokens}, torch.Generator())
    with pytest.raises(UserError, match="needs the caption"):
        small(**CAPTIONS).loss({"tokens": tokens, "label": torch.zeros(2, dtype=torch.int64)}, torch.Generator())


def test_whole_branches_are_dropped_in_training_only():
    model = small(drop_path=0.5)
    tokens, prefix, generator = sequence(model), prefix_of(model), torch.Generator().manual_seed(0)
    assert model.dropout_draws(generator) is None
    torch.testing.assert_close(model(tokens, prefix), model(tokens, prefix), atol=0, rtol=0)
    draws = model.train().dropout_draws(generator)
    results = torch.stack([model(tokens, prefix, draws=draws) for _ in range(8)])
    assert (results != results[0]).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 18}, "multiple of 4 channels"),
        ({"num_parallel": 5}, "must be a square"),
        ({"num_parallel": 9}, "3x3 equal regions"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"caption_size": 6}, "one of num_classes and caption_size"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_labels_and_captions_of_the_wrong_kind_are_refused():
    with pytest.raises(UserError, match="0 … 2"):
        small().class_prefix(torch.tensor([4]), 1)
    with pytest.raises(UserError, match="without dropping"):
        small(condition_dropout=0.0).class_prefix(None, 1)
    with pytest.raises(UserError, match="shape"):
        small(**CAPTIONS).caption_prefix(torch.zeros(1, 4, 6), 1)
    with pytest.raises(UserError, match="no LlamaGen size"):
        PARConfig.paper("XS")
