"""The synthetic dataset "shapes": an endless, deterministic stream of short clips of moving shapes.

Clip `index` is a pure function of `(seed, index)`: the same in every process and worker.
Coordinates are in units of the frame (x to the right, y down, both 0…1), times in frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from mutoscope.data.base import ClipBatch
from mutoscope.data.sources.shapes.motion import drift_track, main_track
from mutoscope.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("glide", "bounce", "orbit", "spin", "pulse", "swing")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "magenta", "white")
PALETTE = np.array(
    [
        (0.90, 0.16, 0.18),
        (0.98, 0.55, 0.10),
        (0.98, 0.90, 0.25),
        (0.25, 0.78, 0.30),
        (0.25, 0.85, 0.90),
        (0.22, 0.42, 0.98),
        (0.92, 0.30, 0.85),
        (0.97, 0.97, 0.97),
    ],
    dtype=np.float32,
)
# A spinning circle looks like one at rest, so that pair is no class.
CLASSES = tuple((s, m) for s in SHAPES for m in MOTIONS if (s, m) != ("circle", "spin"))
CLASS_NAMES = tuple(f"{shape}-{motion}" for shape, motion in CLASSES)
AGENT_CLASS_NAMES = tuple(f"{shape}-push" for shape in SHAPES)
HELD_BACK_SEED = 1_000_003  # a prime far from the small seeds that training uses

# Middle tones: on a near-black ground squared errors would depend on outlines only.
BACKGROUND_TONES = np.array(
    [(0.33, 0.37, 0.45), (0.35, 0.43, 0.37), (0.43, 0.36, 0.42), (0.40, 0.40, 0.40), (0.46, 0.42, 0.34)],
    dtype=np.float32,
)
_TEXTURES = ("gradient", "stripes", "checks", "clouds")
_TEXTURE_CONTRAST = 0.025
_EDGE_PIXELS = 1.5  # width of the ramp from background to shape
_AGENT_SPEED = 0.05  # frame sides per frame at full deflection: 20 frames from wall to wall
_COUNT_WEIGHTS, _MORE_WEIGHT = (0.45, 0.4), 0.15  # weights of 1 and 2 shapes, and of each larger number
_MAX_OVERLAP = 0.02  # shapes may start that far inside each other
_SAME_POINT = 1e-6  # closer centres have no direction to push along
_SIN_60 = 0.8660254


@dataclass(frozen=True)
class ShapesConfig:
    """Sizes of the clips, and whether they can be controlled.

    `controllable`: the largest shape is an agent steered by one action per frame, (dx, dy) in [-1, 1],
    and pushes the others; otherwise every shape follows the motion of its class.
    """

    height: int = 32
    width: int = 32
    num_frames: int = 16
    fps: float = 8
    max_objects: int = 3
    controllable: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 8 or self.num_frames < 1 or self.fps < 1:
            raise UserError(
                "The dataset shapes needs frames of at least 8×8 pixels, 1 frame and 1 frame/s, found "
                f"{self.height}×{self.width}, {self.num_frames} frames at {self.fps} frames/s."
            )
        if not 1 <= self.max_objects <= len(COLORS):
            raise UserError(f"max_objects must be between 1 and {len(COLORS)}, found {self.max_objects}.")


@dataclass(frozen=True)
class ObjectInfo:
    """One shape of a clip: indices into SHAPES, COLORS and MOTIONS (-1: pushed or steered)."""

    shape: int
    color: int
    motion: int


@dataclass(frozen=True)
class ShapesClip:
    """A clip with all its ground truth. Object 0 is the main one, the largest, drawn in front.

    `tracks` holds x, y, radius, angle per object and frame; `attributes` the labels that the feature network predicts;
    `background` the image that the objects are drawn over.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    background: Float32[np.ndarray, "h w 3"]
    label: int
    caption: str
    objects: tuple[ObjectInfo, ...]
    attributes: dict[str, int | np.ndarray]
    tracks: Float32[np.ndarray, "objects t 4"]
    actions: Float32[np.ndarray, "t 2"] | None = None


