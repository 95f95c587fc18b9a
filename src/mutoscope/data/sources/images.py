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
from jaxtyping import Int, UInt8
from PIL import Image

from mutoscope.actions import ActionSpec
from mutoscope.data.base import (
    EPISODE,
    LABEL,
    ClipBatch,
    ClipSource,
    Field,
    Item,
    PathData,
    StackedItems,
    stacked_items,
)
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
    """Item i is a dict: "video" uint8 (1, height, width, 3), "label" int, "caption" str, "path" str, and "episode" int,
    the number of the file.

    Images are scaled to cover height x width with an anti-aliasing filter, then cropped to the middle. `ten_crops`
    takes ten items from every image, scaled a tenth larger: the middle, four corners, and the five mirrored, as
    LlamaGen's scripts cache them. A file that cannot be read is reported once, listed in `broken` and replaced by the
    next one that can; the first image with transparent pixels is reported too.
    """

    folder: str | Path | Listing
    height: int
    width: int
    ten_crops: bool = False
    broken: list[Path] = field(default_factory=list)
    noted_transparency: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.folder, Listing):
            self.files, self.class_names = self.folder.files, self.folder.classes
        else:
            self.files, self.class_names = find_images(self.folder)
        self.fields: Mapping[str, Field] = {"label": LABEL, "episode": EPISODE}
        self.actions: ActionSpec | None = None

    def __len__(self) -> int:
        return len(self.files) * (10 if self.ten_crops else 1)

    @property
    def episodes(self) -> Int[np.ndarray, " n"]:
        """The file of every item: crops of one image stay together."""
        return np.arange(len(self)) // (10 if self.ten_crops else 1)

    def __getitem__(self, index: int) -> Item:
        position, crop = divmod(index, 10) if self.ten_crops else (index, 0)
        image, number = self._readable(position)
        return self._item(self._cropped(image, crop), number)

    def random_item(self, index: int, generator: np.random.Generator) -> Item:
        """Image `index` in a random crop (see `random_crop`)."""
        image, number = self._readable(index)
        return self._item(random_crop(image, self.height, self.width, generator), number)

    def _item(self, frame: UInt8[np.ndarray, "h w 3"], number: int) -> Item:
        file = self.files[number]
        kept = {"label": file.label, "caption": file.caption, "path": str(file.path), "episode": number}
        return {"video": torch.from_numpy(frame[None]), **kept}

    def _readable(self, position: int) -> tuple[Image.Image, int]:
        for step in range(len(self.files)):
            number = (position + step) % len(self.files)
            if (image := self._read(self.files[number].path)) is not None:
                return image, number
        folder = self.folder.folder if isinstance(self.folder, Listing) else self.folder
        raise UserError(f"No image below {folder} can be read.")

    def _read(self, path: Path) -> Image.Image | None:
        if path in self.broken:
            return None
        notes: list[str] | None = None if self.noted_transparency else []
        try:
            image = open_image(path, notes)
        except UserError as error:
            self.broken.append(path)
            warnings.warn(f"{error}; it cannot be read and is skipped.", stacklevel=2)
            return None
        if notes:
            self.noted_transparency = True
            warnings.warn(f"{notes[0]}; other images may be like it", stacklevel=2)
        return image

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


class RandomCrops(ClipSource[ClipBatch]):
    """A dataset of images as an endless source in which an image looks different each time it is read.

    Clip p is the image at position p of the endless stream of permutations (see `StepSampler`), in a crop drawn from
    (seed, p): a batch depends on the indices only. files: numbers of the images that are used; None: all.
    """

    def __init__(self, dataset: ImageDataset, seed: int = 0, files: Int[np.ndarray, " n"] | None = None):
        self.dataset, self.seed = dataset, seed
        self.class_names, self.fields = dataset.class_names, dataset.fields
        self.files = np.arange(len(dataset.files)) if files is None else files
        self.episodes, self._used = self.files, frozenset(self.files.tolist())

    def among(self, clips: Int[np.ndarray, " m"]) -> "RandomCrops":
        return RandomCrops(self.dataset, self.seed, self.files[clips])

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        return stacked_items([self._clip(int(position)) for position in indices])

    def _clip(self, position: int) -> Item:
        first = stream_index(position, len(self.files), self.seed)
        for step in range(len(self.files)):
            file = int(self.files[(first + step) % len(self.files)])
            item = self.dataset.random_item(file, np.random.Generator(np.random.PCG64([self.seed, position])))
            if item["episode"] in self._used:  # else a replacement of a broken file by an image that is not used
                return item
        raise UserError(f"None of {len(self._used)} chosen images can be read; see the warnings.")


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
        super().__post_init__()
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
