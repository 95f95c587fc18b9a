"""Flags of one model: the options of its family's call and of its sampler, with the defaults of its folder.

Nothing is listed here by hand. A field of a `Call` or of a sampler's configuration is a flag, its docstring the help,
and the model's folder gives choices and defaults.
"""

import shutil
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Union, cast, get_args, get_origin, get_type_hints

from mutoscope.actions import ActionSpec
from mutoscope.commands import common
from mutoscope.errors import UserError
from mutoscope.json_config import documentation, nearest

if TYPE_CHECKING:
    from mutoscope.families import AnyFamily
    from mutoscope.hub import ModelFolder

SHOW, SAMPLE, OUTPUT, HARDWARE = "What to show", "How to sample", "Output", "Hardware and memory"
METAVARS_OF_FILES = {"video": "FILE", "actions": "FILE|TEXT"}
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
HELP_COLUMN = 30  # where descriptions begin
MAX_WIDTH = 100  # of help texts, in columns


@dataclass(frozen=True)
class Flag:
    """One option as the command line shows it."""

    name: str
    """Of the option in Python."""
    type: object
    """What tyro parses the flag as."""
    default: object
    help: str
    group: str
    metavar: str
    flag: str = ""
    """Of the command line, if it is not the option's name."""
    file: str | None = None
    """The value is a file of this kind, to be read ("video", or "actions", which may be a text too)."""

    @property
    def spelling(self) -> str:
        """As typed: --class-label."""
        return "--" + (self.flag or self.name).replace("_", "-")


# ------------------------------------------------------------------------------------------------------ of one model


def family_of_folder(folder: "ModelFolder") -> "AnyFamily":
    """The family of a model. Raises UserError for a tokenizer alone."""
    from mutoscope.families import family_named

    folder.model_path  # noqa: B018  refuses a tokenizer alone
    return family_named(folder.index.family)


def model_flags(folder: "ModelFolder", task: str | None = None) -> list[Flag]:
    """Every option of a model's calls, with the sampler's defaults for `task`.

    Raises UserError for a tokenizer alone.
    """
    family = family_of_folder(folder)
    return [*call_flags(family, folder), *sampler_flags(family, folder, task)]


def call_flags(family: "AnyFamily", folder: "ModelFolder") -> list[Flag]:
    """The fields of the family's call that can be typed."""
    hints, texts = get_type_hints(family.call), documentation(family.call)
    flags = []
    for f in fields(family.call):
        if f.name == "sampling" or "python_only" in f.metadata:
            continue
        file = f.metadata.get("file")
        kind, metavar = (str | None, METAVARS_OF_FILES[file]) if file else _flag_type(hints[f.name])
        metavar = "TASK" if f.name == "task" else metavar
        flag = f.metadata.get("flag") or ""
        text = texts.get(f.name, "") + _choices(f.name, folder)
        flags.append(Flag(f.name, kind, f.default, text, SHOW, metavar, flag, file))
    if family.capabilities.extends:
        text = "Segments of vertical outpainting, each of which widens the clip by half the model's width."
        flags.append(Flag("panorama", int, 0, text, SHOW, "INT"))
    return flags


def sampler_flags(family: "AnyFamily", folder: "ModelFolder", task: str | None = None) -> list[Flag]:
    """The fields of the sampler's configuration, with the model's defaults for a task."""
    from mutoscope.json_config import dataclass_from_dict

    config = dataclass_from_dict(family.sampler, folder.index.sampling_for(task), "sampling")
    hints, texts = get_type_hints(family.sampler), documentation(family.sampler)
    flags = []
    for name in hints:
        kind, metavar = _flag_type(hints[name], switch=False)
        flags.append(Flag(name, kind, _typed(getattr(config, name)), texts.get(name, ""), SAMPLE, metavar))
    return flags


