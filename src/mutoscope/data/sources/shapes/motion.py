"""Motions of the synthetic dataset "shapes": a path over time for each motion, and the words of its caption.

Positions and radii are fractions of the frame, angles are in radians, `t` counts frames from 0.
Every motion takes the same arguments: four uniform numbers `u`, a phase, a sign (direction), radius and angle.
"""

from math import pi

import numpy as np
from jaxtyping import Float32

_VERBS = {"spin": "spins", "pulse": "pulses", "swing": "swings"}


def main_track(
    rng: np.random.Generator, motion: str, t: Float32[np.ndarray, " t"]
) -> tuple[Float32[np.ndarray, "t 4"], str]:
    """One random path of the main object (x, y, radius, angle) and the words for it, such as "glides up"."""
    radius, angle = rng.uniform(0.20, 0.25), rng.uniform(-0.25, 0.25)
    u, phase = rng.uniform(size=4), rng.uniform(0, 2 * pi)
    sign = 1.0 if rng.integers(2) else -1.0
    x, y, r, a = _MOTION_FUNCTIONS[motion](t, u, phase, sign, radius, angle, rng)
    track = np.stack(np.broadcast_arrays(x, y, r, a), axis=1).astype(np.float32)  # (t, 4)
    return track, _words(motion, sign, track)


def _words(motion: str, sign: float, track: np.ndarray) -> str:
    if motion == "orbit":
        return "orbits " + ("clockwise" if sign > 0 else "counter-clockwise")
    if motion == "bounce":
        return "bounces to the " + ("right" if sign > 0 else "left")
    if motion == "glide":
        dx, dy = track[min(1, len(track) - 1), :2] - track[0, :2]
        horizontal = "to the right" if dx > 0 else "to the left"
        return "glides " + (horizontal if abs(dx) > abs(dy) else "down" if dy > 0 else "up")
    return _VERBS[motion]


def _fold(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Reflect a coordinate between two walls."""
    span = high - low
    return low + np.abs((x - low + span) % (2 * span) - span)


def _glide(t, u, phase, sign, radius, angle, rng):
    speed, heading = 0.020 + 0.010 * u[0], rng.integers(4) * pi / 2 + (u[1] - 0.5) * 0.4
    steps = 15.0 * speed
    velocity = speed * np.cos(heading), speed * np.sin(heading)
    start = []
    for v, w in zip(velocity, u[2:], strict=True):
        # The whole path of 16 frames fits; longer clips reflect at the walls.
        low, high = radius - min(0.0, 15 * v), 1 - radius - max(0.0, 15 * v)
        start.append(low + w * (high - low) if high > low else 0.5 - np.sign(v) * steps / 2)
    xy = (_fold(s + v * t, radius, 1 - radius) for s, v in zip(start, velocity, strict=True))
    return *xy, radius, angle


def _bounce(t, u, phase, sign, radius, angle, rng):
    period, height, floor = 8 + 3 * u[0], 0.30 + 0.12 * u[1], 0.98 - radius
    arc = (t / period + phase / (2 * pi)) % 1.0
    start = (0.2 + 0.2 * u[2]) if sign > 0 else (0.8 - 0.2 * u[2])
    x = _fold(start + sign * (0.013 + 0.012 * u[3]) * t, radius, 1 - radius)
    return x, floor - height * 4 * arc * (1 - arc), radius, angle


def _orbit(t, u, phase, sign, radius, angle, rng):
    turn = phase + sign * 2 * pi * t / (14 + 6 * u[0])
    reach = 0.19 + 0.06 * u[1]
    return (
        0.5 + (u[2] - 0.5) * 0.08 + reach * np.cos(turn),
        0.5 + (u[3] - 0.5) * 0.08 + reach * np.sin(turn),
        radius,
        angle,
    )


def _spin(t, u, phase, sign, radius, angle, rng):
    return 0.3 + 0.4 * u[0], 0.3 + 0.4 * u[1], radius + 0.01, phase + sign * (0.17 + 0.12 * u[2]) * t


def _pulse(t, u, phase, sign, radius, angle, rng):
    beat = np.sin(phase + 2 * pi * t / (8 + 4 * u[2]))
    return 0.32 + 0.36 * u[0], 0.32 + 0.36 * u[1], 0.205 * (1 + 0.36 * beat), angle


def _swing(t, u, phase, sign, radius, angle, rng):
    swing = (0.55 + 0.15 * u[0]) * np.sin(phase + 2 * pi * t / (11 + 5 * u[1]))
    length, pivot_x, pivot_y = 0.42, 0.45 + 0.1 * u[2], 0.05 + 0.15 * u[3]
    return pivot_x + length * np.sin(swing), pivot_y + length * np.cos(swing), radius, -swing


_MOTION_FUNCTIONS = {
    "glide": _glide,
    "bounce": _bounce,
    "orbit": _orbit,
    "spin": _spin,
    "pulse": _pulse,
    "swing": _swing,
}


def drift_track(rng: np.random.Generator, t: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, "t 4"]:
    """A small shape drifting slowly in a straight line, reflected by the walls."""
    radius, heading, speed = rng.uniform(0.13, 0.15), rng.uniform(0, 2 * pi), rng.uniform(0.004, 0.012)
    start = rng.uniform(radius, 1 - radius, size=2)
    xy = [
        _fold(s + speed * d * t, radius, 1 - radius)
        for s, d in zip(start, (np.cos(heading), np.sin(heading)), strict=True)
    ]
    angle = rng.uniform(-0.25, 0.25)
    return np.stack(np.broadcast_arrays(*xy, radius, angle), axis=1).astype(np.float32)
