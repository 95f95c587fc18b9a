"""Options of calls that come from clients. None of them reaches the file system: files are uploads, by name."""

from collections.abc import Mapping
from typing import cast

import numpy as np

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.families.actions import parse_actions
from mutoscope.playground.kept import Kept, Picture

FROM_UPLOADS = ("context", "task_video")
MAX_LETTERS = 20_000  # of a text of actions


def client_options(
    options: Mapping[str, object], actions: ActionSpec | None, uploads: Kept[Picture] | None = None
) -> dict[str, object]:
    """Options as the pipeline takes them. Raises UserError for values that would name a file.

    actions: what the model reads; None: nothing. uploads: by whose names clips are chosen; None: they cannot be.
    """
    found = dict(options)
    for name in FROM_UPLOADS:
        if found.get(name) is None:
            found.pop(name, None)
        elif uploads is None or not isinstance(value := found[name], str):
            raise UserError(f"{name} must be uploaded with the request.")
        else:
            found[name] = uploads.get(value)
    if found.get("actions") is not None:
        found["actions"] = _rows(found["actions"], actions)
    return found


def _rows(actions: object, spec: ActionSpec | None) -> np.ndarray:
    """Actions as rows. A text is parsed here, since elsewhere it may also name a file."""
    if spec is None:
        raise UserError("This model takes no actions. Omit them.")
    if isinstance(actions, str) and len(actions) <= MAX_LETTERS:
        return parse_actions(actions, spec)
    rows = cast(list[object], actions) if isinstance(actions, list) else []
    table = [cast(list[object], row) for row in rows if isinstance(row, list) and len(row) == spec.size]
    if table and len(table) == len(rows) and all(isinstance(x, int | float) for row in table for x in row):
        return np.array(table, np.float32)
    raise UserError(f'Actions are a text such as "right*8 left*2", or rows of {spec.size} numbers.')
