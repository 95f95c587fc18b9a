"""BAIR robot pushing: TFRecord files of 30 frames of 64×64 with actions, in the authors' layout or TFDS' copy."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from mutoscope.data.media import covering_pixels, decode_image, stacked, visible_files, visible_matches
from mutoscope.data.sources.datasets.listing import Listing, RecordedActions, split_folder, sub_folder
from mutoscope.data.sources.datasets.tfrecord import Record, Values, index_records, parse_example, read_record
from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.sources.readers import Clip
from mutoscope.errors import UserError, reason

NUM_FRAMES, SIDE = 30, 64
Camera = Literal["image_aux1", "image_main"]
ACTIONS = {"actions": ("action", 4), "endeffector_positions": ("endeffector_pos", 3)}  # item key: feature, numbers
SUFFIXES = ("*.tfrecords", "*.tfrecord", "*.tfrecord-*")


@dataclass(frozen=True)
class RecordFile(MediaFile):
    """One trajectory: a record of a TFRecord file."""

    record: Record = field(default_factory=lambda: Record(0, 0))


def find_record_files(folder: Path, split: str) -> list[Path]:
    """The TFRecord files of a split: in a folder of that name, or with the name between hyphens (TFDS)."""
    base = sub_folder(folder, ("softmotion30_44k",)) or folder
    below = split_folder(base, split)
    if below is not None:
        return sorted({path for pattern in SUFFIXES for path in visible_matches(below, pattern)})
    return [path for path in visible_files(base) if f"-{split}.tfrecord-" in path.name]


def list_bair(folder: Path, split: str, camera: Camera = "image_aux1", with_actions: bool = False) -> Listing:
    """Every record is one video. Files that end early give the records before the damage and count as missing."""
    files: list[MediaFile] = []
    missing: list[FileProblem] = []
    for path in find_record_files(folder, split):
        try:
            records, problem = index_records(path)
        except UserError as error:
            records, problem = [], str(error)
        files += [RecordFile(path, -1, part=str(number), record=record) for number, record in enumerate(records)]
        missing += [FileProblem(str(path), problem)] if problem else []
    sizes = {name: size for name, (_, size) in ACTIONS.items()} if with_actions else {}
    reader = BairReader(camera, with_actions)
    names = tuple(f"action_{number}" for number in range(ACTIONS["actions"][1]))
    return Listing(
        "bair",
        folder,
        split,
        files,
        missing=missing,
        reader=reader,
        frame_fields=sizes,
        cameras=get_args(Camera),
        camera=camera,
        actions=RecordedActions(names) if with_actions else None,
    )


@dataclass(frozen=True)
class BairReader:
    """Trajectories of TFRecord files. with_actions: items hold "actions" float32 (t, 4), the command sent in each
    frame, and "endeffector_positions" float32 (t, 3).
    """

    camera: Camera = "image_aux1"
    with_actions: bool = False

    def num_frames(self, file: MediaFile) -> int:
        """Known without reading: every trajectory has 30 frames."""
        return NUM_FRAMES

    def read(
        self, file: MediaFile, start: int, max_frames: int, stride: int, size: tuple[int, int] | None
    ) -> tuple[Clip, int]:
        features = _features(file)
        numbers = range(start, NUM_FRAMES, stride)[:max_frames]
        frames = [_frame(file, features, self.camera, number, size) for number in numbers]
        return stacked(frames, size), NUM_FRAMES

    def fps(self, file: MediaFile) -> float | None:
        return None

    def extras(self, file: MediaFile, frames: Sequence[int]) -> dict[str, np.ndarray]:
        if not self.with_actions:
            return {}
        features = _features(file)
        rows = {key: _rows(file, features, name, width) for key, (name, width) in ACTIONS.items()}
        return {key: values[list(frames)] for key, values in rows.items()}


@lru_cache(maxsize=2)  # windows of one trajectory are often read in a row
def _features(file: MediaFile) -> dict[str, Values]:
    if not isinstance(file, RecordFile):
        raise TypeError(f"{file} is not a record")
    payload = read_record(file.path, file.record)
    try:
        return parse_example(payload)
    except ValueError as error:
        raise UserError(f"{file.name} is not a tf.train.Example: {reason(error)}") from None


def _frame(
    file: MediaFile, features: dict[str, Values], camera: Camera, number: int, size: tuple[int, int] | None
) -> UInt8[np.ndarray, "h w 3"]:
    """One frame: raw pixels in the authors' files (although the key says encoded), PNG in TFDS' copy."""
    from PIL import Image

    single, all_frames = features.get(f"{number}/{camera}/encoded"), features.get(camera)
    if isinstance(single, list) and len(single) == 1:
        data = single[0]
    elif isinstance(all_frames, list) and number < len(all_frames):
        data = all_frames[number]
    else:
        raise UserError(f"{file.name} holds no frame {number} of the camera {camera}; found {len(features)} features")
    if len(data) == SIDE * SIDE * 3:
        return covering_pixels(Image.frombytes("RGB", (SIDE, SIDE), data), size)
    try:
        return covering_pixels(decode_image(io.BytesIO(data)), size)
    except (OSError, ValueError, SyntaxError):
        raise UserError(
            f"{file.name}: frame {number} is neither raw {SIDE}x{SIDE} pixels nor an image ({len(data)} bytes)"
        ) from None


def _rows(file: MediaFile, features: dict[str, Values], name: str, width: int) -> Float32[np.ndarray, "t width"]:
    """A quantity of all frames, from one feature per frame or one for all of them."""
    whole = features.get(name)
    parts = [whole] if whole is not None else [features.get(f"{number}/{name}") for number in range(NUM_FRAMES)]
    arrays = [part for part in parts if isinstance(part, np.ndarray) and part.dtype == np.float32]
    values = np.concatenate([np.empty(0, np.float32), *arrays])
    if values.size != NUM_FRAMES * width:
        raise UserError(f"{file.name} holds {values.size} numbers of {name}, expected {NUM_FRAMES * width}")
    return values.reshape(NUM_FRAMES, width)