def _typed(value: object) -> object:
    """A value as the command line spells it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _choices(name: str, folder: "ModelFolder") -> str:
    index = folder.index
    if name == "class_label" and index.class_names:
        return f" Classes: {', '.join(index.class_names)}."
    if name == "actions" and index.actions is not None:
        return f" Actions: {', '.join(_described_actions(index.actions))}."
    if name == "task" and index.tasks:
        return f" Tasks: {', '.join(index.tasks)}."
    if name == "num_frames":
        return f" ({index.num_frames} for this model)"
    return ""


def _described_actions(spec: ActionSpec) -> list[str]:
    """Every name, buttons with their values."""
    pairs = zip(spec.names, spec.is_button, strict=True)
    return [f"{name} (0 or 1)" if is_button else name for name, is_button in pairs]


def _flag_type(hint: object, switch: bool = True) -> tuple[object, str]:
    """What a field is parsed as, and how its value is described. `switch`: a plain bool is a flag without a value."""
    options = [option for option in _members(hint) if option is not types.NoneType]
    optional = len(options) < len(_members(hint))
    if bool in options:
        if switch and not optional:
            return bool, ""
        yes_no = Literal["yes", "no"]
        return (yes_no | None if optional else yes_no), "{yes,no}"
    for option in options:
        if get_origin(option) is Literal:
            return hint, "{" + ",".join(map(str, get_args(option))) + "}"
    if str in options:  # one class or prompt; lists are for Python
        return (str | None if optional else str), "NAME" if int in options else "TEXT"
    return hint, METAVARS.get(cast(type, options[0]), "VALUE")


def _members(hint: object) -> list[object]:
    if get_origin(hint) in (Union, types.UnionType):
        return [member for part in get_args(hint) for member in _members(part)]
    return [hint]


# ---------------------------------------------------------------------------------------------------------- parsing


def parse_changed_options(
    folder: "ModelFolder", prog: str, arguments: Sequence[str], also: Sequence[str] = ()
) -> dict[str, object]:
    """The options of the sampler, and those of the call named in `also`, that the arguments change.

    Raises UserError for flags that the model does not take.
    """
    if not arguments:
        return {}
    flags = [flag for flag in model_flags(folder) if flag.group == SAMPLE or flag.name in also]
    values = _parse(flags, prog, arguments)
    return _untyped({flag.name: values[flag.name] for flag in flags if values[flag.name] != flag.default})


def parse_options(folder: "ModelFolder", prog: str, arguments: Sequence[str]) -> dict[str, object]:
    """The options of a call that the arguments state or imply, by name; files are not read yet.

    Defaults of the sampler may depend on the task, which other options imply: so arguments are parsed twice.
    Raises UserError for flags that the model does not take.
    """
    family = family_of_folder(folder)
    first = _parse(model_flags(folder), prog, arguments)
    task = family.resolve_task(folder.index, {name: value for name, value in first.items() if value is not None})
    return _untyped(_parse(model_flags(folder, task), prog, arguments))


def _untyped(values: Mapping[str, object]) -> dict[str, object]:
    words = {"yes": True, "no": False}
    return {name: words.get(value, value) if isinstance(value, str) else value for name, value in values.items()}


def _parse(flags: Sequence[Flag], prog: str, arguments: Sequence[str]) -> dict[str, object]:
    import tyro

    _check_known(flags, prog, arguments)

    def described(flag: Flag) -> tuple[str, object, object]:
        argument = tyro.conf.arg(name=flag.flag or None, help=flag.help)
        return flag.name, Annotated[flag.type, argument], field(default=flag.default)  # type: ignore[valid-type]

    options = make_dataclass("Options", [described(flag) for flag in flags])
    return dict(vars(common.parse_flags(options, prog, arguments)))


def _check_known(flags: Sequence[Flag], prog: str, arguments: Sequence[str]) -> None:
    known = [flag.spelling for flag in flags]
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            raise UserError(f"This model takes no {name}: {nearest(name, known)} See {prog} --help.")


# ------------------------------------------------------------------------------------------------------------- help


def dataclass_flags(options: type, group: str) -> list[Flag]:
    """The fields of a dataclass of static options, for help."""
    hints, texts = get_type_hints(options), documentation(options)
    flags = []
    for f in fields(options):
        kind, metavar = _flag_type(hints[f.name])
        flags.append(Flag(f.name, kind, f.default, texts.get(f.name, ""), group, metavar))
    return flags


def help_text(usage: str, description: str, flags: Sequence[Flag]) -> str:
    """Flags in groups, one block of lines each."""
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    lines = [f"usage: {usage}", "", *textwrap.wrap(description, width)]
    for group in dict.fromkeys(flag.group for flag in flags):
        lines += ["", group]
        for flag in flags:
            lines += _flag_lines(flag, width) if flag.group == group else []
    return "\n".join(lines)


def _flag_lines(flag: Flag, width: int) -> list[str]:
    plain = isinstance(flag.default, int | float | str) and not isinstance(flag.default, bool)
    default = " [required]" if flag.default is MISSING else f" [{flag.default}]" if plain and flag.default != "" else ""
    head = f"  {flag.spelling} {flag.metavar}".rstrip()
    body = textwrap.wrap(flag.help.rstrip() + default, width - HELP_COLUMN, break_on_hyphens=False) or [""]
    if len(head) > HELP_COLUMN - 2:
        return [head, *(" " * HELP_COLUMN + line for line in body)]
    return [head.ljust(HELP_COLUMN) + body[0], *(" " * HELP_COLUMN + line for line in body[1:])]
