"""The protocol "folders": any two folders of videos or images, without a download.

Mine beside real: similarity of the clips that belong together, measures of change over time, and a Fréchet distance on
features of a network that is at hand (see `networks/clip_features.py`). Which frames of which videos are compared is
decided before anything is measured; clips are read, measured and dropped.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import DEFAULT_CONVENTION, convention_named
from mutoscope.evaluation.metrics.intervals import CI95_METHOD
from mutoscope.evaluation.metrics.pixel import psnr_mean_of_frames, psnr_of_clip
from mutoscope.evaluation.metrics.ssim import SIZE as SSIM_WINDOW
from mutoscope.evaluation.metrics.ssim import ssim_of_clip
from mutoscope.evaluation.metrics.temporal import drift, flicker, frame_curves, motion
from mutoscope.evaluation.networks.clip_features import (
    PROBED_CLIPS,
    Familiarity,
    FeatureNetwork,
    evenly,
    open_features,
    shapes_familiarity,
)
from mutoscope.evaluation.networks.extractors import Extractors, WeightFiles, lpips_of_clips
from mutoscope.evaluation.networks.i3d import MIN_FRAMES as I3D_FRAMES
from mutoscope.evaluation.plan import Outcome, Plan, Settings, Side
from mutoscope.evaluation.protocols.folders_figures import Compared, caveats, figures
from mutoscope.evaluation.rows import CHUNK, Rows, chunk_ranges
from mutoscope.evaluation.sources.clip_choice import (
    CLIP_FRAMES,
    Frame,
    Scanned,
    common_frame,
    frame_notes,
    own_frame,
    pairs_of,
    scan,
    with_clips,
)
from mutoscope.evaluation.sources.footage import FootageFolder, Take, digest, open_footage
from mutoscope.evaluation.sources.pairing import Pairing, pair_videos

FOLDERS = "folders"
MINE, REAL, PAIRED = "mine", "real", "pairs"
DEFAULT_CLIPS = 256  # per side
DRIFT_FRAMES, FLICKER_FRAMES = 2, 3  # least lengths
THUMBNAIL = 4  # pixels per side: enough to tell whether two clips show the same scene


@dataclass(frozen=True)
class FoldersPlan(Plan):
    """One comparison. `real` is None without a reference; `pairs` are the same clips of mine and of real.

    familiarity: how near the real clips (mine, without a reference) are to the data of the feature network.
    """

    frame: Frame
    mine: Scanned
    seed: int
    batch_size: int
    real: Scanned | None = None
    pairs: tuple[tuple[Take, Take], ...] = ()
    pairing: Pairing = Pairing("nothing to pair with")  # noqa: RUF009
    features: FeatureNetwork | None = None
    familiarity: Familiarity | None = None
    extractors: Extractors = Extractors(convention_named(DEFAULT_CONVENTION))  # noqa: RUF009
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return FOLDERS

    @property
    def clips(self) -> dict[str, tuple[tuple[Take, ...], ...]]:
        """What is measured, by side: clips alone, or pairs of them."""
        found: dict[str, tuple[tuple[Take, ...], ...]] = {MINE: tuple((take,) for take in self.mine.takes)}
        if self.real is not None:
            found[REAL] = tuple((take,) for take in self.real.takes)
        return found | ({PAIRED: self.pairs} if self.pairs else {})

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(
            Side(label, chunk_ranges(len(clips), CHUNK), partial(self.measure, clips), at_least=1)
            for label, clips in self.clips.items()
        )

    def settings(self) -> dict[str, object]:
        return {
            "protocol": FOLDERS,
            "frame": [self.frame.num_frames, self.frame.fps, *self.frame.size],
            "features": self.features and self.features.as_dict(),
            "weights_sha256": self.extractors.sha256,
            "batch_size": self.batch_size,
            "clips_sha256": {
                label: digest([take for group in clips for take in group]) for label, clips in self.clips.items()
            },
        }

    def measure(self, clips: Sequence[tuple[Take, ...]], numbers: range) -> Rows:
        """Rows of some clips, a batch at a time; a clip that cannot be read is omitted and noted."""
        parts: list[dict[str, Tensor]] = []
        notes: list[str] = []
        size = 1 if clips is self.pairs else self.batch_size  # pairs differ in size
        for start in range(numbers.start, numbers.stop, size):
            found: dict[int, list[Tensor]] = {}
            for number in range(start, min(start + size, numbers.stop)):
                try:
                    found[number] = [torch.from_numpy(take.read()) for take in clips[number]]
                except UserError as error:
                    notes.append(f"{clips[number][0].footage.name}: {error}")
            if found:
                mine, *real = (torch.stack(column) for column in zip(*found.values(), strict=True))
                rows = pair_rows(mine, real[0], self.extractors) if real else self.clip_rows(mine, start)
                parts.append({"index": torch.tensor(list(found))} | rows)
        names = parts[0] if parts else {}
        return Rows({name: torch.cat([part[name] for part in parts]) for name in names}, tuple(notes))

    def clip_rows(self, clips: UInt8[Tensor, "n t h w 3"], first: int) -> dict[str, Tensor]:
        """Features and measures of change of clips `first`, `first` + 1 ..."""
        rows = self.extractors.read(clips, first) if self.extractors.reads_clips else {}
        if self.features is not None:
            rows["features"] = self.features.read(clips)
        return rows | change_rows(clips)

    def outcome(self, rows: Mapping[str, Rows]) -> Outcome:
        compared = Compared(
            mine=rows[MINE],
            real=rows.get(REAL),
            pairs=rows.get(PAIRED),
            mine_videos=tuple(take.video for take in self.mine.takes),
            real_videos=() if self.real is None else tuple(take.video for take in self.real.takes),
            pair_videos=tuple((own.video, other.video) for own, other in self.pairs),
            network=None if self.features is None else self.features.name,
            biased=self.extractors.convention.biased,
            seed=self.seed,
        )
        omitted = [*self.mine.problems, *(() if self.real is None else self.real.problems)]
        omitted += [note for side in rows.values() for note in side.notes]
        details = {
            "caveats": [*self.caveats, *caveats(compared)],
            "protocol_details": self.described(compared, omitted),
            "warnings": [f"{len(omitted)} videos or clips were omitted; the first: {omitted[0]}"] if omitted else [],
        }
        if self.real is not None:
            details |= {"num_real": compared.num_real, "reference": str(self.real.folder.path)}
        return Outcome(figures(compared), len(compared.mine), details)

    def described(self, compared: Compared, omitted: Sequence[str]) -> dict[str, object]:
        """Everything the figures depend on beside the two sides."""
        return {
            "num_frames": self.frame.num_frames,
            "fps": self.frame.fps,
            "size": list(self.frame.size),
            "mine": self.mine.as_dict(),
            "real": self.real and self.real.as_dict(),
            "pairing": {
                "how": self.pairing.how,
                "videos": len({own.video for own, _ in self.pairs}),
                "clips": compared.num_pairs,
                "identical_clips": compared.num_identical,
                "sizes": sorted({own.size for own, _ in self.pairs}),
            },
            "features": self.described_features(compared),
            "convention": None if self.extractors.i3d is None else self.extractors.convention.as_dict(),
            "weights_sha256": self.extractors.sha256 or {},
            "seed": self.seed,
            "batch_size": self.batch_size,
            "ci95": CI95_METHOD,
            "notes": [*self.notes, *compared.notes],
            "skipped": list(omitted),
            "versions": {name: version(name) for name in ("torch", "numpy")},
        }

    def described_features(self, compared: Compared) -> dict[str, object] | None:
        """What the Fréchet distance is computed from; None without one."""
        if self.features is None or not compared.has_distance:
            return None
        return self.features.as_dict() | {
            "dimension": compared.dimension,
            "clips": [len(compared.mine), compared.num_real],
            "clips_of_halves": compared.num_of_halves,
            "familiarity": self.familiarity and self.familiarity.as_dict(),
        }

    @property
    def is_of_shapes(self) -> bool:
        """Whether the protocols of the shapes dataset fit these videos."""
        enough = len(self.mine.videos) > 1 and self.frame.num_frames == CLIP_FRAMES
        return enough and self.familiarity is not None and not self.familiarity.is_far


# ----------------------------------------------------------------------------------------------------------- planning


def holds_videos(source: object) -> bool:
    """Whether a source is a path of videos: neither a model folder, a bundled name nor something loaded."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(source).expanduser()
    return path.is_file() or (path.is_dir() and not (path / hub.INDEX).is_file())


