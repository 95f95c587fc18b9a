"""The papers' datasets in their own layouts: splits, contents of a copy, and clips from it.

`docs/datasets.md` shows each layout. Every dataset opens as the same kind of dataset as a folder of videos.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, get_args

from mutoscope.data.media import IMAGE_SUFFIXES, files_below, visible_matches
from mutoscope.data.sources.datasets.annotations import (
    class_names,
    kinetics_tables,
    list_kinetics600,
    list_objectron,
    list_ssv2,
    list_ucf101,
    ssv2_table,
    ucf_lists,
)
from mutoscope.data.sources.datasets.bair import Camera, find_record_files, list_bair
from mutoscope.data.sources.datasets.listing import (
    SPLITS,
    Listing,
    read_lines,
    sort_out,
    split_folder,
    sub_folder,
)
from mutoscope.data.sources.datasets.nuscenes import list_nuscenes, tables_folder
from mutoscope.data.sources.folder import MediaFile
from mutoscope.data.sources.readers import StillsFile, StillsReader
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from mutoscope.data.sources.clips import ClipDataset, ClipOptions

DatasetKind = Literal["ucf101", "bair", "kinetics600", "ssv2", "nuscenes", "objectron", "imagenet"]
Split = Literal["train", "validation", "test"]
KINDS: tuple[str, ...] = get_args(DatasetKind)
SPLITS_OF: dict[str, tuple[str, ...]] = {
    "ucf101": ("train", "test"),
    "bair": ("train", "validation", "test"),
    "kinetics600": SPLITS,
    "ssv2": SPLITS,
    "nuscenes": ("train", "validation"),
    "objectron": ("train", "test"),
    "imagenet": SPLITS,
}
MIRROR_CHANGES_CLASS = ("ssv2",)  # "pushing from left to right"


def list_dataset(
    kind: str,
    folder: str | Path,
    split: str = "train",
    *,
    fold: int = 1,
    camera: Camera = "image_aux1",
    with_actions: bool = False,
) -> Listing:
    """The contents of one split of a dataset. Reads lists and folders, and no video.

    fold: which of UCF-101's three splits. camera, with_actions: of BAIR.
    Raises UserError for an unknown dataset or split, where the folder is missing, or where its lists are damaged.
    """
    folder = Path(folder)
    if kind not in KINDS:
        raise UserError(f"unknown dataset {kind!r}; known are {', '.join(KINDS)}")
    if split not in SPLITS_OF[kind]:
        raise UserError(f"{kind} has the splits {', '.join(SPLITS_OF[kind])}; found {split!r}")
    if fold not in (1, 2, 3):
        raise UserError(f"UCF-101 has the splits 1, 2 and 3; found fold {fold}")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path")
    if kind == "ucf101":
        return list_ucf101(folder, split, fold)
    if kind == "bair":
        return list_bair(folder, split, camera, with_actions)
    return LISTERS[kind](folder, split)


def open_dataset(
    kind: str,
    folder: str | Path,
    split: str,
    num_frames: int,
    height: int,
    width: int,
    frame_stride: int = 1,
    *,
    fold: int = 1,
    with_actions: bool = False,
    **options: "Unpack[ClipOptions]",
) -> "ClipDataset":
    """Clips of one split of a dataset; `options` are those of `ClipDataset`, one window per video by default.

    with_actions: BAIR's items hold "actions" (t, 4) and "endeffector_positions" (t, 3) too, and cannot be mirrored.
    Raises UserError where nothing is left of the split, or for mirroring where a mirrored clip has another meaning.
    """
    from mutoscope.data.sources.clips import ClipDataset  # torch, which lists of files can do without

    mirrors = options.get("random_flip") or options.get("mirrored")
    if mirrors and (with_actions or kind in MIRROR_CHANGES_CLASS):
        why = "actions point the other way" if with_actions else 'classes such as "left to right" change'
        raise UserError(f"clips of {kind} must not be mirrored: {why} in a mirror")
    if with_actions and kind != "bair":
        raise UserError(f"{kind} has no actions; bair does")
    listing = list_dataset(kind, folder, split, fold=fold, with_actions=with_actions).checked()
    options.setdefault("windows", 1)
    return ClipDataset(listing, num_frames, height, width, frame_stride, **options)


def recognise(folder: str | Path) -> str | None:
    """The dataset whose layout a folder has; None for a plain folder of videos or images."""
    folder = Path(folder)
    if not folder.is_dir():
        return None
    return next((kind for kind in KINDS if LOOKS_LIKE[kind](folder)), None)


def present_splits(kind: str, folder: str | Path) -> list[str]:
    """The splits of a dataset that this copy holds or lists."""
    found = []
    for split in SPLITS_OF[kind]:
        try:
            listing = list_dataset(kind, folder, split)
        except UserError:
            continue
        if listing.files or listing.missing:
            found.append(split)
    return found


# --------------------------------------------------------------------------------------------------------- ImageNet


def list_imagenet(folder: Path, split: str) -> Listing:
    """Images of class folders (named n01440764 and the like); validation may be flat beside LOC_val_solution.csv."""
    root = imagenet_root(folder)
    base = split_folder(root, split)
    if base is None:
        raise UserError(f"{root} holds no folder {split!r}; see docs/datasets.md")
    classes = class_names(split_folder(root, "train") or base)
    labels = {name: label for label, name in enumerate(classes)}
    paths = list(files_below(base, IMAGE_SUFFIXES))
    solution = {} if split == "train" else _validation_labels(folder)
    named = []
    for path in paths:
        first = path.relative_to(base).parts[0]
        name = solution.get(path.stem, "") if first == path.name else first
        label = labels.get(name, -1)
        if label >= 0 or split == "test":
            named.append(StillsFile(path, label, frames=(path,)))
    files, missing = sort_out(named)
    return Listing("imagenet", folder, split, files, classes, missing, len(paths) - len(named), StillsReader())


def imagenet_root(folder: Path) -> Path:
    """The folder of the splits, which Kaggle's archive keeps three folders down."""
    return sub_folder(folder, ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")) or folder


def _validation_labels(folder: Path) -> dict[str, str]:
    """Class by image of LOC_val_solution.csv, whose lines are name,class x y x y ..."""
    path = folder / "LOC_val_solution.csv"
    lines = read_lines(path) if path.is_file() else []
    rows = (line.partition(",") for line in lines)
    return {name: boxes.split()[0] for name, _, boxes in rows if boxes.split()}


def _is_imagenet(folder: Path) -> bool:
    """Class folders with WordNet's numbers."""
    base = split_folder(imagenet_root(folder), "train") or split_folder(imagenet_root(folder), "validation")
    names = class_names(base) if base is not None else []
    return bool(names) and all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)


