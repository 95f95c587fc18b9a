"""The learning curve of a run as an image, drawn with Pillow from the log alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from mutoscope.data.media import write_png
from mutoscope.training.tracking import read_log

WIDTH, HEIGHT = 800, 500
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 84, 52  # pixels around the axes
SHARPNESS = 2  # lines are drawn this much larger, then scaled down
SMOOTHED = 0.05  # largest part of the log that a point of the smoothed training loss is averaged over
LOG_RATIO = 5.0  # from this ratio of the largest to the smallest loss on, its axis is logarithmic
SMALLEST_LOSS = 1e-12  # a smaller one is zero but for rounding; a logarithmic axis would have no end
NUM_TICKS = 6
FONT_SIZE, LEGEND_ROW = 12, 20
MAX_MARKERS = 30  # more points than this are a line without markers
INK, GRID, PALE = (60, 60, 60), (228, 228, 228), (190, 208, 232)
# name in the log -> name in the legend, colour; Okabe and Ito's, which colour-blind readers can tell apart
SERIES = {
    "loss": ("training", (0, 90, 160)),
    "validation_loss": ("validation, raw weights", (230, 130, 0)),
    "validation_loss_averaged": ("validation, averaged weights", (0, 140, 105)),
}
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range of numbers on a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._scaled(number) for number in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers in the range."""
        if self.is_log:
            lowest, highest = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            powers = range(lowest, highest + 1, 1 + (highest - lowest) // (2 * NUM_TICKS))
            for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [digit * 10.0**power for power in powers for digit in digits]
                found = [tick for tick in found if self.low <= tick <= self.high]
                if len(found) >= NUM_TICKS - 2:
                    return found
        return linear_ticks(self.low, self.high)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def linear_ticks(low: float, high: float) -> list[float]:
    """About NUM_TICKS multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * rough)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def write_curve(log: Path, image: Path) -> None:
    """Draws `log` into the file `image`, whole or not at all; a log without a loss leaves it alone."""
    pixels = draw_curve(read_log(log))
    if pixels is None:
        return
    write_png(image, pixels)


def draw_curve(lines: Sequence[Mapping[str, float]]) -> UInt8[np.ndarray, "500 800 3"] | None:
    """Training and validation loss of a log against the number of updates; None where it holds no finite loss.

    The loss is on a logarithmic axis where it is positive and falls far. The training loss is noisy: its running mean
    is drawn above the values themselves.
    """
    series = {name: found for name in SERIES if (found := points(lines, name))}
    if not series:
        return None
    x, y = axes(series)
    scale = SHARPNESS
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    draw = ImageDraw.Draw(image)
    draw_axes(draw, x, y)
    for name, found in series.items():
        draw_series(draw, name, found, x, y)
    draw_legend(draw, series)
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def points(lines: Sequence[Mapping[str, float]], name: str) -> Points:
    """(updates done, value) of every line that has a finite one."""
    return [(line["step"] + 1, line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]


def axes(series: Mapping[str, Points]) -> tuple[Axis, Axis]:
    """Ranges that hold every point, with a little room above and below."""
    steps = [step for found in series.values() for step, _ in found]
    values = [value for found in series.values() for _, value in found]
    low, high = min(values), max(values)
    is_log = low > SMALLEST_LOSS and high / low > LOG_RATIO
    room = (high / low) ** 0.04 if is_log else 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    low, high = (low / room, high * room) if is_log else (low - room, high + room)
    x = Axis(0, max(steps), LEFT, WIDTH - RIGHT)
    return x, Axis(low, high, HEIGHT - BOTTOM, TOP, is_log)


def smoothed(found: Points) -> Points:
    """Running means over the latest points: a tenth of those so far, at most the part SMOOTHED of all."""
    sums = np.cumsum([0.0, *(value for _, value in found)])
    ends = np.arange(1, len(found) + 1)
    starts = ends - np.minimum(1 + ends // 10, max(1, round(SMOOTHED * len(found))))
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return [(step, float(mean)) for (step, _), mean in zip(found, means, strict=True)]


def draw_axes(draw: ImageDraw.ImageDraw, x: Axis, y: Axis) -> None:
    for tick in (tick for tick in x.ticks() if tick == round(tick)):  # there are no halves of updates
        _line(draw, [(x(tick), TOP), (x(tick), HEIGHT - BOTTOM)], GRID, 1)
        _text(draw, (x(tick), HEIGHT - BOTTOM + 8), f"{tick:,.0f}", "ma")
    for tick in y.ticks():
        _line(draw, [(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], GRID, 1)
        _text(draw, (LEFT - 8, y(tick)), f"{tick:.4g}", "rm")
    _line(draw, [(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], INK, 1)
    _text(draw, ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 22), "updates", "ma")
    _text(draw, (LEFT - 8, TOP - 12), "loss (log)" if y.is_log else "loss", "rs")


def draw_series(draw: ImageDraw.ImageDraw, name: str, found: Points, x: Axis, y: Axis) -> None:
    _, color = SERIES[name]
    if name == "loss":
        _line(draw, [(x(step), y(value)) for step, value in found], PALE, 1)
        found = smoothed(found)
    pixels = [(x(step), y(value)) for step, value in found]
    _line(draw, pixels, color, 2)
    if len(pixels) == 1 or (name != "loss" and len(pixels) <= MAX_MARKERS):
        for column, row in pixels:
            draw.ellipse([SHARPNESS * number for number in (column - 3, row - 3, column + 3, row + 3)], fill=color)


def draw_legend(draw: ImageDraw.ImageDraw, series: Mapping[str, Points]) -> None:
    """Names with their latest values, one below the other above the axes, where no curve can run through them."""
    for number, (name, found) in enumerate(series.items()):
        row = 18.0 + LEGEND_ROW * number
        _line(draw, [(LEFT, row), (LEFT + 20, row)], SERIES[name][1], 3)
        _text(draw, (LEFT + 28, row), legend_text(name, found), "lm")


def legend_text(name: str, found: Points) -> str:
    """Name and latest value; for validation also the lowest one, if it came earlier."""
    latest = (smoothed(found) if name == "loss" else found)[-1][1]
    step, lowest = min(found, key=lambda point: point[1])
    text = f"{SERIES[name][0]} {latest:.4g}"
    return text if name == "loss" or lowest == latest else f"{text} (lowest {lowest:.4g} at {step:,.0f})"


def _line(draw: ImageDraw.ImageDraw, found: Points, color: tuple[int, int, int], width: int) -> None:
    draw.line([(SHARPNESS * a, SHARPNESS * b) for a, b in found], fill=color, width=SHARPNESS * width, joint="curve")


def _text(draw: ImageDraw.ImageDraw, position: tuple[float, float], text: str, anchor: str) -> None:
    column, row = (SHARPNESS * number for number in position)
    draw.text((column, row), text, fill=INK, font=_font(FONT_SIZE * SHARPNESS), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
