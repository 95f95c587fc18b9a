"""Strict configurations: plain JSON values to frozen dataclasses, and errors that name the key at fault.

Nothing is guessed. Unknown and missing keys and values of another type are errors; only what JSON cannot say
is converted: a whole number where a float is meant, a list for a tuple, an object for a nested dataclass.
"""

import ast
import difflib
import inspect
import itertools
import json
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mutoscope.errors import UserError, reason, shown

Config = TypeVar("Config")
MAX_LISTED = 30  # names that an error about an unknown one lists
MAX_GUESSED = 100  # characters of a word for which a similar one is looked up
MAX_BYTES = 16 * 2**20  # of a file of settings: a value takes up to twenty times its text in memory
MANY, CHARACTERS_EACH = 500_000, 12  # more lists and objects than that are hardly ever so short
MAX_VALUES = 65_536  # of a list, such as the names of classes
MAX_DEPTH = 64  # of lists and objects inside each other; recipes have 6


def nearest(word: str, known: Iterable[str]) -> str:
    """A half-sentence that names the known word closest to the one given, and all of them unless they are many."""
    names = sorted(known)
    if not names:
        return "none are installed."
    if len(word) > MAX_GUESSED:
        word = ""
    by_lower = {name.lower(): name for name in names}
    begun = [name for name in by_lower if word and name.startswith(word.lower())]  # more likely meant than an anagram
    count = 1 if len(names) <= MAX_LISTED else 4
    close = difflib.get_close_matches(word.lower(), begun or by_lower, n=count, cutoff=0.0 if begun else 0.5)
    guess = f"did you mean {' or '.join(repr(by_lower[name]) for name in close)}?" if close else ""
    if len(names) <= MAX_LISTED:
        return f"{guess} Known: {', '.join(names)}." if guess else f"known: {', '.join(names)}."
    return guess or f"known: {', '.join(names[:MAX_LISTED])} ... ({len(names)} in all)."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that must exist."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes, at most {MAX_BYTES:,} are read")
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder is incomplete. Copy or train the model again.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {reason(error)}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object, found {type(value).__name__}.")
    return value


def parse_json(text: str | bytes) -> object:
    """The value of a JSON text. Raises ValueError for no JSON, another encoding than UTF-8, 16 or 32, and deep nesting.

    Everything that reads values goes through them by recursion, which deep nesting would exhaust.
    """
    openings = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    count = sum(text.count(opening) for opening in openings)  # type: ignore[arg-type]
    if count > MANY and count * CHARACTERS_EACH > len(text):
        raise ValueError(f"it holds {count:,} lists and objects in {len(text):,} characters")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"its lists and objects are nested more than {MAX_DEPTH} deep") from None
    level, depth = [value], 0
    while level := [item for found in level for item in _items(found)]:
        if (depth := depth + 1) > MAX_DEPTH:
            raise ValueError(f"its lists and objects are nested more than {MAX_DEPTH} deep")
    return value


def _items(value: object) -> Iterable[object]:
    """The lists and objects in a list or an object."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def with_values(config: Config, values: Mapping[str, object]) -> Config:
    """A frozen dataclass with other values of some of its fields."""
    return cast(Config, replace(cast(Any, config), **values))


# Base class of configurations -> which subclass an object of JSON values describes
Choices = Mapping[type, Callable[[Mapping[str, Any]], type]]
NO_CHOICES: Choices = types.MappingProxyType({})


def dataclass_from_dict(
    cls: type[Config], values: Mapping[str, Any], where: str, choices: Choices = NO_CHOICES
) -> Config:
    """Build a configuration from plain JSON values. `where` begins the message of every error.

    choices: for every base class that a field is annotated with, the function that finds the subclass.
    """
    try:
        return _build(cls, values, "", choices)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def best_match(classes: Sequence[type[Config]], values: Mapping[str, Any]) -> type[Config]:
    """The configuration class whose keys fit an object best."""
    return max(classes, key=lambda cls: _shared_keys(cls, values))


def _build(cls: type[Config], values: Any, key: str, choices: Choices) -> Config:
    """`key` is the dotted name of the object within the file, empty for the file itself."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"{key or 'the file'} must be an object with the keys of {cls.__name__}, found {shown(values)}."
        )
    known = {f.name: f for f in fields(cast(Any, cls)) if f.init}
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in known:
            raise UserError(f"unknown key {shown(prefix + str(name))}: {nearest(str(name), known)}")
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"key {prefix + name!r} is missing.")
    hints = get_type_hints(cls)
    converted = {name: _convert(hints[name], value, prefix + name, choices) for name, value in values.items()}
    try:
        return cls(**converted)
    except UserError as error:  # a range check begins with the name of its field
        raise UserError(f"{prefix if str(error).split()[0] in known else ''}{error}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"the values of {key or 'the file'} do not make a {cls.__name__}: {reason(error)}.") from None


def _convert(hint: Any, value: Any, key: str, choices: Choices) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if hint in choices and isinstance(value, Mapping):
        return _build(choices[hint](value), value, key, choices)
    if is_dataclass(hint):
        return _build(cast(type, hint), value, key, choices)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, key, choices)
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in arguments):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return _convert_tuple(arguments, value, key, choices)
    if origin is dict and isinstance(value, Mapping):
        return {name: _convert(arguments[1], item, f"{key}.{name}", choices) for name, item in value.items()}
    if hint is float and type(value) in (int, float) and not _is_huge(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise UserError(f"{shown(key)} must be {_name(hint)}, found {shown(value)}.")


def _is_huge(value: float) -> bool:
    """Whether a whole number exceeds every float."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _convert_union(hint: Any, value: Any, key: str, choices: Choices) -> Any:
    members = [member for member in get_args(hint) if member is not types.NoneType]
    if value is None and len(members) < len(get_args(hint)):
        return None
    if len(members) == 1:  # its own message says more than a list of one
        return _convert(members[0], value, key, choices)
    if isinstance(value, Mapping) and all(is_dataclass(member) for member in members):
        return _build(best_match(members, value), value, key, choices)
    for member in members:
        try:
            return _convert(member, value, key, choices)
        except UserError:
            continue
    raise UserError(f"{shown(key)} must be {_name(hint)}, found {shown(value)}.")


def _shared_keys(cls: Any, values: Mapping[str, Any]) -> int:
    """How well an object fits a configuration: keys known to it, less those that are not."""
    known = {f.name for f in fields(cls)}
    return 2 * len(known & set(values)) - len(values)


def _convert_tuple(
    arguments: tuple[Any, ...], value: list[Any] | tuple[Any, ...], key: str, choices: Choices
) -> tuple[Any, ...]:
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(hints) != len(value):
        raise UserError(f"{shown(key)} must hold {len(hints)} values, found {len(value)}.")
    if len(value) > MAX_VALUES:
        raise UserError(f"{shown(key)} must hold at most {MAX_VALUES:,} values, found {len(value):,}.")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(_convert(hint, item, f"{key}[{i}]", choices) for i, (hint, item) in pairs)


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def documentation(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of its bases, in one line each."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        statements = cast(ast.ClassDef, tree).body
        for node, following in itertools.pairwise(statements):
            text = _text_of(following)
            if text and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = text
    return found


def _text_of(statement: ast.stmt) -> str:
    """The text of a statement that is a string, in one line; empty for any other statement."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""
