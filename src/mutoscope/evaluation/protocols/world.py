"""The protocol "world": control and drift of a model of actions that streams, against recordings with actions.

The recordings are divided by episode. On one part an inverse-dynamics network is trained; everything is measured on the
other. Figures are named after the folder of the recordings and compare with no figure of another one. What is generated
is described in `world_measures.py`, the figures in `world_figures.py`, the rule for streams in `metrics/alive.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.alive import WINDOW
from mutoscope.evaluation.metrics.intervals import CI95_METHOD
from mutoscope.evaluation.networks.clip_features import evenly
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.inverse_dynamics import (
    DynamicsConfig,
    DynamicsData,
    InverseDynamics,
    load_dynamics,
    reduced_frames,
    save_dynamics,
    train_dynamics,
)
from mutoscope.evaluation.networks.inverse_dynamics import described as described_config
from mutoscope.evaluation.plan import Outcome, Plan, Settings, Side
from mutoscope.evaluation.protocols.world_figures import WorldFigures
from mutoscope.evaluation.protocols.world_measures import (
    CONTEXT_FRAMES,
    HORIZONS,
    LEAST_HORIZON,
    NEXT_POSITIONS,
    WINDOW_STARTS,
    Layout,
    Measures,
)
from mutoscope.evaluation.rows import Rows, chunk_ranges, rank_and_world_size
from mutoscope.evaluation.sources.action_streams import StreamModel, as_tensor, open_streams
from mutoscope.evaluation.sources.episodes import Episodes, Segment, SplitEpisodes, open_split
from mutoscope.evaluation.sources.opened import SourceLike
from mutoscope.families.actions import parse_actions

WORLD = "world"
DEFAULT_CLIPS = 64
MOST_WINDOWS = 512  # real windows of either part of the episodes
MOST_FRAMES = 20_000  # that the inverse-dynamics network is trained on
READ_AT_ONCE = 256  # frames
HELD_FRAMES = 8  # for which a single action that leads away is held
NETWORK_FILE = "inverse-dynamics.safetensors"
TRAINING, REAL = "training-windows", "real-windows"
CLIPS, NEXT, STREAMS, RETURNS = "clips", "next-frames", "streams", "returns"


@dataclass(frozen=True)
class WorldPlan(Plan):
    """One evaluation. name_of_data: the prefix of all figures. segments: what each side reads, by label."""

    model: StreamModel
    split: SplitEpisodes
    layout: Layout
    config: DynamicsConfig
    chosen: Settings
    name_of_data: str
    segments: Mapping[str, tuple[Segment, ...]]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return WORLD

    @property
    def sides(self) -> tuple[Side, ...]:
        measures = Measures(
            self.model, self.split.evaluation, self.layout, partial(opened_network, self), self.chosen.seed
        )
        functions = {
            TRAINING: partial(measures.window_rows, self.split.training),
            REAL: measures.control_rows,
            CLIPS: measures.clip_rows,
            NEXT: measures.next_rows,
            STREAMS: measures.stream_rows,
            RETURNS: measures.return_rows,
        }
        # A chunk is one batch: what is finished is stored after every batch.
        return tuple(
            Side(label, chunk_ranges(len(found), self.chosen.batch_size), partial(functions[label], found))
            for label, found in self.segments.items()
        )

    def settings(self) -> dict[str, object]:
        streams, layout = self.chosen.streams, self.layout
        return {
            "protocol": WORLD,
            "model": self.model.described(),
            "training_sha256": self.split.training.digest(),
            "evaluation_sha256": self.split.evaluation.digest(),
            "seed": self.chosen.seed,
            "batch_size": self.chosen.batch_size,
            "counts": {label: len(found) for label, found in self.segments.items()},
            "frames": [layout.context, *layout.horizons, layout.history, *layout.window_starts, layout.total],
            "turn": [streams.there, streams.back],
            "network": described_config(self.config),
        }

    def outcome(self, rows: Mapping[str, Rows]) -> Outcome:
        found = WorldFigures(self.name_of_data, self.layout, self.model.spec, rows, self.chosen.seed)
        details: dict[str, object] = {
            "caveats": found.caveats(),
            "num_real": len(rows[REAL]),
            "reference": str(self.split.evaluation.listing.folder),
            "protocol_details": self.described(found),
        }
        if (sheet := self.chosen.streams.sheet) is not None:
            write_sheet(sheet, rows[STREAMS]["sheet"].numpy(), self.layout)
        return Outcome(found.figures(), len(rows[CLIPS]), details)

    def described(self, found: WorldFigures) -> dict[str, object]:
        """Everything the figures depend on."""
        layout, sheet = self.layout, self.chosen.streams.sheet
        return {
            "dataset": self.name_of_data,
            "split": self.split.how,
            "episodes": {"training": len(self.split.training), "evaluation": len(self.split.evaluation)},
            "generated": self.model.described(),
            "fps": self.model.fps,
            "size": list(self.model.size),
            "context_frames": layout.context,
            "history_frames": layout.history,
            "horizons": list(layout.horizons),
            "streams": {"count": len(self.segments[STREAMS]), "frames": layout.total},
            "turn": {name: None if rows is None else rows.tolist() for name, rows in found.turn().items()},
            "network": described_config(self.config) | {"training_windows": len(self.segments[TRAINING])},
            "rule": found.rule.as_dict(),
            "sheet": None if sheet is None else str(sheet),
            "seed": self.chosen.seed,
            "batch_size": self.chosen.batch_size,
            "ci95": CI95_METHOD,
            "notes": [self.split.how, *self.split.notes, *self.notes, *found.notes()],
            "versions": {name: version(name) for name in ("torch", "numpy")},
        }


# ------------------------------------------------------------------------------------------------------------ planning


def open_world(source: SourceLike | StreamModel, settings: Settings, config: DynamicsConfig | None = None) -> WorldPlan:
    """Check the model and the recordings, divide the episodes and choose what is generated.

    Raises UserError for a model without actions or that does not stream, for recordings without actions, with those of
    another environment or too short, and for settings that belong to other protocols.
    """
    refuse_other_settings(settings)
    if settings.reference is None:
        raise UserError(f"Protocol {WORLD!r} needs recordings with actions: --reference RECORDINGS.")
    model = open_streams(source, settings.options, settings.device)
    if model.window < 2:
        raise UserError("This model sees one frame at a time, so that no frame follows from earlier ones.")
    context = min(CONTEXT_FRAMES, model.window - 1)
    least = max(WINDOW, context + LEAST_HORIZON)
    split = open_split(settings.reference, model.spec, model.size, model.fps, least, settings.split, settings.seed)
    turn, notes = turn_of(model.spec, settings.streams.there, settings.streams.back)
    layout = layout_of(model, split.evaluation.lengths, settings.streams.minutes, turn)
    folder = Path(settings.reference).expanduser().resolve()
    return WorldPlan(
        model=model,
        split=split,
        layout=layout,
        config=config or DynamicsConfig(num_steps=settings.streams.network_steps),
        chosen=settings,
        name_of_data=re.sub(r"[^\w.-]+", "-", folder.stem if folder.is_file() else folder.name),
        segments=segments_of(split, layout, settings),
        notes=tuple(notes),
    )


def refuse_other_settings(settings: Settings) -> None:
    """Raises UserError for a setting that this protocol does not read."""
    settings.refuse_flags_of_folders(WORLD)
    others = {
        "--task": settings.task is not None,
        "--paste-given": settings.paste_given,
        "--convention": settings.convention is not None,
        "--i3d": settings.files != WeightFiles(),
    }
    if unused := [flag for flag, is_used in others.items() if is_used]:
        raise UserError(f"{unused[0]} belongs to other protocols than {WORLD!r}: omit it.")


def layout_of(
    model: StreamModel,
    lengths: Sequence[int],
    minutes: Sequence[float],
    turn: tuple[Float[np.ndarray, "n a"], Float[np.ndarray, "m a"]] | None,
) -> Layout:
    """Lengths of clips and streams. Raises UserError for streams shorter than a window."""
    context = min(CONTEXT_FRAMES, model.window - 1)
    lifetimes = tuple((f"{value:g}_min", round(value * 60 * model.fps)) for value in sorted(set(minutes)))
    if not lifetimes or lifetimes[0][1] < WINDOW:
        value = f"{min(minutes):g} minutes are {lifetimes[0][1]} frames" if lifetimes else "No length is named"
        raise UserError(f"{value}: a stream is examined by windows of {WINDOW} frames; raise --minutes.")
    usual = sorted(lengths)[len(lengths) // 2]  # half of the episodes are at least as long
    horizons = tuple(h for h in HORIZONS if h <= max(LEAST_HORIZON, usual - context))
    total = lifetimes[-1][1]
    there, back = turn or (None, None)
    return Layout(
        context=context,
        horizons=horizons,
        history=min(model.window - 1, context + horizons[-1] - NEXT_POSITIONS),
        windows=tuple(start for start in WINDOW_STARTS if start + WINDOW <= total),
        lifetimes=lifetimes,
        there=there,
        back=back,
    )


def segments_of(split: SplitEpisodes, layout: Layout, settings: Settings) -> dict[str, tuple[Segment, ...]]:
    """What every side reads, by label. Raises UserError where the episodes have fewer than two clips."""
    evaluation, wanted = split.evaluation, settings.num_clips or DEFAULT_CLIPS
    clips = evaluation.segments(layout.length, wanted)
    windows = max(MOST_WINDOWS, 2 * settings.streams.streams)
    found = {
        TRAINING: split.training.segments(WINDOW, windows),
        REAL: evaluation.segments(WINDOW, windows),
        CLIPS: clips,
        NEXT: clips,
        STREAMS: repeated(evaluation.segments(WINDOW, settings.streams.streams), settings.streams.streams),
    }
    if layout.there is not None:
        found[RETURNS] = found[STREAMS]
    if min(map(len, found.values())) < 2:
        raise UserError(
            f"The evaluated episodes hold {len(clips)} clips of {layout.length} frames and {len(found[REAL])} windows "
            f"of {WINDOW}, the others {len(found[TRAINING])} windows: each needs 2 and more; record longer episodes."
        )
    return found


def repeated(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    """`count` segments, in turn: streams that begin alike part by their actions and noise."""
    return tuple(segments[i % len(segments)] for i in range(count if segments else 0))


def turn_of(
    spec: ActionSpec, there: str | None, back: str | None
) -> tuple[tuple[Float[np.ndarray, "n a"], Float[np.ndarray, "m a"]] | None, list[str]]:
    """Rows that lead away and back, and a note without them. Raises UserError for one of both texts alone."""
    if (there is None) != (back is None):
        raise UserError("--there and --back are opposite actions: name both, or omit both.")
    if there is None or back is None:
        found = opposite_buttons(spec)
        if found is None:
            return None, [
                "no agreement after turning there and back: no two buttons are named left and right; --there and "
                '--back name opposite actions, such as "dx=1" and "dx=-1"'
            ]
        there, back = (f'"{name}"' for name in found)
    scripts = [parse_actions(text, spec) for text in (there, back)]
    rows = [np.repeat(script, HELD_FRAMES, axis=0) if len(script) == 1 else script for script in scripts]
    return (rows[0], rows[1]), []


def opposite_buttons(spec: ActionSpec) -> tuple[str, str] | None:
    """Two buttons whose names differ by left and right only; those that turn before others."""
    buttons = [name for name, is_button in zip(spec.names, spec.is_button, strict=True) if is_button]
    by_lower = {name.lower(): name for name in buttons}
    pairs = [
        (name, by_lower[other])
        for name in buttons
        if "left" in name.lower() and (other := name.lower().replace("left", "right")) in by_lower
    ]
    return min(pairs, key=lambda pair: "turn" not in pair[0].lower(), default=None)


# ------------------------------------------------------------------------------------------------------------- network


def opened_network(plan: WorldPlan) -> InverseDynamics:
    """The inverse-dynamics network of the training episodes: read from the state of the evaluation, or trained."""
    settings, is_button = plan.chosen, plan.model.spec.is_button
    path = None if settings.state is None else settings.state / NETWORK_FILE
    if path is not None and path.is_file():
        return load_dynamics(path, plan.config, is_button, settings.device)
    data = dynamics_data(plan.split.training, plan.config.side)
    found = train_dynamics(data, is_button, plan.config, settings.seed, settings.device, settings.progress)
    if path is not None and rank_and_world_size()[0] == 0:
        save_dynamics(path, found)
    return found


def dynamics_data(episodes: Episodes, side: int) -> DynamicsData:
    """Frames and actions of evenly chosen episodes, about 20,000 frames in all."""
    shares = max(1, round(MOST_FRAMES / (sum(episodes.lengths) / len(episodes))))
    chosen = evenly(len(episodes), shares)
    return DynamicsData.of([reduced_episode(episodes, number, side) for number in chosen])


def reduced_episode(
    episodes: Episodes, number: int, side: int
) -> tuple[UInt8[Tensor, "t 3 h w"], Float[np.ndarray, "t a"]]:
    """At most 20,000 frames of an episode at the size that the network reads, and their actions."""
    length = min(episodes.lengths[number], MOST_FRAMES)
    parts = [
        reduced_frames(as_tensor(episodes.frames(Segment(number, start, min(READ_AT_ONCE, length - start)))), side)
        for start in range(0, length, READ_AT_ONCE)
    ]
    return torch.cat(parts), episodes.actions(Segment(number, 0, length))


# --------------------------------------------------------------------------------------------------------------- sheet


def write_sheet(path: Path, frames: UInt8[np.ndarray, "n s h w 3"], layout: Layout) -> None:
    """A row of frames for every stream."""
    from mutoscope.data.media import write_png
    from mutoscope.data.video.contact_sheet import contact_sheet

    shown = ", ".join(f"{frame:,}" for frame in layout.sheet) or f"{layout.total:,}"
    labels = [f"frames {shown}", *[""] * (len(frames) - 1)]
    write_png(path, contact_sheet(list(frames), columns=frames.shape[1], labels=labels))
