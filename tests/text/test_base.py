"""Left padding of captions."""

import torch

from mutoscope.text.base import TextFeatures, left_padded


def test_real_rows_move_to_the_end_and_keep_their_order():
    lengths = torch.tensor([0, 2, 5])
    mask = torch.arange(5) < lengths[:, None]
    features = (torch.arange(1.0, 6) * mask)[..., None]
    moved = left_padded(TextFeatures(features, mask))
    assert moved.features[..., 0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 2], [1, 2, 3, 4, 5]]
    assert torch.equal(moved.mask, mask.flip(1))  # the official script flips the mask
