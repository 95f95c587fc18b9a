"""A folder of images as clips of one frame: the middle, ten crops, or random crops.

Classes are the sub-folders directly below the folder, in alphabetical order (the layout of ImageNet).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from mutoscope.actions import ActionSpec
from mutoscope.data.base import LABEL, ClipBatch, ClipSource, Field, Item, PathData, StackedItems, stacked_items
from mutoscope.data.loader import stream_index
from mutoscope.data.media import IMAGE_SUFFIXES, files_below, open_image
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import MediaFile, class_folders, read_caption
from mutoscope.data.sources.readers import StillsFile, StillsReader
from mutoscope.data.sources.survey import DataSurvey, survey_listing
from mutoscope.errors import UserError

TEN_CROP_MARGIN = 1.1  # images for ten crops are a tenth larger than a crop, as in LlamaGen's scripts
SMALLEST_CROP = 0.8  # part of the shorter side that a random crop shows at least, as in LlamaGen's scripts


def find_images(folder: str | Path) -> tuple[list[MediaFile], list[str]]:
    """All images below a folder in order of path, and the class names.

    Raises UserError where the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; check the path.")
    paths = files_below(folder, IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no images; known suffixes are {' '.join(sorted(IMAGE_SUFFIXES))}.")
    labels, classes = class_folders(folder, paths)
    return [MediaFile(path, label, read_caption(path)) for path, label in zip(paths, labels, strict=True)], classes


@dataclass
class ImageDataset:
    """Item i is a dict: "video" uint8 (1, height, width, 3), "label" int, "caption" str, "path" str.

    Images are scaled to cover height x width with an anti-aliasing filter, then cropped to the middle. `ten_crops`
    takes ten items from every image, scaled a tenth larger: the middle, four corners, and the five mirrored, as
    LlamaGen's scripts cache them. A file that cannot be read is reported once, listed in `broken` and replaced by the
    next one that can.
    """

    folder: str | Path | Listing
    height: int
    width: int
    ten_crops: bool = False
    broken: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.folder, Listing):
            self.files, self.class_names = self.folder.files, self.folder.classes
        else:
            self.files, self.class_names = find_images(self.folder)
        self.fields: Mapping[str, Field] = {"label": LABEL}
        self.actions: ActionSpec | None = None

    def __len__(self) -> int:
        return len(self.files) * (10 if self.ten_crops else 1)

    def __getitem__(self, index: int) -> Item:
        position, crop = divmod(index, 10) if self.ten_crops else (index, 0)
        image, file = self._readable(position)
        return _item(self._cropped(image, crop), file)

    def random_item(self, index: int, generator: np.random.Generator) -> Item:
        """Image `index` in a random crop (see `random_crop`)."""
        image, file = self._readable(index)
        return _item(random_crop(image, self.height, self.width, generator), file)

    def _readable(self, position: int) -> tuple[Image.Image, MediaFile]:
        for step in range(len(self.files)):
            file = self.files[(position + step) % len(self.files)]
            if (image := self._read(file.path)) is not None:
                return image, file
        folder = self.folder.folder if isinstance(self.folder, Listing) else self.folder
        raise UserError(f"No image below {folder} can be read.")

    def _read(self, path: Path) -> Image.Image | None:
        if path in self.broken:
            return None
        try:
            return open_image(path)
        except UserError as error:
            self.broken.append(path)
            warnings.warn(f"{error}; it cannot be read and is skipped.", stacklevel=2)
            return None

    def _cropped(self, image: Image.Image, crop: int) -> UInt8[np.ndarray, "h w 3"]:
        """Crop 0 is the middle; 1 to 4 are the corners; 5 more than each of these is its mirror."""
        grow = TEN_CROP_MARGIN if self.ten_crops else 1.0
        height, width = int(self.height * grow), int(self.width * grow)
        pixels = middle(covering(image, height, width), height, width)
        tops, lefts = (0, height - self.height), (0, width - self.width)
        corners = [(top, left) for top in tops for left in lefts]
        centre = round((height - self.height) / 2), round((width - self.width) / 2)
        top, left = [centre, *corners][crop % 5]
        pixels = pixels[top : top + self.height, left : left + self.width]
        return np.ascontiguousarray(pixels[:, ::-1] if crop >= 5 else pixels)