class ShapesWorld:
    """Random access to the clips of one seed.

    Seed 0 is for training by convention, `HELD_BACK_SEED` for evaluation.
    """

    def __init__(self, config: ShapesConfig | None = None, seed: int = 0) -> None:
        self.config = config or ShapesConfig()
        self.seed = seed

    @property
    def class_names(self) -> tuple[str, ...]:
        return AGENT_CLASS_NAMES if self.config.controllable else CLASS_NAMES

    def clip(
        self,
        index: int,
        actions: Float32[np.ndarray, "t 2"] | None = None,
        interval: int = 1,
        shown: Sequence[int] | None = None,
    ) -> ShapesClip:
        """Clip number `index`. `actions` replaces the random ones of a controllable dataset.

        With `interval` d the frames are d time steps apart, so that everything moves d times as fast. `shown`:
        rising numbers of the frames that are drawn, all by default; each action is then the last one before the next
        frame shown, and the caption describes the beginning of the clip.

        Raises UserError for actions of a free dataset, actions outside [-1, 1], or an interval with actions.
        """
        rng = np.random.default_rng([self.seed, index])
        label = int(rng.integers(len(self.class_names)))
        objects = _draw_objects(rng, label, self.config)
        background = _background(rng, self.config)
        if interval < 1 or (interval > 1 and self.config.controllable):
            raise UserError(f"Frames are 1 step apart, or more without actions; found {interval}.")
        if self.config.controllable:
            actions = (
                _random_actions(rng, self.config.num_frames) if actions is None else _checked(actions, self.config)
            )
            tracks, words = _pushed_tracks(rng, objects, actions), "pushes"
        elif actions is not None:
            raise UserError(
                "These shapes are not controllable and take no actions: set controllable=True in ShapesConfig."
            )
        else:
            time = interval * np.arange(self.config.num_frames, dtype=np.float32)
            tracks, words = _free_tracks(rng, objects, time)
        if shown is not None:
            rows = np.asarray(shown)
            tracks = tracks[:, rows]
            actions = None if actions is None else actions[np.append(rows[1:] - 1, rows[-1])]
        return ShapesClip(
            frames=render(background, objects, tracks),
            background=background,
            label=label,
            caption=_caption(objects, words),
            objects=objects,
            attributes=_attributes(label, objects),
            tracks=tracks,
            actions=actions,
        )


def shapes_batch(world: ShapesWorld, indices: Sequence[int]) -> ClipBatch:
    """Clips `indices` stacked: "video" uint8 (b, t, h, w, 3), "label" (b,), "attributes" of int64 tensors, "caption".

    A controllable dataset adds "actions" float32 (b, t, 2).
    """
    clips = [world.clip(int(i)) for i in indices]
    batch: ClipBatch = {
        "video": torch.from_numpy(np.stack([clip.frames for clip in clips])),
        "label": torch.tensor([clip.label for clip in clips]),
        "attributes": {
            key: torch.as_tensor(np.stack([np.asarray(clip.attributes[key]) for clip in clips]), dtype=torch.int64)
            for key in clips[0].attributes
        },
        "caption": [clip.caption for clip in clips],
    }
    if world.config.controllable:
        batch["actions"] = torch.from_numpy(np.stack([clip.actions for clip in clips if clip.actions is not None]))
    return batch


# Contents of a clip ------------------------------------------------------------------------------------------------


def _draw_objects(rng: np.random.Generator, label: int, config: ShapesConfig) -> tuple[ObjectInfo, ...]:
    """The main shape of the class and up to max_objects − 1 smaller ones, all of different colours."""
    counts = np.array([*_COUNT_WEIGHTS] + [_MORE_WEIGHT] * (config.max_objects - 2))[: config.max_objects]
    count = 1 + int(rng.choice(len(counts), p=counts / counts.sum()))
    count = max(count, min(2, config.max_objects)) if config.controllable else count
    colors = rng.permutation(len(COLORS))[:count]
    if config.controllable:
        shapes, motions = [label], [-1] * count
    else:
        shape, motion = CLASSES[label]
        shapes, motions = [SHAPES.index(shape)], [MOTIONS.index(motion)] + [MOTIONS.index("glide")] * (count - 1)
    shapes += rng.integers(len(SHAPES), size=count - 1).tolist()
    return tuple(ObjectInfo(int(s), int(c), int(m)) for s, c, m in zip(shapes, colors, motions, strict=True))


