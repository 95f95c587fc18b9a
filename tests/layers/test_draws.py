import pytest
import torch
import torch.nn.functional as F

from mutoscope.layers.attention import attention
from mutoscope.layers.draws import ClipGenerators, Draws, dropout, of_batch, rand, randint, randn


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(*seeds: int) -> ClipGenerators:
    return ClipGenerators([seeded(seed) for seed in seeds], seeded(99))


DRAWS = {
    "rand": lambda draws, b: rand(draws, 3 * b, 5, 7),
    "randn": lambda draws, b: randn(draws, 3 * b, 5, 7),
    "few": lambda draws, b: randn(draws, b),
    "randint": lambda draws, b: randint(draws, 1000, b, 4),
    "dropout": lambda draws, b: dropout(torch.ones(b, 40), 0.5, draws),
    "attention": lambda draws, b: attention(*torch.ones(3, 3 * b, 2, 4, 8), None, 0.5, draws),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_what_a_clip_draws_does_not_depend_on_the_clips_beside_it(draw):
    together = draw(clips(0, 1, 2, 3), 4)
    apart = torch.cat([draw(clips(0, 1), 2), draw(clips(2), 1), draw(clips(3), 1)])
    assert torch.equal(together, apart)
    rows = together.chunk(4)
    assert not any(torch.equal(rows[0], row) for row in rows[1:])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_generator_moves_on_and_the_global_one_stays(draw):
    draws, before = clips(0, 1), torch.get_rng_state()
    first, second = draw(draws, 2), draw(draws, 2)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_generator_draws_what_torch_draws():
    assert torch.equal(rand(seeded(0), 2, 3), torch.rand(2, 3, generator=seeded(0)))
    assert torch.equal(randn(seeded(0), 2, 30), torch.randn(2, 30, generator=seeded(0)))
    assert torch.equal(randint(seeded(0), 9, 2, 3), torch.randint(9, (2, 3), generator=seeded(0)))


def test_draws_of_the_whole_batch_have_a_generator_of_their_own():
    generator = seeded(0)
    assert of_batch(generator) is generator
    assert torch.equal(rand(of_batch(clips(0, 1))), rand(of_batch(clips(2))))


def test_rows_that_do_not_divide_among_the_clips_are_refused():
    with pytest.raises(ValueError):
        rand(clips(0, 1, 2), 2, 5)


@pytest.mark.parametrize("draws", [seeded(0), clips(0, 1)], ids=["one", "per clip"])
def test_dropout_keeps_the_mean_and_drops_its_share(draws: Draws):
    dropped = dropout(torch.ones(2, 50_000), 0.25, draws)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert not dropout(torch.ones(2, 3), 1.0, draws).any()


def test_nothing_is_dropped_without_draws():
    x = torch.ones(2, 3)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, seeded(0)) is x


def test_masks_of_each_clip_stay_with_their_clip():
    q, k, v = torch.randn(3, 4, 2, 3, 8, generator=seeded(5))
    mask = torch.rand(4, 1, 3, 3, generator=seeded(6)) < 0.5
    mask |= torch.eye(3, dtype=torch.bool)
    nearly_none = 1e-9  # drops no weight here, but takes the path of dropout
    for shown in (mask, mask[0, 0], None):
        plain = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        torch.testing.assert_close(attention(q, k, v, shown, nearly_none, clips(0, 1)), plain)
