"""The array annotations of the package are checked in tests, and nothing else is."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from mutoscope.layers.attention import attention
from shape_checks import is_checked


def test_a_tensor_of_the_wrong_rank_is_refused():
    x = torch.zeros(1, 2, 4, 8)
    attention(x, x, x, mask=None)
    with pytest.raises(TypeCheckError):
        attention(x[0], x[0], x[0], mask=None)


@pytest.mark.parametrize(
    ("annotation", "checked"),
    [
        (Float[Tensor, "b d"], True),
        (Float[Tensor, "b d"] | None, True),  # pyright: ignore[reportOperatorIssue] (to it, Float is `Annotated`)
        (tuple[Float[Tensor, "b d"], int], True),
        (dict[str, Float[Tensor, "b d"]], True),
        (Tensor, False),
        (torch.nn.Module | None, False),
        ("torch.dtype", False),
        (int, False),
    ],
)
def test_only_annotations_of_arrays_are_checked(annotation, checked):
    assert is_checked(annotation) is checked
