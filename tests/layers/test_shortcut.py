"""Flow matching whose network reads the lengths of its steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.layers.shortcut import Shortcut

finest = st.sampled_from([2, 4, 16, 64])


@given(finest)
def test_a_quarter_of_the_steps_are_those_of_chains_that_end_at_the_sample(count: int):
    steps = Shortcut(count).steps
    lengths = steps[:, 1]
    chains = steps[lengths > 0]
    assert len(steps) == 4 * len(chains)
    ends = chains[:, 0] / chains[:, 1]  # steps that are left
    assert torch.allclose(ends, ends.round()) and ends.min() >= 1
    found, counts = chains[:, 1].unique(return_counts=True)
    assert found.tolist() == [2 / count * 2**k for k in range(len(found))] and found[-1] == 1
    assert len(set(counts.tolist())) == 1
    assert steps[:, 0].min() > 0 and steps[:, 0].max() == 1


def test_the_target_of_a_long_step_is_the_mean_of_two_halves_along_the_way():
    flow = Shortcut(4)
    x, noise = torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    asked: list[tuple[list[float], list[float]]] = []

    def predict(rows: Tensor | None, x: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
        assert lengths is not None
        asked.append((times.tolist(), lengths.tolist()))
        return 3 * x + times[:, None] / 1000 + lengths[:, None]

    table = flow.steps.tolist()
    chain, instant = table.index([1.0, 0.5]), next(i for i, step in enumerate(table) if step[1] == 0)
    terms = flow.terms(predict, x, noise, torch.tensor([chain, instant]))
    # From σ = 1 with halves of 1/4, the finest length, which is asked for as an instantaneous velocity:
    first = 3 * 1.0 + 1.0
    second = 3 * (1.0 - 0.25 * first) + 0.75
    own = 3 * 1.0 + 1.0 + 500
    assert terms["consistency_loss"].tolist() == pytest.approx([(own - (first + second) / 2) ** 2, 0.0])
    assert terms["diffusion_loss"][0] == 0 and terms["diffusion_loss"][1] > 0
    assert asked[0] == ([1000.0], [0.0]) and asked[1] == ([750.0], [0.0])


@given(finest, st.integers(0, 7))
def test_exact_velocities_lead_to_the_sample_in_any_number_of_steps(count: int, power: int):
    plan = Shortcut(count).plan(2**power)
    x, noise = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 3.0])
    at = noise
    for k in range(len(plan)):
        assert not plan.needs_noise(k)
        at = plan.step(k, at, noise - x)
    torch.testing.assert_close(at, x, atol=1e-5, rtol=1e-5)
    assert plan.lengths.unique().tolist() == [1000 / 2**power if 2**power < count else 0.0]


def test_a_number_of_steps_that_nobody_trained_is_refused():
    with pytest.raises(UserError, match="1, 2, 4 … 16 diffusion steps or more, found 5"):
        Shortcut(16).plan(5)
    assert len(Shortcut(16).plan(20)) == 20
    for options in ({"changed": 4.0}, {"eta": 0.0}):
        with pytest.raises(UserError, match="has no sample_range"):
            Shortcut(16).plan(4, **options)
    with pytest.raises(UserError, match="power of two, found 12"):
        Shortcut(12)
