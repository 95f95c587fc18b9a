"""Frames as images, and messages with a header."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mutoscope.playground.images import encoded, message, side_by_side

FRAME = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_every_format_keeps_the_size(form):
    with Image.open(io.BytesIO(encoded(FRAME, form))) as image:
        assert image.size == (10, 6) and image.format == form.upper()
        assert form != "png" or (np.asarray(image) == FRAME).all()


def test_a_message_is_its_length_its_header_and_its_content():
    data = message({"type": "frame", "index": 3}, b"abc")
    length = int.from_bytes(data[:4], "big")
    assert json.loads(data[4 : 4 + length]) == {"type": "frame", "index": 3} and data[4 + length :] == b"abc"


def test_frames_of_a_clip_lie_in_one_row():
    assert (side_by_side(np.stack([FRAME, FRAME]))[:, 10:] == FRAME).all()
