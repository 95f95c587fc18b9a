"""Which clips are held back from training for validation: whole recordings, never windows of a recording."""

import warnings
from dataclasses import dataclass
from typing import Generic

import numpy as np
from jaxtyping import Int

from mutoscope.data.base import BatchT, ClipSource

FAR = 2**40  # first index of the held-back clips of an endless source: no run reads as many
NUM_FAR = 1024


@dataclass(frozen=True)
class Split(Generic[BatchT]):
    """The clips that are trained on, and those that are held back.

    indices: of the held-back clips in the source. note: which clips these are, for people.
    """

    training: ClipSource[BatchT]
    held_back: ClipSource[BatchT]
    indices: Int[np.ndarray, " m"]
    note: str


def split_clips(source: ClipSource[BatchT], share: float, seed: int = 0) -> Split[BatchT] | None:
    """Holds back this share of the recordings of `source`, at least one; None where the share is 0.

    One recording is drawn from each of equally long stretches of the list of recordings, so that the classes of a
    sorted folder are all represented. Where all clips are of a single recording its last clips are held back, and a
    warning says so; where clips are independent of each other, the last ones too. An endless source of independent
    clips loses none: its held-back clips have indices that training never reaches.
    A source of a single clip cannot be split: a warning, and None.

    Held-back clips have the frame interval 1 and no temporal gap, so that figures compare between runs. Of a token
    cache that stores the held-back recordings otherwise, only those clips are used that happen to be so, if any.
    """
    if share == 0:
        return None
    if source.episodes is None and source.num_clips is None:
        far = np.arange(FAR, FAR + NUM_FAR)
        note = "Validation is on clips of the endless dataset that training never reaches."
        return Split(source, source.among(far), far, note)
    episodes = np.arange(source.num_clips or 0) if source.episodes is None else source.episodes
    recordings = np.unique(episodes)
    if source.episodes is not None and len(recordings) > 1:
        chosen = stratified(recordings, share, seed)
        held = np.isin(episodes, chosen)
        return _split(source, held, f"{len(chosen):,} of {len(recordings):,} recordings are held back")
    if len(episodes) < 2:
        warnings.warn("The data are a single clip, so none can be held back for validation.", stacklevel=1)
        return None
    held = np.arange(len(episodes)) >= len(episodes) - number_held(len(episodes), share)
    if source.episodes is not None:
        warnings.warn(
            "All clips are from one recording: its last clips are held back for validation, which says less about "
            "other recordings, and clips that overlap share frames with training. Add recordings for better figures.",
            stacklevel=1,  # one warning a run, whoever splits
        )
    return _split(source, held, "The last clips are held back")


def number_held(count: int, share: float) -> int:
    """How many of `count` things are held back: the share of them, at least one, and never all."""
    return min(max(1, round(share * count)), count - 1)


def stratified(recordings: Int[np.ndarray, " n"], share: float, seed: int) -> Int[np.ndarray, " k"]:
    """The share of the recordings, one drawn at random from each of equally long stretches."""
    count = number_held(len(recordings), share)
    borders = np.arange(count + 1) * len(recordings) // count
    generator = np.random.Generator(np.random.PCG64(seed))
    return recordings[generator.integers(borders[:-1], borders[1:])]


def drawn_clips(source: ClipSource[BatchT], count: int) -> list[int]:
    """At most `count` clip indices of a source, the same every time; all over a finite one, in order."""
    if source.num_clips is None:
        return list(range(count))
    generator = np.random.Generator(np.random.PCG64(0))  # equal distances would meet a source with a period of its own
    return sorted(generator.permutation(source.num_clips)[:count].tolist())


def _split(source: ClipSource[BatchT], held: np.ndarray, rule: str) -> Split[BatchT]:
    indices = np.flatnonzero(held)
    if source.plain_rows is not None and source.plain_rows[indices].any():
        indices = indices[source.plain_rows[indices]]
    note = f"{rule} for validation: {len(indices):,} of {len(held):,} clips."
    return Split(source.among(np.flatnonzero(~held)), source.plain().among(indices), indices, note)