def _attributes(label: int, objects: tuple[ObjectInfo, ...]) -> dict[str, int | np.ndarray]:
    colors, shapes = np.zeros(len(COLORS), np.uint8), np.zeros(len(SHAPES), np.uint8)
    colors[[o.color for o in objects]] = 1
    shapes[[o.shape for o in objects]] = 1
    main = objects[0]
    return {
        "class": label,
        "shape": main.shape,
        "color": main.color,
        "motion": main.motion,
        "num_objects": len(objects),
        "colors_present": colors,
        "shapes_present": shapes,
    }


def _caption(objects: tuple[ObjectInfo, ...], words: str) -> str:
    names = [f"{COLORS[o.color]} {SHAPES[o.shape]}" for o in objects]
    names = [("an " if name[0] in "aeiou" else "a ") + name for name in names]
    rest = " and ".join(names[1:])
    if words == "pushes":
        return f"{names[0]} pushes {rest}" if rest else f"{names[0]} moves about"
    return f"{names[0]} {words}" + (f" in front of {rest}" if rest else "")


# Motion of the shapes ------------------------------------------------------------------------------------------------


def _free_tracks(
    rng: np.random.Generator, objects: tuple[ObjectInfo, ...], time: Float32[np.ndarray, " t"]
) -> tuple[Float32[np.ndarray, "objects t 4"], str]:
    """Tracks (x, y, radius, angle) of every object, and the words for the motion of the main one."""
    main, words = main_track(rng, MOTIONS[objects[0].motion], time)
    tracks = [main]
    for _ in objects[1:]:
        # Starting clear of the others keeps every shape visible in the first frame.
        for _attempt in range(8):
            track = drift_track(rng, time)
            gaps = [np.hypot(*(track[0, :2] - other[0, :2])) - other[0, 2] - track[0, 2] for other in tracks]
            if min(gaps) > -_MAX_OVERLAP:
                break
        tracks.append(track)
    return np.stack(tracks), words


