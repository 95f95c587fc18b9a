"""A folder of images as clips of one frame.

Classes are the sub-folders directly below the folder, in alphabetical order (the layout of ImageNet).
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from mutoscope.data.folder import class_folders
from mutoscope.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
TEN_CROP_MARGIN = 1.1  # the images behind ten crops are a tenth larger than a crop


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder. label: position of its class, -1 for an image outside class folders."""

    path: Path
    label: int


def find_images(folder: str | Path) -> tuple[list[ImageFile], list[str]]:
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
    return [ImageFile(path, label) for path, label in zip(paths, labels, strict=True)], classes


def is_image(relative: Path) -> bool:
    """By suffix; nothing hidden, since unfinished files are written under hidden names."""
    return relative.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.parts)


@dataclass
class ImageDataset:
    """Item i is a dict: "video" uint8 (1, height, width, 3), "label" int, "path" str.

    Images are scaled to cover height x width with an anti-aliasing filter, then cropped to the middle. `ten_crops`
    makes ten items of every image, scaled a tenth larger: the middle, four corners, and the five mirrored, as
    LlamaGen's scripts cache them. A file that cannot be read is reported once,
    listed in `broken` and replaced by the next one that can.
    """

    folder: str | Path
    height: int
    width: int
    ten_crops: bool = False
    broken: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files, self.class_names = find_images(self.folder)

    def __len__(self) -> int:
        return len(self.files) * (10 if self.ten_crops else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, crop = divmod(index, 10) if self.ten_crops else (index, 0)
        for step in range(len(self.files)):
            file = self.files[(position + step) % len(self.files)]
            if (image := self._read(file.path)) is not None:
                frame = self._cropped(image, crop)
                return {"video": torch.from_numpy(frame[None]), "label": file.label, "path": str(file.path)}
        raise UserError(f"No image below {self.folder} can be read.")

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
