import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.sampling.schedules import check_num_steps, mask_ratio, num_masked_after, parse_schedule

SCHEDULES = ("uniform", "cosine", "exp", "log", "pow2", "pow0.5", "poly:-1,0,1")


def counts(schedule: str, num_steps: int, num_tokens: int) -> list[int]:
    tokens = torch.tensor([num_tokens])
    return [int(num_masked_after(schedule, step, num_steps, tokens)) for step in range(num_steps)]


def test_counts_of_the_paper_for_1024_tokens_in_12_steps():
    assert counts("cosine", 12, 1024) == [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133, 1]
    assert counts("exp", 12, 1024) == [1022, 1020, 1018, 1013, 1006, 992, 966, 922, 842, 701, 449, 1]
    assert counts("uniform", 12, 1024) == [938, 853, 768, 682, 597, 512, 426, 341, 256, 170, 85, 1]


def test_counts_use_single_precision():
    assert counts("uniform", 12, 48)[3] == 31  # 48 * (1 - 4/12) is 32 in exact arithmetic


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.integers(1, 5000))
def test_ratios_stay_in_their_range(schedule: str, progress: float, num_tokens: int):
    ratio = float(mask_ratio(schedule, torch.tensor(progress), num_tokens))
    assert 9e-7 <= ratio <= 1


@given(st.sampled_from(SCHEDULES), st.integers(1, 30), st.integers(1, 300))
def test_masked_tokens_never_grow_again(schedule: str, num_steps: int, num_tokens: int):
    sequence = counts(schedule, num_steps, num_tokens)
    assert sequence == sorted(sequence, reverse=True) and sequence[-1] == 1


def test_polynomials_take_the_highest_power_first():
    ratio = mask_ratio("poly:1,-3,1,1", torch.tensor([0.5]), 10)
    torch.testing.assert_close(ratio, torch.tensor([0.125 - 0.75 + 0.5 + 1]))


@pytest.mark.parametrize("name", ["cosin", "powx", "poly:1,a", "linear", "pow"])
def test_unknown_schedules_are_refused(name: str):
    with pytest.raises(UserError, match="There is no schedule .* Schedules: uniform, cosine, exp, log, powP"):
        parse_schedule(name)


def test_the_nearest_schedule_is_suggested():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        parse_schedule("cosin")


def test_steps_beyond_the_tokens_are_refused():
    check_num_steps(64, 64)
    for wrong in (0, 65):
        with pytest.raises(UserError, match="from 1 to 64"):
            check_num_steps(wrong, 64)
