import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.models.magvit import MagvitBatch, MagvitConfig
from mutoscope.models.magvit.baselines import (
    ConditionedPrefixMagvit,
    MagvitAR,
    MagvitARBatch,
    MagvitARConfig,
    PrefixMagvit,
)
from mutoscope.models.magvit.config import PaperSize

AR = MagvitARConfig(2, 16, 2, 24, codebook_size=11, num_classes=3, latent_shape=(2, 2, 3), dropout=0.0)
MASKED = MagvitConfig(2, 16, 2, 24, codebook_size=11, num_classes=3, latent_shape=(2, 2, 3), dropout=0.0)


def autoregressive(**changes) -> MagvitAR:
    torch.manual_seed(0)
    return MagvitAR(replace(AR, **changes)).eval()


def tokens(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (batch, 2, 2, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size, count", [("B", 87_538_535), ("L", 305_571_943)])
def test_published_sizes_have_the_published_parameter_counts(size: PaperSize, count: int):
    with torch.device("meta"):
        model = MagvitAR(MagvitARConfig.paper(size, num_classes=101))
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.config.max_length == 1025


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 12), seed=st.integers(0, 9))
def test_the_future_cannot_leak(position: int, seed: int):
    model = autoregressive()
    ids = torch.cat([model.prefix(torch.tensor([1, 2]), None, 2), tokens(seed=seed).flatten(1)], 1)[:, :-1]
    changed = ids.clone()
    changed[:, position] = (changed[:, position] + 3) % 11
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.allclose(before[:, position:], after[:, position:])


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 12)))
def test_cached_logits_equal_uncached_ones_however_the_sequence_is_cut(cuts: set[int]):
    model = autoregressive()
    ids = torch.cat([model.prefix(torch.tensor([0, 2]), None, 2), tokens().flatten(1)], 1)[:, :-1]
    cache, pieces, edges = model.new_cache(2), [], [0, *sorted(cuts), 13]
    with torch.no_grad():
        for start, end in itertools.pairwise(edges):
            pieces.append(model(ids[:, start:end], cache))
        assert torch.allclose(torch.cat(pieces, 1), model(ids), atol=1e-5)


def test_a_condition_precedes_the_clip_and_changes_it():
    model = autoregressive(condition_frames=1)
    prefix = model.prefix(None, tokens(), 2)
    assert prefix.shape == (2, 2 + 6 + 1) and model.config.max_length == 9 + 11
    assert (prefix[:, 2:8] == tokens()[:, 0].flatten(1)).all()
    with torch.no_grad():
        other = model.code_logits(model.prefix(None, tokens(seed=1), 2))
        assert not torch.allclose(model.code_logits(prefix), other)
    with pytest.raises(UserError, match="condition video"):
        model.prefix(None, None, 2)


def test_labels_select_the_class_slot_and_unknown_ones_are_refused():
    model = autoregressive()
    assert model.prefix(torch.tensor([2]), None, 1)[0].tolist() == [-1, 13]
    assert model.prefix(None, None, 1)[0].tolist() == [-1, 14]
    with pytest.raises(UserError, match="0 ... 2"):
        model.prefix(torch.tensor([7]), None, 1)


def test_a_few_updates_memorise_a_clip():
    model = autoregressive().train()
    batch: MagvitARBatch = {"tokens": tokens(), "label": torch.tensor([0, 1])}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss, parts = model.loss(batch, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert parts["accuracy"] > 0.95


def prefix_model() -> PrefixMagvit:
    torch.manual_seed(0)
    return PrefixMagvit(MASKED).eval()


def test_prefix_conditioning_has_the_length_of_the_paper_and_reads_the_context_frames_only():
    with torch.device("meta"):
        paper = PrefixMagvit(MagvitConfig.paper("Ti"))
    assert paper.position_embedding.num_embeddings == 1 + 256 + 1 + 1024
    model, hidden = prefix_model(), torch.full((2, 2, 2, 3), -1)
    condition, later = tokens(), tokens()
    later[:, 1] = (later[:, 1] + 1) % 11
    earlier = condition.clone()
    earlier[:, 0] = (earlier[:, 0] + 1) % 11
    with torch.no_grad():
        base = model.prefix_logits(hidden, condition, None)
        assert torch.equal(base, model.prefix_logits(hidden, later, None))
        assert not torch.allclose(base, model.prefix_logits(hidden, earlier, None))
        assert torch.equal(base, ConditionedPrefixMagvit(model, condition).logits(hidden, "class-conditional"))


def test_the_prefix_loss_trains_every_parameter():
    model = prefix_model().train()
    batch: MagvitBatch = {"tokens": tokens(), "condition_tokens": tokens(seed=1), "task": "frame-prediction"}
    loss, parts = model.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters()) and "accuracy" in parts
    with pytest.raises(UserError, match="one task"):
        PrefixMagvit(replace(MASKED, task_token=True, num_special_tokens=16))


def test_impossible_configurations_are_refused():
    with pytest.raises(UserError, match="multiple of num_heads"):
        replace(AR, num_heads=3)
    with pytest.raises(UserError, match="condition_frames"):
        replace(AR, condition_frames=5)
    with pytest.raises(UserError, match="no MAGVIT size"):
        MagvitARConfig.paper("XXL")  # pyright: ignore[reportArgumentType]
