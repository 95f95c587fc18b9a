"""Run-time checks of the array annotations in the package: dtype, rank, and equal letters meaning equal sizes.

Only annotations of arrays are checked. All others are left alone, so that a test may hand a sampler a fake model
that shares no class with the real one.
"""

import builtins
import types
import typing
from collections.abc import Callable

from beartype import beartype
from jaxtyping import AbstractArray

PLAIN = {value for value in vars(builtins).values() if isinstance(value, type)} | {types.NoneType, Ellipsis}


def leaves(annotation: object) -> list[object]:
    """`tuple[A, B] | None` -> [A, B, NoneType]."""
    arguments = typing.get_args(annotation)
    return [leaf for argument in arguments for leaf in leaves(argument)] if arguments else [annotation]


def is_array(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def is_plain(annotation: object) -> bool:
    """A built-in type; the argument list of a Callable is none."""
    return not isinstance(annotation, list) and annotation in PLAIN


def is_checked(annotation: object) -> bool:
    """Made of arrays, or of arrays and built-in types."""
    found = leaves(annotation)
    return any(map(is_array, found)) and all(is_array(leaf) or is_plain(leaf) for leaf in found)


def beartype_arrays(function: Callable) -> Callable:
    """beartype with every annotation dropped that does not speak of arrays; a function without arrays stays as it is.

    The command line reads the annotations of its verbs, so theirs must not be lost.
    """
    checked = {name: value for name, value in getattr(function, "__annotations__", {}).items() if is_checked(value)}
    if not checked:
        return function
    function.__annotations__ = checked
    return beartype(function)