def _random_actions(rng: np.random.Generator, num_frames: int) -> Float32[np.ndarray, "t 2"]:
    """Smooth random steering: a new target direction every four frames."""
    targets = rng.uniform(-1, 1, size=(num_frames // 4 + 2, 2))
    at = np.arange(num_frames) / 4.0
    return np.stack([np.interp(at, np.arange(len(targets)), targets[:, i]) for i in range(2)], axis=1).astype(
        np.float32
    )


def _checked(actions: np.ndarray, config: ShapesConfig) -> Float32[np.ndarray, "t 2"]:
    actions = np.asarray(actions, dtype=np.float32)
    if actions.shape != (config.num_frames, 2) or not np.isfinite(actions).all() or np.abs(actions).max() > 1:
        raise UserError(
            f"Actions must be {config.num_frames} rows (dx, dy) in [-1, 1], found shape {actions.shape}"
            + (f" with values up to {np.abs(actions).max():.3g}." if actions.size else ".")
        )
    return actions


def _pushed_tracks(
    rng: np.random.Generator, objects: tuple[ObjectInfo, ...], actions: np.ndarray
) -> Float32[np.ndarray, "objects t 4"]:
    """The agent moves by its actions, frame by frame, and pushes every shape it touches out of its way."""
    count, num_frames = len(objects), len(actions)
    radii = np.concatenate([[rng.uniform(0.17, 0.20)], rng.uniform(0.13, 0.155, size=count - 1)])
    positions = rng.uniform(radii, 1 - radii, size=(2, count)).T  # (objects, 2)
    angles = rng.uniform(-0.25, 0.25, size=count)
    tracks = np.empty((count, num_frames, 4), np.float32)
    for frame in range(num_frames):
        if frame > 0:
            positions[0] += _AGENT_SPEED * actions[frame - 1]
        positions = np.clip(_separate(positions, radii), radii[:, None], 1 - radii[:, None])
        tracks[:, frame] = np.column_stack([positions, radii, angles])
    return tracks


def _separate(positions: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Push later objects away from earlier ones until they only touch."""
    for i in range(len(radii)):
        for j in range(i + 1, len(radii)):
            away = positions[j] - positions[i]
            distance = float(np.hypot(*away))
            overlap = radii[i] + radii[j] - distance
            if overlap > 0:
                positions[j] += overlap * (away / distance if distance > _SAME_POINT else np.array([1.0, 0.0]))
    return positions


# Appearance of a clip -------------------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, config: ShapesConfig) -> Float32[np.ndarray, "h w 3"]:
    """A middle tone with a soft texture that stays still."""
    tone = BACKGROUND_TONES[rng.integers(len(BACKGROUND_TONES))]
    kind = _TEXTURES[rng.integers(len(_TEXTURES))]
    y, x = np.meshgrid(_centres(config.height), _centres(config.width), indexing="ij")
    angle, phase = rng.uniform(0, pi), rng.uniform(0, 2 * pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if kind == "gradient":
        texture = 1.6 * (along - along.mean())
    elif kind == "stripes":
        texture = np.sin(2 * pi * 2.5 * along + phase)
    elif kind == "checks":
        texture = np.sin(2 * pi * 2 * along + phase) * np.sin(2 * pi * 2 * across)
    else:
        amplitudes, waves = rng.uniform(-1, 1, size=4), rng.uniform(-9, 9, size=(4, 2))
        texture = 0.6 * sum(a * np.sin(kx * x + ky * y + phase) for a, (kx, ky) in zip(amplitudes, waves, strict=True))
    return (tone + _TEXTURE_CONTRAST * texture[..., None]).astype(np.float32)


def _centres(size: int) -> Float32[np.ndarray, "size"]:
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the edge (negative inside) of a shape of radius 1; the four have nearly equal areas."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - 1.0
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.9
    if shape == "triangle":
        slanted = _SIN_60 * np.abs(u) - 0.5 * v
        return np.maximum(slanted, v) - 0.72
    au, av = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(au - 1.15, av - 0.42), np.maximum(au - 0.42, av - 1.15))


def render(
    background: Float32[np.ndarray, "h w 3"],
    objects: tuple[ObjectInfo, ...],
    tracks: Float32[np.ndarray, "objects t 4"],
) -> UInt8[np.ndarray, "t h w 3"]:
    """Draw the objects over the background with anti-aliased edges, the main one in front."""
    height, width = background.shape[:2]
    frames = np.repeat(background[None] * 255.0, tracks.shape[1], axis=0)  # (t, h, w, 3)
    # Frames that are not square keep shapes undistorted: the unit is the shorter side.
    unit = min(height, width)
    scale_x, scale_y = width / unit, height / unit
    for info, track in zip(reversed(objects), reversed(tracks), strict=True):
        x, y, radius, angle = (column[:, None, None] for column in track.T)  # (t, 1, 1)
        du = (_centres(width)[None, None] - x) * (scale_x / radius)  # (t, 1, w)
        dv = (_centres(height)[None, :, None] - y) * (scale_y / radius)  # (t, h, 1)
        cos, sin = np.cos(angle), np.sin(angle)
        distance = _signed_distance(SHAPES[info.shape], cos * du + sin * dv, cos * dv - sin * du)  # (t, h, w)
        coverage = np.clip(0.5 - distance * (radius * unit / _EDGE_PIXELS), 0.0, 1.0)
        frames += coverage[..., None] * (PALETTE[info.color] * 255.0 - frames)
    return (frames + 0.5).clip(0, 255).astype(np.uint8)
