import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.sampling.categorical import gumbel, keep_top_k, log_probability, nucleus, sample_categorical
from mutoscope.sampling.guidance import guide

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(logits: torch.Tensor, count: int = 20_000, **options) -> torch.Tensor:
    noise = gumbel((count, len(logits)), seeded(), CPU)
    drawn = sample_categorical(logits.expand(count, -1), noise, **options)
    return torch.bincount(drawn, minlength=len(logits)) / count


def test_draws_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(frequencies(logits), logits.softmax(0), atol=0.015, rtol=0)
    torch.testing.assert_close(frequencies(logits, temperature=2.0), (logits / 2).softmax(0), atol=0.015, rtol=0)


def test_top_k_and_top_p_draw_only_what_they_keep():
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    assert (frequencies(logits, top_k=2) > 0).tolist() == [False, True, False, True]
    assert (frequencies(logits, top_p=0.1) > 0).tolist() == [False, True, False, False]
    kept = logits[[1, 3]].softmax(0)
    torch.testing.assert_close(frequencies(logits, top_k=2)[[1, 3]], kept, atol=0.015, rtol=0)


def test_temperature_zero_takes_the_most_probable():
    assert int(sample_categorical(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[9.0, 0, 0]]), temperature=0)) == 1


@given(st.floats(0.01, 1), st.integers(0, 2**16))
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(top_p: float, seed: int):
    logits = torch.randn(9, generator=seeded(seed))
    probabilities = logits.softmax(0)
    kept = nucleus(logits, top_p)
    mass = float(probabilities[kept].sum())
    assert bool(kept[logits.argmax()])
    assert mass >= top_p - 1e-5
    assert mass - float(probabilities[kept].min()) < top_p + 1e-5


def test_more_than_all_entries_may_be_asked_for():
    logits = torch.tensor([0.0, 1.0])
    assert torch.equal(keep_top_k(logits, 5), logits)


def test_log_probability_is_that_of_the_chosen_token():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    expected = torch.tensor([logits[0].softmax(0)[1], logits[1].softmax(0)[1]]).log()
    torch.testing.assert_close(log_probability(logits, torch.tensor([1, 1])), expected)


def test_gumbel_noise_is_finite_and_comes_from_the_generator():
    noise = gumbel((100_000,), seeded(), CPU)
    assert bool(noise.isfinite().all()) and abs(float(noise.mean()) - 0.5772) < 0.02
    assert torch.equal(noise, gumbel((100_000,), seeded(), CPU))


def test_guidance_scale_one_is_off_and_zero_is_unconditional():
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(guide(c, u, 1.0), c) and torch.equal(guide(c, u, 0.0), u)
    torch.testing.assert_close(guide(c, u, 2.5), c + 1.5 * (c - u))
