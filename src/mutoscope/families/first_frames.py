"""The images that a model folder holds for clips to start with: held-back frames of the recording, some of each class.

A model of actions then plays from its name alone, and a first frame costs no generation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mutoscope.data.media import read_image
from mutoscope.errors import UserError
from mutoscope.json_config import nearest

GENERATED = "none"  # the name of a first frame that the model generates as well


class FirstFrames:
    """First frames by name. folder: where the images are; files: their relative paths, and the class of each."""

    def __init__(self, folder: Path | None, files: Mapping[str, int]) -> None:
        self.folder = folder
        self.files = {PurePosixPath(file).stem: file for file in files} if folder is not None else {}
        self.labels = {PurePosixPath(file).stem: label for file, label in files.items()}

    def __bool__(self) -> bool:
        return bool(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def chosen(
        self, name: str | None, labels: Int[Tensor, " b"] | None, num_samples: int, seed: int
    ) -> tuple[str, ...]:
        """One name per sample: the requested one, or one drawn from those of the sample's class (any, without one)."""
        if name is not None:
            if name not in self.files:
                raise UserError(f"This model has no first frame {name!r}: {nearest(name, [*self.files, GENERATED])}")
            return (name,) * num_samples
        draws = torch.rand(num_samples, generator=torch.Generator().manual_seed(seed))
        wanted = [None if labels is None else int(labels[i]) for i in range(num_samples)]
        return tuple(self._drawn(float(draws[i]), label) for i, label in enumerate(wanted))

    def _drawn(self, draw: float, label: int | None) -> str:
        fitting = [name for name in self.files if label is None or self.labels[name] == label]
        names = fitting or list(self.files)
        return names[min(int(draw * len(names)), len(names) - 1)]

    def read(self, name: str) -> UInt8[Tensor, "1 h w 3"]:
        """One image. Raises UserError for a file that is missing, damaged, or outside the folder."""
        assert self.folder is not None
        path = (self.folder / self.files[name]).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UserError(f"model_index.json names a first frame outside the model's folder: {self.files[name]!r}.")
        return torch.as_tensor(read_image(path))[None]

    def labels_of(self, names: Sequence[str]) -> list[int]:
        """The classes of some images; −1: none."""
        return [self.labels[name] for name in names]
