"""Protocols of the shapes dataset: a model, a tokenizer or a folder of videos against held-out clips.

Every figure of the source is reported beside the same figure of as many real clips (`..._real`), because neither the
classifier nor a distance between finite sets is perfect. Clips are small (48 kB at 32×32), so the rows of a side are
the clips themselves, and the classifier reads them together once they are complete.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from mutoscope.data.sources.shapes.world import HELD_BACK_SEED, ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.intervals import CI95_METHOD, Figures, checked_count
from mutoscope.evaluation.networks.clip_features import far_from_shapes
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.plan import Outcome, Plan, Settings, Side
from mutoscope.evaluation.protocols.shapes_parts import (
    FilesPart,
    GenerationPart,
    Measured,
    Part,
    PredictionPart,
    Reals,
    ReconstructionPart,
    TasksPart,
    TextPart,
)
from mutoscope.evaluation.rows import Rows
from mutoscope.evaluation.sources.model_clips import ModelClips, prediction_task
from mutoscope.evaluation.sources.opened import (
    FolderSource,
    ListedSource,
    ModelSource,
    Source,
    SourceLike,
    TokenizerSource,
    open_source,
)
from mutoscope.evaluation.sources.shapes_clips import shapes_config_of
from mutoscope.evaluation.sources.windows import list_videos

ALL_THAT_FITS = "shapes"
GENERATION, TEXT, PREDICTION = "shapes-generation", "shapes-text", "shapes-prediction"
TASKS, RECONSTRUCTION, FILES = "shapes-tasks", "shapes-reconstruction", "shapes-files"
SHAPES_PROTOCOLS = (ALL_THAT_FITS, GENERATION, TEXT, PREDICTION, TASKS, RECONSTRUCTION, FILES)
MODEL_PARTS = {GENERATION: GenerationPart, TEXT: TextPart, PREDICTION: PredictionPart, TASKS: TasksPart}
DEFAULT_NUM_CLIPS = 256


@dataclass(frozen=True)
class ShapesProtocol:
    """Everything a figure depends on beside its source.

    `height`, `width`: size at which the classifier reads both sides, in pixels. `real_seed`: seed of the real clips;
    clips 0 ... num_clips - 1 are the real side, the next num_clips the other half of real against real. `options`: the
    sampler options that are not at their defaults.
    """

    name: str
    num_clips: int
    num_frames: int
    height: int
    width: int
    extractor_sha256: str
    seed: int
    frame_stride: int = 1
    extractor: str = "shapes-features"
    real_seed: int = HELD_BACK_SEED
    covariance: str = "unbiased"
    resize: str = "bilinear, antialiased, after a central crop to the aspect ratio, rounded to uint8"
    ci95: str = CI95_METHOD
    options: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class ShapesPlan(Plan):
    """One evaluation: the parts of a protocol that suit the source."""

    protocol: ShapesProtocol
    classifier: ShapesClassifier
    reals: Reals
    parts: Mapping[str, Part]
    batch_size: int
    source: Source

    @property
    def name(self) -> str:
        return self.protocol.name

    @property
    def sides(self) -> tuple[Side, ...]:
        return (*self.reals.sides(), *(side for part in self.parts.values() for side in part.sides()))

    def settings(self) -> dict[str, object]:
        return {
            "protocol": self.protocol.as_dict() | {"parts": list(self.parts)},
            "clips": asdict(self.reals.config),
            "batch_size": self.batch_size,
            "source": self.source.described(),
        }

    def outcome(self, rows: Mapping[str, Rows]) -> Outcome:
        measured = Measured(rows, self.classifier, self.protocol.seed)
        metrics: Figures = {}
        for part in self.parts.values():
            metrics |= part.figures(measured)
        protocol, details = self.protocol, {}
        if files := rows.get(FilesPart.label):
            details["caveats"] = far_from_shapes("these videos", files["video"])
            notes = (*protocol.notes, *(f"skipped {note}" for note in files.notes))
            protocol = replace(protocol, num_clips=len(files), notes=notes)
        details["protocol_details"] = protocol.as_dict() | {"parts": list(self.parts)}
        return Outcome(metrics, protocol.num_clips, details)


def open_shapes(source: SourceLike, name: str, settings: Settings) -> ShapesPlan:
    """Load the source and the classifier. Raises UserError for a source or settings that the protocol does not fit."""
    settings.refuse_flags_of_folders(name)
    refuse_settings_of_published(name, settings)
    if settings.num_clips is not None:
        checked_count(settings.num_clips)
    opened = open_source(source, settings.device)
    names = part_names(opened, name)
    config = shapes_config_of(opened.index)
    classifier = settings.classifier or ShapesClassifier.bundled(settings.device)
    opened = listed(opened, config, settings.num_clips)
    protocol = ShapesProtocol(
        name=name,
        num_clips=settings.num_clips or DEFAULT_NUM_CLIPS,
        num_frames=config.num_frames,
        height=classifier.height,
        width=classifier.width,
        extractor_sha256=classifier.sha256,
        seed=settings.seed,
        options=settings.options,
    )
    if isinstance(opened, ListedSource):
        notes = tuple(f"skipped {reason}" for reason in opened.listing.skipped)
        protocol = replace(protocol, num_clips=len(opened.listing.files), notes=notes)
    reals = Reals(config, protocol.num_clips, protocol.real_seed)
    parts = {name: open_part(name, opened, reals, settings) for name in names}
    return ShapesPlan(protocol, classifier, reals, parts, settings.batch_size, opened)


def refuse_settings_of_published(name: str, settings: Settings) -> None:
    """Raises UserError for settings that only published protocols have."""
    files = settings.files
    used = {
        "--reference": settings.reference is not None,
        "--i3d": files.i3d is not None,
        "--c3d": files.c3d is not None,
        "--inception": files.inception is not None,
        "--lpips": files.lpips is not None,
        "--convention": settings.convention is not None,
        "--split": settings.split is not None,
        "--task": settings.task is not None,
        "--paste-given": settings.paste_given,
    }
    flags = [flag for flag, is_used in used.items() if is_used]
    if flags or files != WeightFiles():
        flag = flags[0] if flags else "--i3d-sha256"
        raise UserError(f"{flag} belongs to the protocols of published tables; {name!r} has its own feature network.")


def part_names(source: Source, protocol: str) -> list[str]:
    """Parts to measure: the named one, or for "shapes" all usual ones. Raises UserError if the source cannot do it."""
    usual, further = possible_parts(source)
    chosen = usual if protocol == ALL_THAT_FITS else [protocol]
    possible = [*usual, *further]
    if not chosen or not set(chosen) <= set(possible):
        raise UserError(f"Protocol {protocol!r} does not fit this source; it can be measured by {', '.join(possible)}.")
    return chosen


def possible_parts(source: Source) -> tuple[list[str], list[str]]:
    """Parts that a source is usually measured by, and further ones that it can be measured by."""
    match source:
        case FolderSource() | ListedSource():
            return [FILES], []
        case TokenizerSource():
            return [RECONSTRUCTION], []
        case ModelSource(pipeline):
            tasks = pipeline.index.tasks
    suits = {
        GENERATION: "class-conditional" in tasks,
        TEXT: "text-conditional" in tasks,
        PREDICTION: prediction_task(tasks) is not None,
    }
    return [name for name, does in suits.items() if does], [TASKS, RECONSTRUCTION]


def listed(source: Source, config: ShapesConfig, num_clips: int | None) -> Source:
    """The source; of videos a listing of the first `num_clips`, by default all. Raises UserError for too few."""
    match source:
        case FolderSource(folder):
            listing = list_videos(folder, config.num_frames, wanted=num_clips)
        case ListedSource(listing):
            listing = replace(listing, files=listing.files[:num_clips])
        case _:
            return source
    if len(listing.files) < (wanted := num_clips or 2):
        raise UserError(listing.too_few(config.num_frames, wanted))
    return ListedSource(listing)


def open_part(name: str, source: Source, reals: Reals, settings: Settings) -> Part:
    """One part of a protocol, ready to be measured on the source, whose videos are listed."""
    match source:
        case ModelSource(pipeline) if name in MODEL_PARTS:
            model = ModelClips(pipeline, settings.seed, settings.options)
            return MODEL_PARTS[name](reals, settings.batch_size, model)
        case ModelSource(pipeline):
            return ReconstructionPart(reals, settings.batch_size, pipeline.tokenizer)
        case TokenizerSource(tokenizer):
            return ReconstructionPart(reals, settings.batch_size, tokenizer)
        case ListedSource(listing):
            return FilesPart(reals, listing)
        case FolderSource(folder):
            raise ValueError(f"the videos of {folder} are not listed")
