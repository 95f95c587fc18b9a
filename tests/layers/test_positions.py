import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.layers.positions import rotary_table, rotate


def test_the_first_pair_of_every_axis_rotates_by_the_coordinate():
    table = rotary_table(torch.tensor([[2, 3]]), (2, 1))
    angles = [2.0, 2.0 / 100.0, 3.0]  # base 10000 over two pairs: factors 1 and 1/100
    expected = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    torch.testing.assert_close(table[0], expected)


@given(shift=st.integers(-20, 20), seed=st.integers(0, 99))
def test_scores_depend_on_distance_only(shift: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))
    positions = torch.randint(0, 30, (2, 2), generator=generator)

    def score(offset: int) -> torch.Tensor:
        tables = [rotary_table(row[None] + offset, (2, 2)) for row in positions]
        return (rotate(q, tables[0]) * rotate(k, tables[1])).sum()

    torch.testing.assert_close(score(shift), score(0), atol=1e-4, rtol=1e-4)


def test_rotation_keeps_lengths_and_dtype_and_zeroes_rows_of_zeros():
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = rotary_table(torch.arange(4)[:, None], (4,))
    turned = rotate(x, table)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), atol=2e-2, rtol=2e-2)
    assert rotate(x, torch.zeros_like(table)).count_nonzero() == 0
