"""Published protocols: generated clips against real ones, both streamed through feature networks.

Which clips are measured is decided before anything is measured, so that impossible requests fail at once.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from mutoscope.data.sources.folder import MediaFile, clip_span
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import convention_named
from mutoscope.evaluation.metrics.intervals import checked_count
from mutoscope.evaluation.metrics.pixel import psnr_of_clip, psnr_per_frame
from mutoscope.evaluation.metrics.ssim import SIZE as SSIM_WINDOW
from mutoscope.evaluation.metrics.ssim import ssim_of_clip
from mutoscope.evaluation.metrics.temporal import flicker, frame_curves, motion
from mutoscope.evaluation.networks.clip_features import PROBED_CLIPS, evenly, far_from_shapes
from mutoscope.evaluation.networks.extractors import Extractors, WeightFiles, lpips_of_clips
from mutoscope.evaluation.networks.i3d import check_clip
from mutoscope.evaluation.plan import Outcome, Plan, Settings, Side
from mutoscope.evaluation.protocols.published import SHAPES, SHAPES_EXTRACTOR, VideoProtocol
from mutoscope.evaluation.protocols.published_figures import Sampled, curves, figures
from mutoscope.evaluation.rows import CHUNK, Rows, chunk_ranges
from mutoscope.evaluation.sources.model_clips import PREDICTION_TASKS, ProtocolClips, chosen_classes
from mutoscope.evaluation.sources.opened import (
    FolderSource,
    ListedSource,
    ModelSource,
    SourceLike,
    TokenizerSource,
    open_source,
)
from mutoscope.evaluation.sources.references import open_reference, wanted_folder
from mutoscope.evaluation.sources.windows import ClipListing, Window, cycled, list_samples, windows

I3D_WANTED = (
    "needs I3D's Kinetics-400 weights, which are not shipped: --i3d FILE, such as i3d_pretrained_400.pt of VideoGPT "
    "and TATS. Folders are compared without it by omitting --protocol."
)
Found = dict[int, tuple[Tensor, ...]]  # by number: a clip, and its real partner if it has one


@dataclass(frozen=True)
class ClipSet:
    """The clips of one side. `windows` are read; `partners` are the real clips, from `real`, of each clip.

    With `model`, clips are generated instead of read: of the classes `labels`, and from their partners.
    """

    label: str
    count: int
    listing: ClipListing | None = None
    windows: tuple[Window, ...] = ()
    partners: tuple[Window, ...] | None = None
    real: ClipListing | None = None
    model: ProtocolClips | None = None
    labels: tuple[int, ...] | None = None

    def read(self, protocol: VideoProtocol, numbers: range) -> tuple[Found, list[str]]:
        """Some clips with their partners, and a note on each that cannot be read."""
        found, notes = {}, []
        for number in numbers:
            try:
                found[number] = self._read(protocol, number)
            except UserError as error:
                notes.append(f"{self.name(number)}: {error}")
        return (found if self.model is None else self._generated(self.model, found, numbers)), notes

    def _read(self, protocol: VideoProtocol, number: int) -> tuple[Tensor, ...]:
        """The clip and its partner; the partner alone if the clip will be generated from it."""
        clips: tuple[Tensor, ...] = ()
        if self.listing is not None:
            stride = protocol.frame_stride if self.label != "generated" else 1
            clips = (self.listing.read(self.windows[number], protocol.num_frames, stride, protocol.size),)
        if self.partners is None or self.real is None:
            return clips
        generated_size = None if self.model is None else self.model.size
        size = (clips[0].shape[1], clips[0].shape[2]) if clips else protocol.size or generated_size
        return *clips, self.real.read(self.partners[number], protocol.num_frames, protocol.frame_stride, size)

    def _generated(self, model: ProtocolClips, found: Found, numbers: range) -> Found:
        """Clips generated in a single call from what was read."""
        if not found:
            return {}
        kept = list(found)
        real = torch.stack([found[number][0] for number in kept]) if self.partners is not None else None
        labels = None if self.labels is None else [self.labels[number] for number in kept]
        clips = model.generate(numbers.start, len(kept), labels, real)
        return {number: (clip, *found[number]) for number, clip in zip(kept, clips, strict=True)}

    def name(self, number: int) -> str:
        """File of a clip."""
        return Path((self.windows or self.partners or ())[number].file.name).name

    def digest(self) -> str:
        """SHA-256 of the files that are read, their sizes, and the positions of clips in them."""
        rows = [
            [str(clip.file.name), _size(clip.file), clip.start, clip.share]
            for clip in (*self.windows, *(self.partners or ()))
        ]
        return hashlib.sha256(json.dumps([rows, self.labels]).encode()).hexdigest()


def _size(file: MediaFile) -> int:
    """Bytes; 0 for clips that are rendered when they are read."""
    return file.path.stat().st_size if file.path.exists() else 0


@dataclass(frozen=True)
class PublishedPlan(Plan):
    """One evaluation. `again`: as many further real clips, for real against real. `departed`: what is not the
    protocol's. `notes`: how clips were chosen. `skipped`: why videos are omitted. `reference`: the folder as named."""

    protocol: VideoProtocol
    extractors: Extractors
    repeats: int
    num_clips: int
    generated: ClipSet
    real: ClipSet
    seed: int
    again: ClipSet | None = None
    notes: tuple[str, ...] = ()
    departed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    reference: str | None = None
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.protocol.name

    @property
    def clip_sets(self) -> tuple[ClipSet, ...]:
        both = (self.real, self.generated)
        return both if self.again is None else (*both, self.again)

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(Side(s.label, chunk_ranges(s.count, CHUNK), partial(self.measure, s)) for s in self.clip_sets)

    def settings(self) -> dict[str, object]:
        return {
            "protocol": self.protocol.name,
            "convention": self.protocol.convention,
            "weights_sha256": self.extractors.sha256,
            "batch_size": self.extractors.batch_size,
            "chunk": CHUNK,
            "clips": {clips.label: clips.count for clips in self.clip_sets},
            "clips_sha256": {clips.label: clips.digest() for clips in self.clip_sets},
            "generated": None if self.generated.model is None else self.generated.model.described(),
        }

    def measure(self, clips: ClipSet, numbers: range) -> Rows:
        """Rows of some clips of one side, a batch at a time; a clip that cannot be read is omitted and noted."""
        parts: list[dict[str, Tensor]] = []
        notes: list[str] = []
        size = self.extractors.batch_size
        for start in range(numbers.start, numbers.stop, size):
            found, lost = clips.read(self.protocol, range(start, min(start + size, numbers.stop)))
            notes += lost
            for group in _of_one_shape(found):
                own, *partner = (torch.stack(column) for column in zip(*(found[i] for i in group), strict=True))
                rows = clip_rows(self.extractors, self.protocol.given_frames, group[0], own, *partner)
                parts.append({"index": torch.tensor(group)} | rows)
        names = parts[0] if parts else {}
        return Rows({name: torch.cat([part[name] for part in parts]) for name in names}, tuple(notes))

    def outcome(self, rows: Mapping[str, Rows]) -> Outcome:
        generated, real = rows["generated"], rows["real"]
        notes = (*self.skipped, *generated.notes, *real.notes)
        details = {
            "num_real": len(real),
            "reference": self.reference,
            "published": {name: dict(numbers) for name, numbers in self.protocol.published.items()},
            "curves": curves(generated, real),
            "protocol_details": self.described(notes),
            "warnings": self.warnings(notes),
            "caveats": list(self.caveats),
        }
        sampled = Sampled(self.protocol, self.num_clips, self.repeats, self.seed, self.generated.partners)
        biased = self.extractors.convention.biased
        return Outcome(figures(sampled, biased, generated, real, rows.get("again")), len(generated), details)

    def warnings(self, notes: Sequence[str]) -> list[str]:
        """Why the figures do not compare with published ones, and how many videos are missing."""
        departed = "; ".join(self.departed)
        found = [f"{departed}: the figures do not compare with the protocol's."] if departed else []
        return found + ([f"{len(notes)} videos or clips were omitted; the first: {notes[0]}"] if notes else [])

    def described(self, notes: Sequence[str]) -> dict[str, object]:
        """Everything the figures depend on beside the two sides."""
        model, on_shapes = self.generated.model, self.protocol.extractor == SHAPES_EXTRACTOR
        return self.protocol.as_dict() | {
            "convention": None if on_shapes else self.extractors.convention.as_dict(),
            "weights_sha256": self.extractors.sha256,
            "seed": self.seed,
            "batch_size": self.extractors.batch_size,
            "repeats_measured": self.repeats,
            "paired": self.generated.partners is not None,
            "generated": None if model is None else model.described(),
            "notes": [*self.protocol.notes, *self.notes],
            "skipped": list(notes),
            "versions": {name: version(name) for name in ("torch", "numpy")},
        }