def open_folders(source: object, settings: Settings) -> FoldersPlan:
    """Find the videos of both sides and choose the clips. Raises UserError if there is nothing to compare."""
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"Protocol {FOLDERS!r} compares folders of videos; name a path.")
    refuse_settings_of_models(settings)
    mine = open_footage(source)
    wanted = settings.num_clips or DEFAULT_CLIPS
    if settings.reference is None:
        return alone(scan(mine, wanted, settings.progress), wanted, settings)
    real = open_footage(settings.reference)
    pairing = paired(mine, real, settings)
    pairing = replace(pairing, pairs=tuple(pairing.pairs[i] for i in evenly(len(pairing.pairs), wanted)))
    mine_side = scan(mine, wanted, settings.progress, [i for i, _ in pairing.pairs])
    real_side = scan(real, wanted, settings.progress, [j for _, j in pairing.pairs])
    return compared(mine_side, real_side, pairing, wanted, settings)


def refuse_settings_of_models(settings: Settings) -> None:
    """Raises UserError for settings that do nothing in a comparison of videos."""
    others = {
        "--task": settings.task is not None,
        "--paste-given": settings.paste_given,
        "--split": settings.split is not None,
        **{name: value is not None for name, value in settings.options.items()},
    }
    if unused := [flag for flag, is_used in others.items() if is_used]:
        raise UserError(f"Protocol {FOLDERS!r} compares videos; {unused[0]} belongs to other protocols: omit it.")
    if settings.convention is not None and settings.files.i3d is None:
        raise UserError("--convention is about FVD, which needs I3D's weights: add --i3d FILE, or omit it.")
    if settings.reference is None:
        with_real = {
            "--features": settings.features is not None,
            "--pairs": settings.pairs != "names",
            "A weights file": settings.files != WeightFiles(),
        }
        if unused := [flag for flag, is_used in with_real.items() if is_used]:
            raise UserError(f"{unused[0]} is for a comparison with real videos: add --reference FOLDER.")