def _is_ucf101(folder: Path) -> bool:
    """The lists, or class folders in which files are named v_<Class>_gNN_cNN.avi."""
    if ucf_lists(folder) is not None:
        return True
    base = split_folder(folder, "train")
    return base is not None and any(True for _ in visible_matches(base, "*/v_*_g[0-9][0-9]_c[0-9][0-9].avi"))


def _is_objectron(folder: Path) -> bool:
    return (folder / "videos").is_dir() and any(True for _ in visible_matches(folder, "index/*_annotations_*"))


LISTERS: dict[str, Callable[[Path, str], Listing]] = {
    "kinetics600": list_kinetics600,
    "ssv2": list_ssv2,
    "nuscenes": list_nuscenes,
    "objectron": list_objectron,
    "imagenet": list_imagenet,
}
LOOKS_LIKE: dict[str, Callable[[Path], bool]] = {
    "ucf101": _is_ucf101,
    "bair": lambda folder: any(find_record_files(folder, split) for split in SPLITS_OF["bair"]),
    "kinetics600": lambda folder: bool(kinetics_tables(folder)),
    "ssv2": lambda folder: ssv2_table(folder, "labels.json") is not None,
    "nuscenes": lambda folder: tables_folder(folder) is not None,
    "objectron": _is_objectron,
    "imagenet": _is_imagenet,
}
__all__ = [
    "KINDS", "SPLITS_OF", "DatasetKind", "MediaFile", "Split", "imagenet_root", "list_dataset", "open_dataset",
    "present_splits", "recognise",
]  # fmt: skip
