"""The models of a server: loaded when they are first used, dropped when they are not used any more."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.families.actions import spec_of
from mutoscope.hub import ModelFolder
from mutoscope.json_config import nearest
from mutoscope.model_index import ModelIndex
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.kept import NotHere


class Shelf:
    """Models by name. Clients name them; the paths are the server's own, so that no name leads to a file."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        capacity: int,
        unused_seconds: float,
        device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
        compile: bool = False,
    ) -> None:
        """`compile`: models are compiled when they are loaded, which takes minutes once."""
        self.folders = {name: hub.open_folder(path) for name, path in folders.items()}
        self.actions = {
            name: spec_of(folder.index.actions, folder.load_config().action_size)
            for name, folder in self.folders.items()
        }
        self.compile = compile
        self.capacity, self.unused_seconds, self.device, self.clock = capacity, unused_seconds, device, clock
        self._loaded: dict[str, VideoPipeline] = {}  # the one used last comes last
        self._used: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.folders)

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def folder(self, name: str) -> ModelFolder:
        """Raises NotHere for a name that is not on the shelf."""
        if name not in self.folders:
            raise NotHere(f"There is no model {name[:80]!r}: {nearest(name[:80], self.names)}")
        return self.folders[name]

    def index(self, name: str) -> ModelIndex:
        return self.folder(name).index

    def get(self, name: str) -> VideoPipeline:
        """The model, loaded if need be; called in the thread of the turns, which alone uses models."""
        folder = self.folder(name)
        pipeline = self._loaded.pop(name, None) or self._load(folder)
        self._loaded[name], self._used[name] = pipeline, self.clock()
        for other in list(self._loaded)[: -self.capacity]:
            del self._loaded[other]
        return pipeline

    def _load(self, folder: ModelFolder) -> VideoPipeline:
        pipeline = VideoPipeline.from_pretrained(folder, self.device, compile=self.compile)
        if self.compile:
            pipeline.warm_up()
        return pipeline

    def drop_unused(self) -> list[str]:
        """Drop the models that nobody has used in a while; sessions keep theirs until they end."""
        dropped = [name for name in self._loaded if self.clock() - self._used[name] > self.unused_seconds]
        for name in dropped:
            del self._loaded[name]
        return dropped


def served_folders(models: Sequence[str]) -> dict[str, Path]:
    """Names and folders of all bundled models that generate, and of further ones, which come first.

    A folder is named by its last part. Raises UserError for one that is no model.
    """
    named: dict[str, Path] = {}
    for model in models:
        path = hub.resolve(model)
        name = model if model in hub.bundled() else path.resolve().name
        if named.get(name, path) != path:
            raise UserError(f"Two models are named {name}: rename one of the folders.")
        named[name] = path
    bundled = {name: path for name, path in hub.bundled().items() if hub.load_index(path).model is not None}
    return named | {name: path for name, path in bundled.items() if name not in named}
