"""What the page offers for a model: its classes, keys and first frames, and every option of a call."""

import types
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Literal, Union, get_args, get_origin, get_type_hints

from mutoscope.actions import ActionSpec
from mutoscope.families import AnyFamily, family_named
from mutoscope.families.first_frames import FirstFrames
from mutoscope.hub import ModelFolder
from mutoscope.json_config import dataclass_from_dict, documentation
from mutoscope.model_index import Json
from mutoscope.playground.real import environment_name

NOT_OFFERED = {"sampling", "num_samples", "batch_size", "endless"}  # the page shows one clip
KINDS: dict[object, str] = {bool: "flag", int: "int", float: "float", str: "text"}


def describe(name: str, folder: ModelFolder, actions: ActionSpec | None, has_worlds: bool) -> dict[str, Json]:
    """One model, for the page. has_worlds: whether the extra [worlds] is installed."""
    index, family = folder.index, family_named(folder.index.family)
    can_play = family.capabilities.endless and family.capabilities.steerable
    return {
        "name": name,
        "family": family.name,
        "title": family.title,
        "paper": family.paper,
        "width": index.width,
        "height": index.height,
        "fps": index.fps,
        "num_frames": index.num_frames,
        "classes": list(index.class_names or ()),
        "tasks": list(index.tasks),
        "actions": []
        if actions is None
        else [{"name": n, "button": b} for n, b in zip(actions.names, actions.is_button, strict=True)],
        "first_frames": dict(FirstFrames(folder.path, index.first_frames).labels),
        "playable": can_play and actions is not None,
        "streams": can_play,
        "real": {
            label: environment
            for label in index.class_names or ("",)
            if has_worlds and (environment := environment_name(label, index)) is not None
        },
        "options": [*_call_options(family, folder), *_sampler_options(family, folder)],
    }


def _call_options(family: AnyFamily, folder: ModelFolder) -> list[Json]:
    texts, hints = documentation(family.call), get_type_hints(family.call)
    listed: list[Json] = []
    for f in fields(family.call):
        if f.name in NOT_OFFERED or "python_only" in f.metadata:
            continue
        file = f.metadata.get("file")
        kind = {"video": "upload", "actions": "text"}.get(str(file)) or f.metadata.get("form") or kind_of(hints[f.name])
        default = None if f.default is MISSING else f.default
        listed.append(_option(f.name, kind, default, texts.get(f.name, ""), _choices(f.name, folder), "What to show"))
    return listed


def _sampler_options(family: AnyFamily, folder: ModelFolder) -> list[Json]:
    config = dataclass_from_dict(family.sampler, folder.index.sampling_for(None), "sampling")
    texts, hints = documentation(family.sampler), get_type_hints(family.sampler)
    return [
        _option(name, kind_of(hint), getattr(config, name), texts.get(name, ""), choices_of(hint), "How to sample")
        for name, hint in hints.items()
    ]


def _option(name: str, kind: str, default: object, text: str, choices: Sequence[str], group: str) -> Json:
    is_plain = isinstance(default, bool | int | float | str | None)
    return {
        "name": name,
        "kind": "choice" if choices else kind,
        "default": default if is_plain else None,
        "help": text,
        "choices": list(choices),
        "group": group,
    }


def _choices(name: str, folder: ModelFolder) -> list[str]:
    index = folder.index
    if name == "class_label":
        return list(index.class_names or ())
    if name == "task":
        return list(index.tasks)
    if name == "first_frame":
        return list(FirstFrames(folder.path, index.first_frames).names)
    return []


def kind_of(hint: object) -> str:
    """flag, int, float or text, whatever else the option may be."""
    options = [part for part in _parts(hint) if part is not types.NoneType]
    return next((KINDS[part] for part in options if part in KINDS), "text")


def choices_of(hint: object) -> list[str]:
    """The values of a literal type."""
    return [str(value) for part in _parts(hint) if get_origin(part) is Literal for value in get_args(part)]


def _parts(hint: object) -> tuple[object, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
