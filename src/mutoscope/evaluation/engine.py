"""`evaluate`: figures of a model, a tokenizer or a folder of videos under any protocol.

A protocol opens a plan: sides of clips, and how their rows become figures. The engine measures all sides chunk by chunk
(see `rows.py` for processes and for continuing a killed evaluation) and assembles the report.
"""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import torch

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.intervals import Figures
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.plan import MAX_SIDE, Outcome, Plan, Settings, Side, StreamSettings
from mutoscope.evaluation.protocols.folders import FOLDERS, holds_videos, open_folders
from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS, VideoProtocol
from mutoscope.evaluation.protocols.published_plan import open_published
from mutoscope.evaluation.protocols.shapes import ALL_THAT_FITS, SHAPES_PROTOCOLS, open_shapes
from mutoscope.evaluation.protocols.world import WORLD, open_world
from mutoscope.evaluation.rows import Rows, State, Together, agreed, gather_rows, rank_and_world_size
from mutoscope.evaluation.sources.footage import open_footage
from mutoscope.evaluation.sources.opened import SourceLike, name_of
from mutoscope.evaluation.sources.pairing import Pairs
from mutoscope.json_config import nearest
from mutoscope.ownership import owned

PROTOCOLS = (FOLDERS, WORLD, *SHAPES_PROTOCOLS, *VIDEO_PROTOCOLS)


class Report(TypedDict):
    """Figures and everything they depend on, as JSON; entries that not every protocol has come last.

    caveats: sentences without which a figure would mislead.
    """

    source: str
    protocol: str
    metrics: Figures
    num_clips: int
    seconds: float
    protocol_details: dict[str, object]
    num_real: NotRequired[int]
    reference: NotRequired[str | None]
    published: NotRequired[dict[str, dict[str, float]]]
    curves: NotRequired[dict[str, list[float | None]]]
    warnings: NotRequired[list[str]]
    caveats: NotRequired[list[str]]


def evaluate(
    source: SourceLike,
    protocol: str | VideoProtocol | None = None,
    *,
    num_clips: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    options: Mapping[str, object] | None = None,
    reference: str | os.PathLike[str] | None = None,
    split: str | None = None,
    task: str | None = None,
    paste_given: bool = False,
    convention: str | None = None,
    files: WeightFiles | None = None,
    classifier: ShapesClassifier | None = None,
    features: str | None = None,
    pairs: Pairs = "names",
    by_frame: bool = False,
    max_side: int = MAX_SIDE,
    streams: StreamSettings = StreamSettings(),  # noqa: B008
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    together: Together = nullcontext,
) -> Report:
    """Figures of `source` under a protocol, each {"value", "ci95"}, in a report that states what they depend on.

    `source` is a bundled name, a folder with model_index.json, a folder or listing of videos, a loaded pipeline or a
    tokenizer. `protocol` is a name of PROTOCOLS or a protocol of one's own. By default it is "folders" for videos with
    a `reference`, and for videos that are no clips of the shapes dataset; otherwise "shapes".

    "folders" compares any two folders of videos or images, or single files, without weights. `features` names the
    network of its Fréchet distance: "shapes-features", or a tokenizer (bundled name or folder), whose encoder is read.
    `pairs` says which clips belong together: of equal "names", in "order", or "none". Both sides are read at the lower
    of their frame rates, or, with `by_frame`, frame by frame; no side of a frame exceeds `max_side` pixels.

    Protocols of the shapes dataset: "shapes" measures whatever the source can do: generation from classes or captions
    and first-frame prediction of a model, reconstruction of a tokenizer, the videos of a folder; "shapes-generation"
    and the like measure one of them, and "shapes-tasks" each of the tasks a model was trained for. `num_clips` defaults
    to 256, or to all videos of a folder.

    Protocols of published tables compare with the real videos of `reference`, a dataset in its own layout or a folder
    of videos, in the protocol's split unless `split` names another. A model generates the protocol's clips from
    classes, frames or videos of the real ones; `task` chooses one of several tasks, and `paste_given` puts the
    conditioning pixels back over the result. `files` names the weights of the feature networks, `convention` another
    FVD convention. `num_clips`, `convention` and `split` depart from the protocol, which the report says. Clips that
    belong to a real one (generated from it, or named "name.mp4" or "name-0.mp4" ... for several samples) are also
    compared with it by PSNR, SSIM and LPIPS.

    "world" measures control and drift of a model of actions that streams, against the recordings of `reference` by
    episode; `streams` says how long streams are and how many (see `protocols/world.py`).

    Figures of different counts do not compare. At most `batch_size` clips are generated or read together; `options` go
    to the model's sampler; `classifier` replaces the bundled one. With `state`, a folder, finished chunks are stored
    there, and a killed evaluation continues to the same figures. Processes that joined a group (torchrun) share the
    clips; the report has figures on the first one only. `together` surrounds their exchanges.
    Raises UserError for sources, files, counts or settings that do not fit the protocol.
    """
    began = time.perf_counter()
    settings = Settings(
        num_clips=num_clips,
        seed=seed,
        batch_size=batch_size,
        device=device,
        options=options or {},
        reference=None if reference is None else os.fspath(reference),
        split=split,
        task=task,
        paste_given=paste_given,
        convention=convention,
        files=files or WeightFiles(),
        classifier=classifier,
        features=features,
        pairs=pairs,
        by_frame=by_frame,
        max_side=max_side,
        streams=streams,
        state=None if state is None else Path(state).expanduser(),
        progress=progress,
    )
    plan = open_plan(source, protocol, settings)
    is_first = rank_and_world_size()[0] == 0
    with ExitStack() as stack:
        if settings.state is not None:
            with agreed(together):
                if is_first:
                    stack.enter_context(owned(settings.state, "evaluate"))
        rows = measure(plan, State.open(state, {} if state is None else plan.settings(), together), progress)
    outcome = plan.outcome(rows) if is_first else Outcome({}, 0, {"protocol_details": {}})
    report = {
        "source": name_of(source),
        "protocol": plan.name,
        "metrics": outcome.metrics,
        "num_clips": outcome.num_clips,
        "seconds": round(time.perf_counter() - began, 3),
    }
    return cast(Report, report | outcome.details)


