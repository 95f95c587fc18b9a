"""A folder of images as clips of one frame: the middle, ten crops, or random ones.

Classes are the sub-folders directly below the folder, in alphabetical order (the layout of ImageNet).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch.utils.data import default_collate

from mutoscope.data.loader import stream_index
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import MediaFile, class_folders, read_caption
from mutoscope.data.video.decode import IMAGE_SUFFIXES
from mutoscope.errors import UserError

TEN_CROP_MARGIN = 1.1  # the images behind ten crops are a tenth larger than a crop
SMALLEST_CROP = 0.8  # of the shorter side, for random crops


def find_images(folder: str | Path) -> tuple[list[MediaFile], list[str]]:
    """All images below a folder in order of path, and the class names.

    Raises UserError where the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; check the path.")
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    paths = sorted(path for path in folder.rglob("*") if is_image(path.relative_to(folder)) and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no images; known suffixes are {suffixes}.")
    labels, classes = class_folders(folder, paths)
    return [MediaFile(path, label, read_caption(path)) for path, label in zip(paths, labels, strict=True)], classes


def is_image(relative: Path) -> bool:
    """By suffix; nothing hidden, since unfinished files are written under hidden names."""
    return relative.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.parts)


@dataclass
class ImageDataset:
    """Item i is a dict: "video" uint8 (1, height, width, 3), "label" int, "caption" str, "path" str.
    Images are scaled to cover height x width with an anti-aliasing filter, then cropped to the middle. `ten_crops`
    makes ten items of every image, scaled a tenth larger: the middle, four corners, and the five mirrored, as
    LlamaGen's scripts cache them. A file that cannot be read is reported once,
    listed in `broken` and replaced by the next one that can.
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

    def __len__(self) -> int:
        return len(self.files) * (10 if self.ten_crops else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, crop = divmod(index, 10) if self.ten_crops else (index, 0)
        image, file = self._readable(position)
        return _item(self._cropped(image, crop), file)

    def random_item(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
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
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.broken.append(path)
            warnings.warn(f"{path} cannot be read ({error}); it is left out.", stacklevel=2)
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


def _item(frame: UInt8[np.ndarray, "h w 3"], file: MediaFile) -> dict[str, Any]:
    kept = {"label": file.label, "caption": file.caption, "path": str(file.path)}
    return {"video": torch.from_numpy(frame[None]), **kept}


@dataclass(frozen=True)
class RandomCrops:
    """A dataset of images as an endless batch source in which an image looks different each time it comes.

    Clip p is the image at position p of the endless stream of permutations (see `StepSampler`), in a crop drawn from
    (seed, p): a batch depends on nothing else.
    """

    dataset: ImageDataset
    seed: int = 0
    num_clips: None = None

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Any]:
        return default_collate([self._clip(int(position)) for position in indices])

    def _clip(self, position: int) -> dict[str, Any]:
        index = stream_index(position, len(self.dataset.files), self.seed)
        generator = np.random.Generator(np.random.PCG64([self.seed, position]))
        return self.dataset.random_item(index, generator)


def random_crop(
    image: Image.Image, height: int, width: int, generator: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """As LlamaGen's tokenizer is trained: scaled by a random factor, cropped at a random place, mirrored half the time.

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