# ---------------------------------------------------------------------------------------------------------- planning


def open_published(source: SourceLike, protocol: VideoProtocol, settings: Settings) -> PublishedPlan:
    """Load networks, source and reference, and choose the clips. Raises UserError if they do not fit the protocol."""
    settings.refuse_flags_of_folders(protocol.name)
    departed = departures(protocol, settings)
    protocol = replace(protocol, convention=settings.convention or protocol.convention)
    if protocol.dataset != SHAPES:
        wanted_folder(protocol, settings.reference)  # before anything is loaded
    extractors = open_extractors(protocol, settings)
    generated = open_generated(source, protocol, settings)
    if isinstance(generated, ProtocolClips):
        departed += generated.departures()
        protocol = generated.protocol
    real = open_reference(protocol, settings.reference, settings.split, settings.num_clips)
    skipped = () if isinstance(generated, ProtocolClips) else generated.skipped
    plan = plan_clips(protocol, extractors, generated, real, settings.num_clips, settings.seed)
    skipped = (*skipped, *real.skipped)
    if protocol.extractor == SHAPES_EXTRACTOR and plan.generated.listing is not None:
        plan = replace(plan, caveats=tuple(far_from_shapes("these videos", probed(plan.generated, protocol))))
    return replace(plan, departed=tuple(departed), skipped=skipped, reference=settings.reference)


