"""Which frames of which videos two folders are compared by: evenly chosen videos, at one length, rate and size."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from mutoscope.errors import UserError
from mutoscope.evaluation.networks.clip_features import evenly
from mutoscope.evaluation.sources.footage import SAME_RATE, Footage, FootageFolder, FootageInfo, Take
from mutoscope.evaluation.sources.pairing import Pairing
from mutoscope.evaluation.sources.windows import even_shares

CLIP_FRAMES = 16  # as in published protocols; fewer where the videos are shorter
USUAL_SHARE = 0.1  # of the videos may be shorter than a clip, and are omitted


@dataclass(frozen=True)
class Scanned:
    """The videos of one side that can be read, with their lengths, rates and sizes, and the clips chosen of them.

    positions: index of each video among those of the folder. problems: why other videos are omitted.
    """

    folder: FootageFolder
    videos: tuple[tuple[Footage, FootageInfo], ...]
    positions: tuple[int, ...]
    takes: tuple[Take, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def fps(self) -> float | None:
        """The most common rate; None for still images."""
        rates = Counter(round(info.fps, 2) for _, info in self.videos if info.fps is not None)
        return rates.most_common(1)[0][0] if rates else None

    @property
    def size(self) -> tuple[int, int]:
        """The most common height and width; of several equally common ones, that of middle area."""
        counts = Counter((info.height, info.width) for _, info in self.videos)
        most = sorted((size for size, count in counts.items() if count == max(counts.values())), key=math.prod)
        return most[len(most) // 2]

    def usual_length(self, fps: float | None) -> int:
        """Frames that nine in ten videos have at a common rate."""
        lengths = sorted(info.length(fps) for _, info in self.videos)
        return lengths[int(USUAL_SHARE * len(lengths))]

    def numbers(self) -> dict[int, int]:
        """Index among the videos that can be read, by index in the folder."""
        return {position: number for number, position in enumerate(self.positions)}

    def take(self, number: int, frames: tuple[int, ...], size: tuple[int, int]) -> Take:
        """A clip of video `number` at a size."""
        video, info = self.videos[number]
        return Take(video, frames, (info.height, info.width), size, number)

    def as_dict(self) -> dict[str, object]:
        """For the report."""
        return {
            "folder": str(self.folder.path),
            "kind": self.folder.kind,
            "videos_found": len(self.folder.videos),
            "videos": len({take.video for take in self.takes}),
            "clips": len(self.takes),
            "fps": self.fps,
            "size": list(self.size),
        }


@dataclass(frozen=True)
class Frame:
    """How clips of both sides are read: frames per clip, common rate (None: frame by frame), height and width."""

    num_frames: int
    fps: float | None
    size: tuple[int, int]


def scan(folder: FootageFolder, wanted: int, progress: bool, first: Sequence[int] = ()) -> Scanned:
    """Length, rate and size of `wanted` videos: all of `first`, which have a partner, and evenly chosen others.

    Raises UserError if none can be read.
    """
    rest = sorted(set(range(len(folder.videos))) - set(first))
    chosen = sorted({*first, *(rest[i] for i in evenly(len(rest), max(0, wanted - len(set(first)))))})
    videos, positions, problems = [], [], []
    for number in tqdm(chosen, f"looking at {folder.path.name}", disable=None if progress else True, leave=False):
        video = folder.videos[number]
        try:
            if (info := video.info()).num_frames < 1:
                raise UserError("holds no frame that can be decoded")
        except UserError as error:
            problems.append(f"{video.name}: {error}")
        else:
            videos.append((video, info))
            positions.append(number)
    if not videos:
        raise UserError(
            f"No video of {str(folder.path)!r} can be read: {len(problems)} tried; the first, {problems[0]}."
        )
    return Scanned(folder, tuple(videos), tuple(positions), problems=tuple(problems))


def common_frame(mine: Scanned, real: Scanned, by_frame: bool, max_side: int) -> Frame:
    """Length, rate and size at which both sides are read.

    The rate is the lower of the two usual ones, so that a clip covers the same time on both sides. The size is that of
    the real videos, cropped to the shape of mine and never larger than mine, since an enlarged clip would only look
    soft. No side of it exceeds `max_side` pixels.
    """
    rates = [side.fps for side in (mine, real)]
    fps = None if by_frame or None in rates else min(rate for rate in rates if rate is not None)
    length = min(CLIP_FRAMES, *(side.usual_length(fps) for side in (mine, real)))
    return Frame(length, fps, shared_size(mine.size, real.size, max_side))


def shared_size(mine: tuple[int, int], real: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size (h, w) of the real video in the shape of mine, neither larger than mine nor than `max_side`."""
    (height, width), (real_height, real_width) = mine, real
    if abs(real_height - height) <= 1 and abs(real_width - width) <= 1:  # a writer's padding of odd sizes
        return capped((min(height, real_height), min(width, real_width)), max_side)
    scale = min(1.0, real_height / height, real_width / width)
    return capped((max(1, round(height * scale)), max(1, round(width * scale))), max_side)


