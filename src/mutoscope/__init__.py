"""Mutoscope: five families of autoregressive and masked video generation, trained, sampled and compared alike.

The names below are imported when they are first used, so that `import mutoscope` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; at run time `__getattr__` imports
    from mutoscope.data.sources.clips import ClipDataset as ClipDataset
    from mutoscope.data.sources.recordings import open_recordings as open_recordings
    from mutoscope.data.sources.shapes.world import ShapesConfig as ShapesConfig
    from mutoscope.data.sources.shapes.world import ShapesWorld as ShapesWorld
    from mutoscope.data.video.read import VideoClip as VideoClip
    from mutoscope.data.video.read import read_video as read_video
    from mutoscope.data.video.read import write_video as write_video
    from mutoscope.errors import UserError as UserError
    from mutoscope.hub import load_model as load_model
    from mutoscope.hub import load_tokenizer as load_tokenizer
    from mutoscope.pipeline import VideoPipeline as VideoPipeline

__version__ = "0.1.0"

_PUBLIC = {
    "ClipDataset": "mutoscope.data.sources.clips",
    "ShapesConfig": "mutoscope.data.sources.shapes.world",
    "ShapesWorld": "mutoscope.data.sources.shapes.world",
    "UserError": "mutoscope.errors",
    "VideoClip": "mutoscope.data.video.read",
    "VideoPipeline": "mutoscope.pipeline",
    "load_model": "mutoscope.hub",
    "load_tokenizer": "mutoscope.hub",
    "open_recordings": "mutoscope.data.sources.recordings",
    "read_video": "mutoscope.data.video.read",
    "write_video": "mutoscope.data.video.read",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mutoscope' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