def probed(clips: ClipSet, protocol: VideoProtocol) -> Tensor:
    """At most 16 evenly chosen clips of a side, as stacked frames. Raises UserError if none of them can be read."""
    found: Found = {}
    for number in evenly(clips.count, PROBED_CLIPS):
        found |= clips.read(protocol, range(number, number + 1))[0]
    if not found:
        raise UserError(f"None of {clips.count} {clips.label} clips can be read; the first is {clips.name(0)}.")
    return torch.stack([clip for clip, *_ in found.values()])


def open_extractors(protocol: VideoProtocol, settings: Settings) -> Extractors:
    """The feature networks of a protocol. Raises UserError if the weights for its distance are missing."""
    convention = convention_named(protocol.convention)
    files, device, batch_size = settings.files, settings.device, settings.batch_size
    if protocol.extractor == SHAPES_EXTRACTOR:
        if files != WeightFiles():
            raise UserError(f"Protocol {protocol.name!r} has its own feature network: omit the weight files.")
        return Extractors.of_shapes(convention, device, batch_size, settings.classifier)
    if files.i3d is None:
        raise UserError(f"Protocol {protocol.name!r} {I3D_WANTED}")
    check_clip(protocol.num_frames)
    return Extractors.load(files, convention, device, batch_size)


def open_generated(source: SourceLike, protocol: VideoProtocol, settings: Settings) -> ClipListing | ProtocolClips:
    """The videos of a folder, or a model with its task."""
    match open_source(source, settings.device):
        case ListedSource(listing):
            return listing
        case TokenizerSource():
            raise UserError(f"Protocol {protocol.name!r} measures models and videos; this is a tokenizer alone.")
        case ModelSource() as model:
            return open_model(model, protocol, settings)
        case FolderSource(folder):
            refuse_settings_of_models(str(source), settings)
            return list_samples(folder, protocol.num_frames)


