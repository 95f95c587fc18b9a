import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mutoscope.training.curve import HEIGHT, LEFT, RIGHT, SERIES, WIDTH, axes, draw_curve, points, smoothed, write_curve


def has_colour(pixels: np.ndarray, name: str, left: float, right: float) -> bool:
    """Whether a series is drawn between two columns of the axes."""
    part = pixels[90:, int(left) : int(right)].astype(int)
    return bool((np.abs(part - SERIES[name][1]).max(-1) < 40).any())


def test_every_series_of_the_log_is_drawn_over_its_own_range():
    lines = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(0, 1000, 20)]
    lines += [{"step": step, "validation_loss": 0.5} for step in range(499, 1000, 100)]
    pixels = draw_curve(lines)
    assert pixels is not None and pixels.shape == (HEIGHT, WIDTH, 3)
    middle = (LEFT + WIDTH - RIGHT) / 2
    assert has_colour(pixels, "loss", LEFT, middle) and has_colour(pixels, "loss", middle, WIDTH)
    assert has_colour(pixels, "validation_loss", middle - 5, WIDTH)
    assert not has_colour(pixels, "validation_loss", LEFT, middle - 10)
    assert not has_colour(pixels, "validation_loss_averaged", LEFT, WIDTH)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_any_finite_log_has_ticks_and_points_inside_the_axes(values: list[float]):
    found = [(float(step + 1), value) for step, value in enumerate(values)]
    x, y = axes({"loss": found})
    assert all(LEFT <= x(step) <= WIDTH - RIGHT + 1e-6 for step, _ in found)
    assert all(min(y.start, y.end) <= y(value) <= max(y.start, y.end) for _, value in found)
    for axis in (x, y):
        assert 2 <= len(axis.ticks()) <= 20
        assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-6 * abs(axis.high) for tick in axis.ticks())


@pytest.mark.parametrize(
    "values, is_log", [([3.0, 0.1], True), ([3.0, 2.0], False), ([3.0, -0.1], False), ([1.0, 5e-324], False)]
)
def test_a_positive_loss_that_falls_far_has_a_logarithmic_axis(values: list[float], is_log: bool):
    assert axes({"loss": list(enumerate(values, start=1))})[1].is_log == is_log


def test_a_log_without_a_finite_loss_draws_nothing_and_keeps_the_image(tmp_path):
    assert draw_curve([{"step": 0, "loss": math.nan}, {"step": 1}]) is None
    (tmp_path / "curve.png").write_bytes(b"earlier")
    write_curve(tmp_path / "missing.jsonl", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == b"earlier"


def test_the_image_is_written_whole_beside_the_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n')
    write_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size == (WIDTH, HEIGHT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "log.jsonl"]


def test_points_count_updates_done_and_smoothing_keeps_their_mean_level():
    assert points([{"step": 4, "loss": 1.0}, {"step": 5, "other": 2.0}], "loss") == [(5, 1.0)]
    found = [(float(i), 1.0 + (-1) ** i * 0.5) for i in range(1000)]
    late = [value for _, value in smoothed(found)[500:]]
    assert max(late) - min(late) < 0.05