def own_frame(side: Scanned, by_frame: bool, max_side: int) -> Frame:
    """Length, rate and size of videos that are compared with none."""
    fps = None if by_frame else side.fps
    return Frame(min(CLIP_FRAMES, side.usual_length(fps)), fps, capped(side.size, max_side))


def capped(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size in its shape with no side above `max_side`."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def with_clips(side: Scanned, frame: Frame, wanted: int) -> Scanned:
    """The side with evenly placed clips of its videos, about `wanted` in all; too short videos become problems.

    A video gives as many clips as fit without an overlap, and no more than others do on average.
    """
    lengths = [info.length(frame.fps) for _, info in side.videos]
    usable = [number for number, length in enumerate(lengths) if length >= frame.num_frames]
    short = [
        f"{video.name}: {length} frames, a clip has {frame.num_frames}"
        for (video, _), length in zip(side.videos, lengths, strict=True)
        if length < frame.num_frames
    ]
    takes = [
        side.take(number, frames, frame.size)
        for number in usable
        for frames in windows_of([side.videos[number][1]], frame, max(1, wanted // len(usable)))
    ]
    return replace(side, takes=tuple(takes), problems=(*side.problems, *short))


def windows_of(infos: Sequence[FootageInfo], frame: Frame, wanted: int) -> list[tuple[int, ...]]:
    """Frame numbers of evenly placed clips of the first of these videos, within what all of them cover."""
    length = min(info.length(frame.fps) for info in infos)
    step, last = infos[0].step(frame.fps), length - frame.num_frames
    starts = (round(share * last) for share in even_shares(max(1, min(wanted, length // frame.num_frames))))
    return [tuple(round((start + i) * step) for i in range(frame.num_frames)) for start in starts]


def pairs_of(
    mine: Scanned, real: Scanned, pairing: Pairing, frame: Frame, wanted: int, max_side: int
) -> tuple[tuple[tuple[Take, Take], ...], list[str]]:
    """The same clips of two videos that belong together, at a size of their own, and a note on pairs of two lengths."""
    numbers, others = mine.numbers(), real.numbers()
    known = [(numbers[i], others[j]) for i, j in pairing.pairs if i in numbers and j in others]
    infos = [(mine.videos[i][1], real.videos[j][1]) for i, j in known]
    lengths = [tuple(info.length(frame.fps) for info in pair) for pair in infos]
    usable = [n for n, pair in enumerate(lengths) if min(pair) >= frame.num_frames]
    takes: list[tuple[Take, Take]] = []
    for n in usable:
        per_pair = max(1, wanted // len(usable))
        own, other = (windows_of(ordered, frame, per_pair) for ordered in (infos[n], infos[n][::-1]))
        (i, j), sizes = known[n], [(info.height, info.width) for info in infos[n]]
        size = shared_size(sizes[0], sizes[1], max_side)
        takes += [(mine.take(i, a, size), real.take(j, b, size)) for a, b in zip(own, other, strict=True)]
    uneven = sum(1 for n in usable if len(set(lengths[n])) > 1)
    notes = [f"{uneven} pairs differ in length; their common length, from the first frame on, counts"] if uneven else []
    return tuple(takes), notes


def frame_notes(mine: Scanned, real: Scanned, frame: Frame, by_frame: bool) -> list[str]:
    """How the two sides differ in rate, size and shape, and what was done about it."""
    notes = []
    for side in (mine, real):
        if frame.fps is not None and side.fps is not None and side.fps > frame.fps * (1 + SAME_RATE):
            step = FootageInfo(1, side.fps, 1, 1).step(frame.fps)
            notes.append(
                f"{side.folder.path} has {side.fps:g} frames/s and is read at {frame.fps:g}, every {step:.4g} frames; "
                "--by-frame compares frame by frame instead"
            )
        odd = sum(1 for _, info in side.videos if (info.height, info.width) != side.size)
        if odd:
            notes.append(f"{odd} videos of {side.folder.path} differ in size; all are brought to the size compared")
    if by_frame and mine.fps and real.fps and abs(mine.fps / real.fps - 1) > SAME_RATE:
        notes.append(f"compared frame by frame although the rates differ ({mine.fps:g} and {real.fps:g} frames/s)")
    shapes = [width / height for height, width in (mine.size, real.size)]
    if abs(shapes[0] / shapes[1] - 1) > SAME_RATE:
        notes.append(f"the videos of {real.folder.path} are cropped to the shape of the others")
    return notes
