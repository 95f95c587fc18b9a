"""Which clips an evaluation measures: planned before anything is measured, so that what cannot work is said at once."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mutoscope.data.sources.folder import MediaFile, clip_span
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.extractors import Extractors
from mutoscope.evaluation.protocols.protocol import checked_count
from mutoscope.evaluation.protocols.published import SHAPES, VideoProtocol
from mutoscope.evaluation.rows import CHUNK
from mutoscope.evaluation.sources.samples import Samples, asked_classes, cycled
from mutoscope.evaluation.sources.windows import Listing, Window, windows

Found = dict[int, tuple[Tensor, ...]]  # by number: a clip, and the real clip it belongs to if there is one


@dataclass(frozen=True)
class Side:
    """The clips of one side. windows: what is read; partners: the real clip that each belongs to, from `real`.

    With `samples` clips are made instead of read, of the classes `labels` and from their partners.
    """

    label: str
    count: int
    listing: Listing | None = None
    windows: tuple[Window, ...] = ()
    partners: tuple[Window, ...] | None = None
    real: Listing | None = None
    samples: Samples | None = None
    labels: tuple[int, ...] | None = None

    def read(self, protocol: VideoProtocol, numbers: range) -> tuple[Found, list[str]]:
        """Some clips, with their partners, and why others could not be read."""
        found, notes = {}, []
        for number in numbers:
            try:
                found[number] = self._read(protocol, number)
            except UserError as error:
                notes.append(f"{self._name(number)}: {error}")
        return (found if self.samples is None else self._made(protocol, found, numbers)), notes

    def _read(self, protocol: VideoProtocol, number: int) -> tuple[Tensor, ...]:
        """The clip and its partner; of clips that are made later, the partner alone."""
        clips: tuple[Tensor, ...] = ()
        if self.listing is not None:
            stride = protocol.frame_stride if self.label != "generated" else 1
            clips = (self.listing.read(self.windows[number], protocol.num_frames, stride, protocol.size),)
        if self.partners is None or self.real is None:
            return clips
        size = tuple(clips[0].shape[1:3]) if clips else protocol.size or self._made_size()
        return *clips, self.real.read(self.partners[number], protocol.num_frames, protocol.frame_stride, size)

    def _made(self, protocol: VideoProtocol, found: Found, numbers: range) -> Found:
        """Clips made from what was read, in one call."""
        assert self.samples is not None
        if not found:
            return {}
        kept = list(found)
        real = torch.stack([found[number][0] for number in kept]) if self.partners is not None else None
        labels = None if self.labels is None else [self.labels[number] for number in kept]
        clips = self.samples.make(numbers.start, len(kept), labels, real)
        return {number: (clip, *found[number]) for number, clip in zip(kept, clips, strict=True)}

    def _made_size(self) -> tuple[int, int] | None:
        return None if self.samples is None else (self.samples.pipeline.index.height, self.samples.pipeline.index.width)

    def _name(self, number: int) -> str:
        windows = self.windows or self.partners or ()
        return Path(windows[number].file.name).name

    def digest(self) -> str:
        """SHA-256 of what is read: files, their sizes, and places in them."""
        rows = [
            [str(clip.file.name), _size(clip.file), clip.start, clip.share]
            for clip in (*self.windows, *(self.partners or ()))
        ]
        return hashlib.sha256(json.dumps([rows, self.labels]).encode()).hexdigest()


def _size(file: MediaFile) -> int:
    """0 for clips that are rendered when they are read."""
    return file.path.stat().st_size if file.path.exists() else 0


@dataclass(frozen=True)
class Job:
    """One evaluation, ready to be measured. again: as many further real clips, where there are any."""

    protocol: VideoProtocol
    extractors: Extractors
    repeats: int
    num_clips: int
    made: Side
    real: Side
    seed: int
    again: Side | None = None
    notes: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[Side, ...]:
        return (self.real, self.made) if self.again is None else (self.real, self.made, self.again)


def plan(
    protocol: VideoProtocol,
    extractors: Extractors,
    generated: Listing | Samples,
    real: Listing,
    num_clips: int | None,
    seed: int,
) -> Job:
    """Which clips are measured. Raises UserError where a folder holds too few."""
    seen, again = real_sides(protocol, real, num_clips, seed)
    notes = real.notes
    if isinstance(generated, Samples):
        wanted = checked_count(num_clips or protocol.num_clips or seen.count)
        repeats = 1 if num_clips else protocol.repeats
        made, how = made_side(generated, seen, wanted * repeats, seed)
        notes = (*notes, how) if how else notes
    else:
        wanted = checked_count(num_clips or protocol.num_clips or max(len(generated.files), 2))
        repeats = 1 if num_clips else min(protocol.repeats, len(generated.files) // wanted)
        made = folder_side(protocol, generated, real, wanted, repeats)
    return Job(protocol, extractors, repeats, wanted, made, seen, seed, again, notes)


def real_sides(protocol: VideoProtocol, real: Listing, num_clips: int | None, seed: int) -> tuple[Side, Side | None]:
    """The real clips, and of the built-in world as many further ones."""
    wanted = num_clips or protocol.num_real
    if protocol.dataset == SHAPES:
        count = wanted or len(real.files) // 2
        clips = tuple(Window(file) for file in real.files[: 2 * count])
        return Side("real", count, real, clips[:count]), Side("again", count, real, clips[count:])
    seen = windows(real, protocol.windows, clip_span(protocol.num_frames, protocol.frame_stride), wanted, seed)
    if len(seen) < (least := wanted or 2):
        raise UserError(
            f"{str(real.folder)!r} holds {_count(real, protocol)} and so {len(seen):,} real clips, {least:,} are "
            "needed: add videos or ask for fewer with --num-clips (figures of different counts do not compare)."
        )
    return Side("real", len(seen), real, tuple(seen)), None


def made_side(samples: Samples, seen: Side, count: int, seed: int) -> tuple[Side, str]:
    """Clips that a model makes, and how their classes were chosen."""
    assert seen.listing is not None
    conditions = cycled(seen.windows, count, seed)
    labels, how = asked_classes(samples, seen.listing.classes, conditions, count)
    partners = conditions if samples.takes_pixels else None
    return Side("generated", count, partners=partners, real=seen.listing, samples=samples, labels=labels), how


def folder_side(protocol: VideoProtocol, generated: Listing, real: Listing, wanted: int, repeats: int) -> Side:
    """Videos of a folder in order of path, paired with real ones where all are named after one."""
    if len(generated.files) < wanted:
        raise UserError(
            f"{str(generated.folder)!r} holds {_count(generated, protocol)}, {wanted:,} are needed: add videos or ask "
            "for fewer with --num-clips (figures of different counts do not compare)."
        )
    samples = pairs(generated, real)
    # Sample 0 of every real video first, then sample 1: a repeat holds all videos.
    order = sorted(samples, key=lambda file: (samples[file][0], file.path)) if samples else list(generated.files)
    made = tuple(Window(file) for file in order[: wanted * repeats])
    partners = tuple(samples[clip.file][1] for clip in made) if samples else None
    return Side("generated", len(made), generated, made, partners, real)


def _count(listing: Listing, protocol: VideoProtocol) -> str:
    short = f" ({len(listing.skipped)} left out; {listing.skipped[0]})" if listing.skipped else ""
    return f"{len(listing.files):,} usable videos of {protocol.num_frames} frames{short}"


def pairs(generated: Listing, real: Listing) -> dict[MediaFile, tuple[int, Window]] | None:
    """Number of the sample and first clip of the real video that each generated one is named after, if all are.

    "a/b" and "a/b-0" ... belong to the real video "a/b". Entries that are parts of a file have no such names.
    """
    if generated.folder.resolve() == real.folder.resolve() or any(file.part for file in real.files):
        return None
    known = {real.name(file): Window(file) for file in real.files}
    found: dict[MediaFile, tuple[int, Window]] = {}
    for file in generated.files:
        name = generated.name(file)
        match = re.fullmatch(r"(.+)[-_/](\d+)", name)
        if name in known:
            found[file] = (0, known[name])
        elif match and match[1] in known:
            found[file] = (int(match[2]), known[match[1]])
        else:
            return None
    return found


def settings(job: Job) -> dict[str, object]:
    """What rows depend on: an evaluation may only be continued under the same."""
    sides: Sequence[Side] = job.sides
    return {
        "protocol": job.protocol.name,
        "convention": job.protocol.convention,
        "weights_sha256": job.extractors.sha256,
        "batch_size": job.extractors.batch_size,
        "chunk": CHUNK,
        "clips": {side.label: side.count for side in sides},
        "clips_sha256": {side.label: side.digest() for side in sides},
        "generated": None if job.made.samples is None else job.made.samples.described(),
    }