def refuse_settings_of_models(folder: str, settings: Settings) -> None:
    """Raises UserError for settings that videos cannot follow."""
    for_models = {"--task": settings.task, "--paste-given": settings.paste_given or None, **settings.options}
    if unused := [name for name, value in for_models.items() if value is not None]:
        raise UserError(f"{folder!r} is a folder of videos; {unused[0]} is for models that generate them.")


def open_model(source: ModelSource, protocol: VideoProtocol, settings: Settings) -> ProtocolClips:
    """A model under the protocol, which counts the context frames of its predictions."""
    options, paste = settings.options, settings.paste_given
    model = ProtocolClips.of(source.pipeline, protocol, settings.task, settings.seed, options, paste)
    if model.task in PREDICTION_TASKS:  # MCVD's averages omit these frames
        model = replace(model, protocol=replace(protocol, given_frames=model.given_frames))
    return model


def departures(protocol: VideoProtocol, settings: Settings) -> list[str]:
    """Differences between the requested evaluation and the protocol."""
    found, num_clips, convention, split = [], settings.num_clips, settings.convention, settings.split
    if num_clips is not None and num_clips != protocol.num_clips and protocol.num_clips is not None:
        found.append(f"{num_clips} clips instead of {protocol.num_clips:,}")
    if convention is not None and convention != protocol.convention:
        found.append(f"convention {convention!r} instead of {protocol.convention!r}")
    if split is not None and protocol.splits and (split,) != protocol.splits:
        found.append(f"split {split!r} instead of {' and '.join(protocol.splits)}")
    return found


