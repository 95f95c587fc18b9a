"""From a call to tokens, one module per way of decoding."""

from importlib import import_module

from mutoscope.errors import UserError
from mutoscope.generation.base import Frames as Frames
from mutoscope.generation.base import Generator as Generator
from mutoscope.generation.base import Request as Request
from mutoscope.generation.base import is_listed as is_listed
from mutoscope.json_config import nearest

# family in model_index.json -> (module, class)
FAMILIES = {
    "magvit": ("mutoscope.generation.masked", "MaskedGenerator"),
    "par": ("mutoscope.generation.parallel_ar", "ParallelARGenerator"),
    "magi": ("mutoscope.generation.frame_stream", "FrameStreamGenerator"),
    "nova": ("mutoscope.generation.frame_ar", "FrameARGenerator"),
}


def generator_of(family: str) -> type[Generator]:
    """The class that generates with models of a family. Raises UserError for an unknown one."""
    if family not in FAMILIES:
        raise UserError(f"model_index.json names the family {family!r}: {nearest(family, FAMILIES)}")
    module, name = FAMILIES[family]
    return getattr(import_module(module), name)
