"""Recorded episodes with actions as a model reads them: at its frame size and rate, in its order of actions.

Row t of the actions is done in frame t and leads to frame t + 1. Frames and rows are counted at the rate of the model:
where that is a part of the recording's, rows in between are joined as in training.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from mutoscope.actions import ActionSpec
from mutoscope.data.fit import fit_frames
from mutoscope.data.held_back import stratified
from mutoscope.data.sources.datasets.listing import SPLIT_FOLDERS, SPLITS, Listing
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.sources.lerobot import EpisodeFile
from mutoscope.data.sources.lerobot_tables import is_lerobot, read_info, split_numbers
from mutoscope.data.sources.recordings import Recordings, list_recordings
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.clip_features import evenly
from mutoscope.evaluation.sources.footage import SAME_RATE
from mutoscope.evaluation.sources.windows import even_shares
from mutoscope.json_config import nearest

HALF = 0.5  # of the episodes, where a recording has no split of its own
EVALUATED_SPLITS = ("test", "validation")  # the first one that a recording has


@dataclass(frozen=True)
class Segment:
    """Frames start ... start + length - 1 of an episode. episode: its number among the `Episodes`."""

    episode: int
    start: int
    length: int


@dataclass(frozen=True)
class Episodes:
    """Some episodes of a recording. lengths: frames of each, at the rate of the model.

    order: column of the recording for each number of the model's actions. stride: frames of the recording from one
    frame of the model to the next.
    """

    listing: Listing
    spec: ActionSpec
    size: tuple[int, int]
    stride: int
    order: tuple[int, ...]
    files: tuple[MediaFile, ...]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def frames(self, segment: Segment) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames of a segment at the size of the model. Raises UserError where they cannot be read."""
        file = self.files[segment.episode]
        start, count = segment.start * self.stride, segment.length
        frames, _ = self.listing.reader.read(file, start, count, self.stride, self.size)
        if len(frames) < count:
            raise UserError(f"{file.name} gives {len(frames)} of the {count} frames from {start} on.")
        return fit_frames(frames, *self.size)

    def actions(self, segment: Segment) -> Float32[np.ndarray, "t a"]:
        """The rows of a segment in the units of the recording; that of an episode's last frame leads nowhere."""
        file = self.files[segment.episode]
        first, count = segment.start * self.stride, self.listing.reader.num_frames(file)
        last = min(count, (segment.start + segment.length) * self.stride)
        rows = self.listing.reader.extras(file, range(first, last))["actions"][:, list(self.order)]
        return self.spec.reduced(rows, self.stride)

    def all_actions(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """The rows of an episode that lead to a frame of it, without those that hold NaN."""
        rows = self.actions(Segment(episode, 0, self.lengths[episode]))[:-1]
        return rows[~np.isnan(rows).any(axis=1)]

    def label(self, episode: int) -> str | None:
        """Name of the class of an episode, or its task, which may be a class of the model; None without both."""
        number = self.files[episode].label
        named = self.listing.classes[number] if 0 <= number < len(self.listing.classes) else None
        return named or self.caption(episode) or None

    def caption(self, episode: int) -> str:
        return self.files[episode].caption

    def chosen(self, numbers: Sequence[int]) -> "Episodes":
        """The episodes of these numbers."""
        files, lengths = (tuple(values[i] for i in numbers) for values in (self.files, self.lengths))
        return replace(self, files=files, lengths=lengths)

    def segments(self, length: int, wanted: int) -> tuple[Segment, ...]:
        """At most `wanted` evenly placed segments of one length that do not overlap, as many of each long episode."""
        usable = [number for number, frames in enumerate(self.lengths) if frames >= length]
        per_episode = -(-wanted // max(1, len(usable)))
        found: list[Segment] = []
        for number in usable:
            room, count = self.lengths[number] - length, min(per_episode, self.lengths[number] // length)
            found += [Segment(number, round(share * room), length) for share in even_shares(count)]
        return tuple(found[i] for i in evenly(len(found), wanted))

    def digest(self) -> str:
        """SHA-256 of names, sizes on disk and lengths."""
        rows = [[f.name, f.path.stat().st_size, n] for f, n in zip(self.files, self.lengths, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class SplitEpisodes:
    """Two sets of episodes that share none. how: which episodes these are, in words. notes: what else was adapted."""

    training: Episodes
    evaluation: Episodes
    how: str
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------ opening


def open_split(
    reference: str, spec: ActionSpec, size: tuple[int, int], fps: float, least: int, split: str | None, seed: int
) -> SplitEpisodes:
    """The episodes of a recording that have at least `least` frames at `fps`, divided by episode.

    split: the part that is evaluated; by default "test" or "validation" where the recording has such a part, else one
    half of the episodes, drawn by `seed`. Raises UserError for a recording without actions or with other ones than
    those of `spec`, for episodes that are too short, and for an unknown split.
    """
    listing = list_recordings(Path(reference).expanduser())
    order = order_of_actions(listing, spec)
    stride, rate_notes = frames_per_step(Recordings(listing).fps, fps)
    files, lengths, problems = readable_episodes(listing, stride)
    usable = [number for number, length in enumerate(lengths) if length >= least]
    if len(usable) < 2:
        longest = max(lengths, default=0)
        raise UserError(
            f"{len(usable)} of {len(lengths)} episodes of {str(listing.folder)!r} have the {least} frames at {fps:g} "
            f"frames/s that this evaluation needs; the longest has {longest}: record at least 2 longer episodes."
        )
    episodes = Episodes(listing, spec, size, stride, order, tuple(files), tuple(lengths)).chosen(usable)
    training, evaluation, how = divided(episodes, split, seed)
    short = len(lengths) - len(usable)
    notes = [*rate_notes, *problems, *([f"{short} episodes are shorter than {least} frames"] if short else [])]
    return SplitEpisodes(episodes.chosen(training), episodes.chosen(evaluation), how, tuple(notes))


def order_of_actions(listing: Listing, spec: ActionSpec) -> tuple[int, ...]:
    """Column of the recording for each action of the model. Raises UserError unless both have the same names."""
    if listing.actions is None:
        raise UserError(
            f"{str(listing.folder)!r} has no actions: name recordings with actions, such as a LeRobot dataset or "
            "videos with NAME.actions.csv beside them."
        )
    found = listing.actions.names
    if set(found) != set(spec.names):
        raise UserError(
            f"The actions of {str(listing.folder)!r} are {', '.join(found)}, those of the model "
            f"{', '.join(spec.names)}: evaluate on recordings of the environment that the model was trained on."
        )
    return tuple(found.index(name) for name in spec.names)


def frames_per_step(recorded: float, fps: float) -> tuple[int, list[str]]:
    """Frames of the recording for each frame of the model, and a note where the rates do not fit."""
    stride = max(1, round(recorded / fps))
    if abs(recorded / stride / fps - 1) <= SAME_RATE:
        return stride, []
    return stride, [
        f"the recordings have {recorded:g} frames/s and are read every {stride} frames, at {recorded / stride:g}; the "
        f"model generates {fps:g}"
    ]


def readable_episodes(listing: Listing, stride: int) -> tuple[list[MediaFile], list[int], list[str]]:
    """Episodes that can be read, their lengths at the rate of the model, and why others cannot."""
    files, lengths = [], []
    problems = [f"{problem.path}: {problem.reason}" for problem in listing.missing]
    for file in listing.files:
        try:
            frames = listing.reader.num_frames(file)
        except UserError as error:
            problems.append(f"{file.name}: {error}")
            continue
        files.append(file)
        lengths.append(-(-frames // stride))
    return files, lengths, problems


# ------------------------------------------------------------------------------------------------------------ dividing


def divided(episodes: Episodes, split: str | None, seed: int) -> tuple[list[int], list[int], str]:
    """Numbers of the episodes to train on and to evaluate on, and how they were chosen."""
    known = named_splits(episodes)
    if split is not None and split not in known:
        raise UserError(
            f"{str(episodes.listing.folder)!r} has no split {split!r}: {nearest(split, known)}"
            if known
            else f"{str(episodes.listing.folder)!r} is not divided into splits: omit --split."
        )
    name = split or next((name for name in EVALUATED_SPLITS if known.get(name)), None)
    if name is None:
        held = set(stratified(np.arange(len(episodes)), HALF, seed).tolist())
        how = "no split of its own: one half of the episodes, drawn from each stretch of the recording, is evaluated"
    else:
        held, how = set(known[name]), f"the split {name} of the recording is evaluated"
    train = set(known.get("train", ())) - held if name is not None else set()
    rest = train or set(range(len(episodes))) - held
    if not rest or not held:
        raise UserError(
            f"{len(held)} episodes are to evaluate and {len(rest)} to train the inverse-dynamics network: both need at "
            "least one that is long enough."
        )
    return sorted(rest), sorted(held), how


def named_splits(episodes: Episodes) -> dict[str, list[int]]:
    """Numbers of the episodes of each split: by info.json, or by folders called train, validation or test."""
    listing = episodes.listing
    if is_lerobot(listing.folder):
        return lerobot_splits(listing.folder, episodes.files)
    found: Mapping[str, list[int]] = {name: [] for name in SPLITS}
    for number, file in enumerate(episodes.files):
        first = file.path.relative_to(listing.folder).parts[0] if file.path != listing.folder else ""
        for name in SPLITS:
            if first in SPLIT_FOLDERS[name]:
                found[name].append(number)
    return {name: numbers for name, numbers in found.items() if numbers}


def lerobot_splits(folder: Path, files: Sequence[MediaFile]) -> dict[str, list[int]]:
    """The splits of info.json under their usual names ("val" is validation); none where there is only one."""
    info, usual = read_info(folder), {other: name for name in SPLITS for other in SPLIT_FOLDERS[name]}
    found: dict[str, list[int]] = {}
    for name in info.splits if len(info.splits) > 1 else ():
        ranges = split_numbers(info, name) or ()
        found[usual.get(name, name)] = [
            number
            for number, file in enumerate(files)
            if isinstance(file, EpisodeFile) and any(file.episode in part for part in ranges)
        ]
    return found


# ----------------------------------------------------------------------------------------------------------- resampling


def resampled_actions(
    episodes: Episodes, label: str | None, count: int, generator: torch.Generator
) -> Float32[np.ndarray, "count a"]:
    """Rows of whole episodes of a class, in random order one after the other, the first `count` of them.

    Without an episode of that class, all episodes count.
    """
    same = [number for number in range(len(episodes)) if episodes.label(number) == label]
    pool = [rows for number in same or range(len(episodes)) if len(rows := episodes.all_actions(number))]
    if not pool:
        raise UserError(f"All actions of {str(episodes.listing.folder)!r} are unknown (NaN): record them again.")
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < count:
        parts.append(pool[int(torch.randint(len(pool), (), generator=generator))])
    return np.concatenate(parts)[:count].astype(np.float32)