def _item(frame: UInt8[np.ndarray, "h w 3"], file: MediaFile) -> Item:
    kept = {"label": file.label, "caption": file.caption, "path": str(file.path)}
    return {"video": torch.from_numpy(frame[None]), **kept}


class RandomCrops(ClipSource[ClipBatch]):
    """A dataset of images as an endless source in which an image looks different each time it is read.

    Clip p is the image at position p of the endless stream of permutations (see `StepSampler`), in a crop drawn from
    (seed, p): a batch depends on the indices only.
    """

    def __init__(self, dataset: ImageDataset, seed: int = 0):
        self.dataset, self.seed = dataset, seed
        self.class_names, self.fields = dataset.class_names, dataset.fields

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        return stacked_items([self._clip(int(position)) for position in indices])

    def _clip(self, position: int) -> Item:
        index = stream_index(position, len(self.dataset.files), self.seed)
        generator = np.random.Generator(np.random.PCG64([self.seed, position]))
        return self.dataset.random_item(index, generator)


@dataclass(frozen=True, kw_only=True)
class ImagesData(PathData):
    """Settings of a folder of images, whose sub-folders are classes; each image is a clip of one frame."""

    kind: Literal["images"] = "images"
    num_frames: int = 1
    random_crops: bool = False
    """another scale, crop and mirroring each time an image is read, for tokenizers"""
    ten_crops: bool = False
    """ten crops of every image instead of the middle"""

    def __post_init__(self) -> None:
        if self.random_crops and self.ten_crops:
            raise UserError("random_crops draw a crop each time, without ten_crops: omit one of them.")

    @property
    def redraws(self) -> bool:
        return self.random_crops

    def open(self) -> ClipSource[ClipBatch]:
        return self.source(self.required_path())

    def source(self, folder: str | Listing) -> ClipSource[ClipBatch]:
        """The images of a folder, or of a split of a dataset."""
        images = ImageDataset(folder, self.height, self.width, self.ten_crops)
        return RandomCrops(images, self.seed) if self.random_crops else StackedItems(images)

    def class_names(self) -> Sequence[str]:
        return self.listing().classes

    def listing(self) -> Listing:
        """The images. Raises UserError where there are none."""
        path = Path(self.required_path())
        files, classes = find_images(path)
        stills: list[MediaFile] = [StillsFile(f.path, f.label, f.caption, frames=(f.path,)) for f in files]
        return Listing("images", path, "", stills, classes, reader=StillsReader())

    def survey(self) -> DataSurvey:
        return survey_listing(self.listing(), self.fps)

    def captions(self) -> Sequence[str]:
        return [file.caption for file in self.listing().files]

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind, "class_names": list(self.class_names()), "ten_crops": self.ten_crops}


def random_crop(
    image: Image.Image, height: int, width: int, generator: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """A crop as in the training of LlamaGen's tokenizer: at a random scale and position, mirrored half the time.

    The crop's shorter side is all of the image's, or as little as 0.8 of it: the scaled image is drawn evenly from the
    whole numbers of pixels in between.
    """
    side = min(height, width)
    drawn = int(generator.integers(side, math.ceil(side / SMALLEST_CROP) + 1))
    pixels = np.array(covering(image, round(height * drawn / side), round(width * drawn / side)))
    top, left = (int(generator.integers(n - m + 1)) for n, m in zip(pixels.shape, (height, width), strict=False))
    pixels = pixels[top : top + height, left : left + width]
    return np.ascontiguousarray(pixels[:, ::-1] if generator.random() < 0.5 else pixels)


def covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled so that it just covers height x width; halved by boxes first, as ADM's and LlamaGen's scripts do."""
    while min(image.width / width, image.height / height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    size = max(round(image.width * scale), width), max(round(image.height * scale), height)
    return image.resize(size, Image.Resampling.BICUBIC)


def middle(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    pixels = np.array(image)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
