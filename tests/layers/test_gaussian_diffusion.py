"""Diffusion with learned variances, for chains of any length."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.gaussian_diffusion import LearnedVariance, space_timesteps

COUNTS = (2, 50, 250, 1000, 4000)
SCHEDULES = [("cosine", count) for count in COUNTS] + [("linear", count) for count in COUNTS[1:]]
each_schedule = pytest.mark.parametrize(("schedule", "count"), SCHEDULES)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each_schedule
def test_constants_of_a_chain_of_any_length(schedule, count: int):
    tables = LearnedVariance(schedule, count).tables
    assert len(tables.betas) == len(tables.timesteps) == count
    assert (tables.betas > 0).all() and (tables.betas < 1).all()
    assert (np.diff(tables.alphas_cumprod) < 0).all()
    assert np.isfinite(tables.posterior_log_variance).all()
    assert tables.alphas_cumprod[-1] < 1e-3


@pytest.mark.parametrize("count", COUNTS[1:])
def test_the_cosine_schedule_is_the_published_function_of_the_share_of_steps(count: int):
    alpha_bar = LearnedVariance("cosine", count).tables.alphas_cumprod
    share = np.arange(1, count) / count  # beta is clamped in the last step alone
    published = np.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar[:-1], published, rtol=1e-9)


@pytest.mark.parametrize("count", COUNTS[1:])
def test_the_linear_schedule_adds_the_same_noise_in_any_number_of_steps(count: int):
    betas = LearnedVariance("linear", count).tables.betas
    assert betas.sum() == pytest.approx(1000 * (1e-4 + 0.02) / 2)
    assert betas[-1] / betas[0] == pytest.approx(200)


def test_a_thousand_steps_are_the_default_and_keep_their_published_numbers():
    assert LearnedVariance() == LearnedVariance("cosine", 1000)
    tables = LearnedVariance().tables
    assert tables.betas[[0, 998, 999]] == pytest.approx([4.128422e-5, 0.74999939, 0.999], rel=1e-6)
    assert np.array_equal(LearnedVariance("linear").tables.betas, np.linspace(1e-4, 0.02, 1000))


@each_schedule
def test_training_steps_cover_the_whole_chain(schedule, count: int):
    steps = LearnedVariance(schedule, count).draw_steps((40 * count,), torch.Generator().manual_seed(0))
    assert steps.unique().tolist() == list(range(count))


@each_schedule
def test_a_perfect_prediction_has_no_error_at_any_step(schedule, count: int):
    diffusion = LearnedVariance(schedule, count)
    steps = torch.tensor([0, count // 2, count - 1])
    x, noise = seeded(3, 4), seeded(3, 4, seed=1)
    posterior = torch.full_like(x, -1.0)  # fraction -1: the variance is the posterior's
    error, bound = diffusion.losses(torch.cat([noise, posterior], dim=-1), x, noise, steps)
    assert error.max() == 0
    assert torch.isfinite(bound).all()
    assert bound[1:].abs().max() < 1e-3  # step 0 has a likelihood in place of a divergence


@each_schedule
@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_every_plan_leads_from_noise_back_to_the_sample(schedule, count: int, eta: float | None):
    """A network that knows the sample predicts exactly the noise of each step."""
    diffusion, x0 = LearnedVariance(schedule, count), torch.tensor([[0.5, -0.25]])
    for num_steps in {1, 2, min(10, count), min(50, count)}:
        plan = diffusion.plan(num_steps, sample_range=1.0, eta=eta)
        alpha_bar = diffusion.tables.alphas_cumprod
        assert plan.times.tolist() == sorted(plan.times.tolist(), reverse=True) and len(plan) == num_steps
        x = seeded(1, 2)
        for k, time in enumerate(plan.times.long().tolist()):
            now = alpha_bar[time]
            noise = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
            fresh = seeded(1, 2, seed=k + 1) if plan.needs_noise(k) else None
            x = plan.step(k, x, torch.cat([noise, torch.zeros_like(x)], dim=-1), fresh)
        torch.testing.assert_close(x, x0, atol=0.03 if num_steps > 1 and count < 1000 else 0.01, rtol=0)


def test_a_predicted_sample_has_the_error_of_the_velocity_that_it_implies():
    diffusion = LearnedVariance(prediction="sample")
    alpha_bar = torch.from_numpy(diffusion.tables.alphas_cumprod).float()
    steps = torch.tensor([400, 700, 999])  # where the weight is below its largest value
    x, noise, guess = seeded(3, 4), seeded(3, 4, seed=1), seeded(3, 4, seed=2)
    kept, added = alpha_bar[steps, None].sqrt(), (1 - alpha_bar[steps, None]).sqrt()
    x_t = kept * x + added * noise
    implied_noise = (x_t - kept * guess) / added
    velocities = [kept * e - added * sample for e, sample in ((noise, x), (implied_noise, guess))]
    expected = (velocities[0] - velocities[1]).square().mean(-1)
    error, _ = diffusion.losses(torch.cat([guess, torch.zeros_like(x)], dim=-1), x, noise, steps)
    torch.testing.assert_close(error, expected, rtol=1e-4, atol=1e-6)


def test_the_error_of_a_predicted_sample_weighs_no_more_than_five_at_little_noise():
    diffusion = LearnedVariance(prediction="sample")
    x = seeded(1, 4)
    error, _ = diffusion.losses(torch.cat([x + 1, x * 0], dim=-1), x, seeded(1, 4, seed=1), torch.tensor([0]))
    assert error.item() == pytest.approx(5)


@pytest.mark.parametrize("eta", [None, 0.0])
def test_a_predicted_sample_and_the_noise_that_it_implies_take_the_same_steps(eta: float | None):
    by_noise, by_sample = (LearnedVariance(prediction=p).plan(10, eta=eta) for p in ("epsilon", "sample"))
    alpha_bar = LearnedVariance().tables.alphas_cumprod
    x, guess, fraction = seeded(2, 4), 0.3 * seeded(2, 4, seed=1), torch.zeros(2, 4)
    for k, time in enumerate(by_noise.times.long().tolist()):
        noise = (x - math.sqrt(alpha_bar[time]) * guess) / math.sqrt(1 - alpha_bar[time])
        fresh = seeded(2, 4, seed=k + 2) if by_noise.needs_noise(k) else None
        of_noise = by_noise.step(k, x, torch.cat([noise, fraction], dim=-1), fresh)
        x = by_sample.step(k, x, torch.cat([guess, fraction], dim=-1), fresh)
        torch.testing.assert_close(of_noise, x, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(x, guess, atol=1e-2, rtol=0)


@pytest.mark.parametrize("count", COUNTS)
def test_a_plan_of_all_steps_is_the_training_chain(count: int):
    diffusion = LearnedVariance("cosine", count)
    assert np.array_equal(space_timesteps(count, count), np.arange(count))
    np.testing.assert_allclose(diffusion.respaced(count).betas, diffusion.tables.betas, rtol=1e-9, atol=1e-12)


def test_shorter_plans_start_at_the_last_training_step_of_their_own_chain():
    assert LearnedVariance("cosine", 250).plan(5).times.tolist() == [249, 187, 124, 62, 0]
    assert LearnedVariance("cosine", 4000).plan("ddim4").times.tolist() == [3000, 2000, 1000, 0]


def test_impossible_numbers_of_steps_are_refused():
    with pytest.raises(UserError, match="num_train_steps must be at least 2.*found 1"):
        LearnedVariance("cosine", 1)
    with pytest.raises(UserError, match="num_train_steps must be at least 21"):
        LearnedVariance("linear", 20)
    with pytest.raises(UserError, match="choose 1 to 50"):
        LearnedVariance("cosine", 50).plan(100)
    with pytest.raises(UserError, match="exactly 7 of them"):
        LearnedVariance("cosine", 12).plan("ddim7")


@given(steps=st.integers(1, 30), seed=st.integers(0, 9))
def test_the_numbers_of_one_step_are_those_of_many(steps: int, seed: int):
    tables = LearnedVariance().respaced(steps)
    many = tables.numbers(torch.arange(steps))
    for step, one in enumerate(tables.numbers_of):
        assert vars(one) == {name: float(column[step, 0]) for name, column in vars(many).items()}
    plan, generator = LearnedVariance().plan(steps, 3.0), torch.Generator().manual_seed(seed)
    x, output, noise = (torch.randn(2, 3, size, generator=generator) for size in (4, 8, 4))
    for k in range(steps):
        assert plan.step(k, x, output, noise).isfinite().all()
