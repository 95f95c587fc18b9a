"""Frame size, rate and windows for a recording."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mutoscope.runs.frame_size import PIXELS, clip_length, frame_size, frame_stride, window_step

SIDES = st.integers(16, 2200)


@given(SIDES, SIDES, st.sampled_from([8, 16, 32]))
def test_frames_are_whole_multiples_and_not_larger_than_the_recording(height: int, width: int, multiple: int) -> None:
    for machine in ("cpu", "gpu"):
        size = frame_size((height, width), multiple, machine)
        assert all(
            side % multiple == 0 and side <= max(recorded, multiple)
            for side, recorded in zip(size, (height, width), strict=True)
        )
        assert math.prod(size) <= 2 * max(PIXELS[machine], multiple * max(size))


@given(st.sampled_from([3 / 4, 9 / 16, 1.0, 4 / 3, 16 / 9]), st.integers(240, 2000))
def test_usual_aspects_lose_less_than_an_eighth_by_cropping(aspect: float, width: int) -> None:
    recorded = round(width * aspect), width
    height, width = frame_size(recorded, 16, "cpu")
    assert abs(math.log(height / width / (recorded[0] / recorded[1]))) < 1 / 8


def test_a_quarter_vga_camera_becomes_64_by_80_on_a_cpu() -> None:
    assert frame_size((240, 320), 16, "cpu") == (64, 80)
    assert frame_size((1920, 1080), 16, "cpu") == (112, 64)


@given(st.floats(1, 120), st.integers(2, 40), st.integers(1, 500))
def test_a_clip_has_eight_frames_per_second_and_fits_the_shortest_video(
    fps: float, frames: int, available: int
) -> None:
    stride = frame_stride(fps, frames, available)
    assert stride == 1 or (fps / stride >= 8 and (frames - 1) * stride + 1 <= available)
    assert frame_stride(fps, frames, None) == max(1, int(fps / 8))


@given(st.integers(1, 40), st.integers(1, 200), st.sampled_from([(1, 0), (2, 0), (4, 1), (4, 0)]))
def test_clips_are_what_the_tokenizer_encodes_without_padding(
    wanted: int, available: int, tokenizer: tuple[int, int]
) -> None:
    stride, alone = tokenizer
    frames = clip_length(wanted, available, stride, alone)
    assert frames >= 1 and (frames - alone) % stride == 0
    assert frames <= min(wanted, available) or frames == stride + alone or frames == max(alone, stride)


@given(st.integers(1, 60), st.integers(1, 300), st.integers(1, 2000), st.integers(400, 6000))
def test_windows_overlap_by_three_quarters_until_there_are_too_many(
    span: int, videos: int, frames: int, most: int
) -> None:
    step = window_step(span, videos, frames, most)
    windows = videos * (1 + max(frames - span, 0) // step)
    assert windows <= most + videos
    assert step >= max(1, span // 4)