def plan_clips(
    protocol: VideoProtocol,
    extractors: Extractors,
    generated: ClipListing | ProtocolClips,
    real: ClipListing,
    num_clips: int | None,
    seed: int,
) -> PublishedPlan:
    """Choose the clips of all sides. Raises UserError if a folder holds too few."""
    real_clips, again = real_clip_sets(protocol, real, num_clips, seed)
    notes = real.notes
    if isinstance(generated, ProtocolClips):
        wanted = checked_count(num_clips or protocol.num_clips or real_clips.count)
        repeats = 1 if num_clips else protocol.repeats
        clips, how = model_clip_set(generated, real_clips, real, wanted * repeats, seed)
        notes = (*notes, how) if how else notes
    else:
        wanted = checked_count(num_clips or protocol.num_clips or max(len(generated.files), 2))
        repeats = 1 if num_clips else min(protocol.repeats, len(generated.files) // wanted)
        clips = folder_clip_set(protocol, generated, real, wanted, repeats)
    return PublishedPlan(protocol, extractors, repeats, wanted, clips, real_clips, seed, again, notes)


def real_clip_sets(
    protocol: VideoProtocol, real: ClipListing, num_clips: int | None, seed: int
) -> tuple[ClipSet, ClipSet | None]:
    """The real clips; of the shapes dataset, as many further ones too."""
    wanted = num_clips or protocol.num_real
    if protocol.dataset == SHAPES:
        count = wanted or len(real.files) // 2
        clips = tuple(Window(file) for file in real.files[: 2 * count])
        return ClipSet("real", count, real, clips[:count]), ClipSet("again", count, real, clips[count:])
    found = windows(real, protocol.windows, clip_span(protocol.num_frames, protocol.frame_stride), wanted, seed)
    if len(found) < (least := wanted or 2):
        raise UserError(
            f"{str(real.folder)!r} holds {real.usable(protocol.num_frames)} and so {len(found):,} real clips, "
            f"{least:,} are needed: add videos or request fewer with --num-clips (figures of different counts do not "
            "compare)."
        )
    return ClipSet("real", len(found), real, tuple(found)), None


def model_clip_set(
    model: ProtocolClips, real_clips: ClipSet, real: ClipListing, count: int, seed: int
) -> tuple[ClipSet, str]:
    """Clips that a model generates, and how their classes are chosen."""
    conditions = cycled(real_clips.windows, count, seed)
    labels, how = chosen_classes(model, real.classes, conditions, count)
    partners = conditions if model.takes_pixels else None
    return ClipSet("generated", count, partners=partners, real=real, model=model, labels=labels), how


def folder_clip_set(
    protocol: VideoProtocol, generated: ClipListing, real: ClipListing, wanted: int, repeats: int
) -> ClipSet:
    """Videos of a folder in order of path, paired with real ones if all are named after one."""
    if len(generated.files) < wanted:
        raise UserError(generated.too_few(protocol.num_frames, wanted))
    samples = pairs(generated, real)
    # Sample 0 of every real video first, then sample 1: a repeat holds all videos.
    order = sorted(samples, key=lambda file: (samples[file][0], file.path)) if samples else list(generated.files)
    clips = tuple(Window(file) for file in order[: wanted * repeats])
    partners = tuple(samples[clip.file][1] for clip in clips) if samples else None
    return ClipSet("generated", len(clips), generated, clips, partners, real)


def pairs(generated: ClipListing, real: ClipListing) -> dict[MediaFile, tuple[int, Window]] | None:
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


# --------------------------------------------------------------------------------------------------------- measuring


def clip_rows(
    extractors: Extractors, given_frames: int, first: int, clips: Tensor, real: Tensor | None = None
) -> dict[str, Tensor]:
    """Features and simple statistics of clips (n, t, h, w, 3); with their real partners also distances to these.

    MAGVIT averages over all frames, MCVD over those after the `given_frames` context frames.
    """
    rows = extractors.read(clips, first)
    # One clip at a time, since these copy it several times in float64.
    others = [None] * len(clips) if real is None else real.split(1)
    parts = [pixel_rows(clip, other, given_frames) for clip, other in zip(clips.split(1), others, strict=True)]
    rows |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if (metric := extractors.lpips) is not None and real is not None:
        start = 0 if metric.trunk == "vgg" else given_frames  # MAGVIT's LPIPS uses VGG, MCVD's AlexNet
        rows[f"lpips_{metric.trunk}"] = lpips_of_clips(metric, real[:, start:], clips[:, start:])
    return rows


def pixel_rows(clips: Tensor, real: Tensor | None, given_frames: int) -> dict[str, Tensor]:
    """Statistics that need no network."""
    rows = {f"{name}_by_frame": curve for name, curve in frame_curves(clips).items()}
    rows |= {"motion": motion(clips), "flicker": flicker(clips)}
    if real is None:
        return rows
    rows["psnr_by_frame"] = psnr_per_frame(real, clips)
    rows["psnr_magvit_db"] = rows["psnr_by_frame"].mean(dim=1)
    rows["psnr_mcvd_db"] = psnr_of_clip(real[:, given_frames:], clips[:, given_frames:])
    if min(clips.shape[2:4]) >= SSIM_WINDOW:
        rows["ssim_magvit"] = ssim_of_clip(real, clips, "magvit")
        rows["ssim_mcvd"] = ssim_of_clip(real[:, given_frames:], clips[:, given_frames:], "mcvd")
    return rows


def _of_one_shape(clips: Mapping[int, tuple[Tensor, ...]]) -> list[list[int]]:
    """Numbers of consecutive clips that can be stacked."""
    groups: list[list[int]] = []
    for number, (clip, *_) in clips.items():
        if groups and clips[groups[-1][-1]][0].shape == clip.shape:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
