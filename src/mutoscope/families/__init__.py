"""From a call to tokens, one module per way of decoding."""

from importlib import import_module

from mutoscope.errors import UserError
from mutoscope.families.base import Generator as Generator
from mutoscope.families.base import Request as Request
from mutoscope.families.base import is_listed as is_listed
from mutoscope.json_config import nearest

# family in model_index.json -> (module, class)
FAMILIES = {
    "magvit": ("mutoscope.families.magvit", "MaskedGenerator"),
    "par": ("mutoscope.families.par", "ParallelARGenerator"),
    "magi": ("mutoscope.families.magi", "FrameStreamGenerator"),
    "nova": ("mutoscope.families.nova", "FrameARGenerator"),
}


def generator_of(family: str) -> type[Generator]:
    """The class that generates with models of a family. Raises UserError for an unknown one."""
    if family not in FAMILIES:
        raise UserError(f"model_index.json names the family {family!r}: {nearest(family, FAMILIES)}")
    module, name = FAMILIES[family]
    return getattr(import_module(module), name)