def paired(mine: FootageFolder, real: FootageFolder, settings: Settings) -> Pairing:
    """Pairs by index among the videos of both folders; two single files are a pair whatever their names."""
    if mine.path.is_file() and real.path.is_file() and settings.pairs != "none":
        return Pairing("one file with the other", ((0, 0),))
    own, others = ([video.name for video in folder.videos] for folder in (mine, real))
    return pair_videos(own, others, settings.pairs)


def alone(mine: Scanned, wanted: int, settings: Settings) -> FoldersPlan:
    """A folder without a reference: only measures that need none."""
    frame = own_frame(mine, settings.by_frame, settings.max_side)
    mine = with_clips(mine, frame, wanted)
    clips = readable(mine.takes)
    found = None if clips is None else shapes_familiarity(clips)
    shapes = "" if found is None or not found.is_far else ' (which holds no clips of the synthetic dataset "shapes")'
    caveat = (
        f"There is nothing to compare {mine.folder.path}{shapes} with: these measures need no reference, and mean "
        "little without those of real videos; --reference FOLDER adds them."
    )
    notes = mine.folder.notes
    return FoldersPlan(
        frame,
        mine,
        settings.seed,
        settings.batch_size,
        familiarity=found,
        caveats=(caveat,),
        notes=notes,
    )