def open_plan(source: SourceLike, protocol: str | VideoProtocol | None, settings: Settings) -> Plan:
    """The plan of a protocol for a source. Raises UserError for an unknown name."""
    if protocol == WORLD:
        return open_world(source, settings)
    settings.refuse_flags_of_streams("folders or shapes" if protocol is None else str(protocol))
    if protocol is None:
        return open_default(source, settings)
    if isinstance(protocol, VideoProtocol):
        return open_published(source, protocol, settings)
    if protocol in VIDEO_PROTOCOLS:
        return open_published(source, VIDEO_PROTOCOLS[protocol], settings)
    if protocol in SHAPES_PROTOCOLS:
        return open_shapes(source, protocol, settings)
    if protocol == FOLDERS:
        return open_folders(source, settings)
    raise UserError(f"Unknown protocol {protocol!r}: {nearest(protocol, PROTOCOLS)}")


def open_default(source: SourceLike, settings: Settings) -> Plan:
    """The plan of the protocol that fits a source best.

    Raises UserError for a model with a reference, since what it should generate depends on the protocol.
    """
    if not holds_videos(source):
        if settings.reference is not None:
            if isinstance(source, str | os.PathLike) and not is_model(source):
                open_footage(source)  # says what is wrong with the path
            raise UserError(
                f"{name_of(source)!r} is no folder of videos: save its clips with mutoscope generate and compare their "
                "folder with --reference, or name the --protocol whose clips it is to generate, such as ucf101-magvit."
            )
        return open_shapes(source, ALL_THAT_FITS, settings)
    plan = open_folders(source, settings)
    if settings.reference is None and plan.is_of_shapes:
        return open_shapes(source, ALL_THAT_FITS, settings)
    return plan


def is_model(source: str | os.PathLike[str]) -> bool:
    """Whether a name or path is that of a model."""
    return os.fspath(source) in hub.bundled() or (Path(source).expanduser() / hub.INDEX).is_file()


def measure(plan: Plan, state: State, progress: bool = False) -> dict[str, Rows]:
    """Rows of all sides by label, on the first process; nothing on the others."""
    found = {side.label: measure_side(side, state, progress) for side in plan.sides}
    return {label: rows for label, rows in found.items() if rows is not None}


def measure_side(side: Side, state: State, progress: bool) -> Rows | None:
    """Rows of one side, on the first process. Raises UserError if fewer clips can be read than the side needs."""
    rows = gather_rows(side.chunks, side.measure, side.label, state, progress)
    if rows is not None and len(rows) < side.at_least:
        reason = f"; {rows.notes[0]}" if rows.notes else ""
        raise UserError(
            f"Only {len(rows)} {side.label} clips can be read, at least {side.at_least} are needed{reason}."
        )
    return rows