def compared(mine: Scanned, real: Scanned, pairing: Pairing, wanted: int, settings: Settings) -> FoldersPlan:
    """The clips of both sides, with the networks that measure them."""
    frame = common_frame(mine, real, settings.by_frame, settings.max_side)
    mine, real = (with_clips(side, frame, wanted) for side in (mine, real))
    features = open_features(settings.features, frame.num_frames, settings.classifier, settings.device)
    clips = readable(real.takes)
    found = None if clips is None else features.familiarity(clips)
    measurable = min(len(mine.takes), len(real.takes)) > 1
    far = measurable and found is not None and found.is_far
    warned = [features.far_note(str(real.folder.path), found)] if found is not None and far else []
    if mine.folder.is_same(real.folder):
        warned.append("Both sides are the same folder, so every difference is zero by construction.")
    pairs, pair_notes = pairs_of(mine, real, pairing, frame, wanted, settings.max_side)
    notes = (*mine.folder.notes, *real.folder.notes, *frame_notes(mine, real, frame, settings.by_frame), *pair_notes)
    return FoldersPlan(
        frame,
        mine,
        settings.seed,
        settings.batch_size,
        real=real,
        pairs=pairs,
        pairing=pairing,
        features=features,
        familiarity=found,
        extractors=extractors_for(frame, settings),
        caveats=tuple(warned),
        notes=notes,
    )


def extractors_for(frame: Frame, settings: Settings) -> Extractors:
    """Networks whose weights the user has. Raises UserError for files that do not fit, and for clips too short."""
    if settings.files.i3d is not None and frame.num_frames < I3D_FRAMES:
        raise UserError(f"I3D needs clips of {I3D_FRAMES} frames and more, these have {frame.num_frames}: omit --i3d.")
    convention = convention_named(settings.convention or DEFAULT_CONVENTION)
    return Extractors.load(settings.files, convention, settings.device, settings.batch_size)


def readable(takes: Sequence[Take]) -> UInt8[Tensor, "n t h w 3"] | None:
    """At most 16 evenly chosen clips; None if none of them can be read."""

    def found() -> Iterable[Tensor]:
        for number in evenly(len(takes), PROBED_CLIPS):
            try:
                yield torch.from_numpy(takes[number].read())
            except UserError:
                continue  # named when the clip is measured

    clips = list(found())
    return torch.stack(clips) if clips else None


# ---------------------------------------------------------------------------------------------------------- measuring


def change_rows(clips: UInt8[Tensor, "n t h w 3"]) -> dict[str, Tensor]:
    """Measures of clips that need neither a network nor a reference; motion and flicker where clips are long enough."""
    parts = [_change_row(clip) for clip in clips.split(1)]  # one at a time: they are copied several times in float64
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _change_row(clip: UInt8[Tensor, "1 t h w 3"]) -> dict[str, Tensor]:
    curves, length = frame_curves(clip), clip.shape[1]
    rows = {}
    if length >= DRIFT_FRAMES:
        rows["motion"] = motion(clip)
    if length >= FLICKER_FRAMES:
        rows["flicker"] = flicker(clip)
    rows |= {name: curve.mean(dim=1) for name, curve in curves.items()}
    if length >= DRIFT_FRAMES:
        rows |= {f"{name}_drift": drift(curve) for name, curve in curves.items()}
    return rows


def pair_rows(
    clip: UInt8[Tensor, "1 t h w 3"], real: UInt8[Tensor, "1 t h w 3"], extractors: Extractors
) -> dict[str, Tensor]:
    """Similarity of a clip to its real partner, and a thumbnail of both."""
    rows = {"psnr_db": psnr_of_clip(real, clip), "psnr_frames_db": psnr_mean_of_frames(real, clip)}
    if min(clip.shape[2:4]) >= SSIM_WINDOW:
        rows["ssim"] = ssim_of_clip(real, clip)
    if (metric := extractors.lpips) is not None:
        rows[f"lpips_{metric.trunk}"] = lpips_of_clips(metric, real, clip)
    return rows | {"thumbnail": thumbnail(clip), "thumbnail_real": thumbnail(real)}


def thumbnail(clip: UInt8[Tensor, "1 t h w 3"]) -> Float[Tensor, "1 d"]:
    """The mean frame of a clip at 4×4 pixels, in grey levels."""
    mean = rearrange(clip.float().mean(dim=1), "1 h w c -> 1 c h w")
    return F.adaptive_avg_pool2d(mean, THUMBNAIL).flatten(1)
