"""Tokens or latents of many clips on disk, memory-mapped: a clip is encoded once and read every epoch.

    tokens.npy             (n, *clip shape), int16 or int32 tokens, float16 latents
    label.npy              (n,) int64
    condition-<task>.npy   like tokens.npy: the encoded condition video of that task
    caption.npy            (n, rows, channels) float16: text features, and caption_length.npy (n,): rows that hold words
    motion.npy             (n,) float32: mean optical flow in pixels
    <field>.npy            (n, *shape): any other per-clip field of the source (`TokenCacheInfo.fields`)
    text_encoder/          an encoder of the captions' own words, where no model's encoder was named
    metadata.json          TokenCacheInfo; written last, so a folder without it is unfinished

This file holds the format only. `runs/tokenize.py` fills a cache and decides what is encoded with which tokenizer.
"""

import errno
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mutoscope.data.base import LABEL, ClipBatch, ClipSource, Field, PathData, TokenBatch, described_actions, flat
from mutoscope.data.sources.survey import DataSurvey
from mutoscope.declared import check_npy
from mutoscope.errors import UserError, reason
from mutoscope.json_config import dataclass_from_dict, read_json
from mutoscope.writing import allocated_bytes, flush, free_bytes, new_folder, reserve, write_whole, writing

METADATA = "metadata.json"
PROGRESS = "progress.json"
CONTEXT_FRAMES = "context_frames"  # in TokenCacheInfo.data, where it is not 1
DTYPES = ("int16", "int32", "float16")


@dataclass(frozen=True)
class StoredField:
    """How one per-clip field is stored: NumPy's name of its type, and the shape of one clip's value."""

    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenCacheInfo:
    """The contents and the origin of a cache; two runs with equal info write equal caches.

    clip_shape: (t, h, w) of tokens, (c, t, h, w) of latents. conditions: tasks whose condition videos are encoded too.
    tokenizer, tokenizer_hash: name and SHA-256 of the weights. data: the origin of the clips (`DataConfig.origin`).
    caption_shape: rows and channels of the text features, None without captions. motion: whether optical flow is
    stored. fields: every other per-clip field beside the label, by name.
    """

    num_clips: int
    clip_shape: tuple[int, ...]
    dtype: str
    tokenizer: str
    tokenizer_hash: str
    conditions: tuple[str, ...] = ()
    data: dict[str, object] = field(default_factory=dict)
    caption_shape: tuple[int, int] | None = None
    motion: bool = False
    fields: dict[str, StoredField] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}.")

    @classmethod
    def from_json(cls, values: object, path: Path) -> "TokenCacheInfo":
        """Raises UserError when keys are missing or unknown, or their values are not valid."""
        where = f"{path} does not describe a token cache of this version; tokenize the clips again"
        values = with_fields(values) if isinstance(values, Mapping) else values
        return dataclass_from_dict(cls, cast(Mapping[str, object], values), where)

    def holds(self, wanted: "TokenCacheInfo") -> bool:
        """Whether this is a cache of the wanted clips. Settings that an earlier version did not record do not count."""
        data = {name: value for name, value in wanted.data.items() if name in self.data or name == CONTEXT_FRAMES}
        return self == replace(wanted, data=data)

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """File name without suffix -> (dtype, shape)."""
        tokens, n = (self.dtype, (self.num_clips, *self.clip_shape)), self.num_clips
        arrays = {"tokens": tokens, "label": ("int64", (n,))}
        arrays |= {f"condition-{task}": tokens for task in self.conditions}
        if self.caption_shape is not None:
            arrays |= {"caption": ("float16", (n, *self.caption_shape)), "caption_length": ("int64", (n,))}
        if self.motion:
            arrays["motion"] = ("float32", (n,))
        return arrays | {name: (stored.dtype, (n, *stored.shape)) for name, stored in self.fields.items()}


# One key per field, as metadata was written before `fields` -> how that field was stored
_OLD_KEYS = ("interval", "history_only", "history", "action_shape")


def with_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Metadata as it is written now; caches of earlier versions have one key for each field."""
    kept = {name: value for name, value in values.items() if name not in _OLD_KEYS}
    old = {name: value for name, value in values.items() if name in _OLD_KEYS and value}
    clip_shape = values.get("clip_shape")
    if not old or not isinstance(clip_shape, list):
        return kept
    stored: dict[str, object] = {
        "interval": {"dtype": "int64"},
        "history_only": {"dtype": "bool", "shape": clip_shape[-3:-2]},
        "history": {"dtype": values.get("dtype"), "shape": clip_shape},
        "action_shape": {"dtype": "float32", "shape": old.get("action_shape")},
    }
    names = {"action_shape": "actions"}
    return kept | {"fields": {names.get(name, name): stored[name] for name in old}}


def partial_folder(folder: Path) -> Path:
    """Where a cache is written until it is finished."""
    return folder.with_name(folder.name + ".partial")


def text_encoder_folder(folder: Path) -> Path:
    """Where a cache keeps the encoder of its captions."""
    return folder / "text_encoder"


class StoredRows:
    """A file `<name>.npy` of one row per clip, which is written row by row.

    Rows are written by calls instead of through a memory map: a memory map answers a full disk, an exhausted quota and
    a broken disk by a signal that ends the process (SIGBUS).
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]):
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )
        self._header = header.getvalue()

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        return len(self._header) + self.dtype.itemsize * math.prod(self.shape)

    def reserve(self) -> None:
        """Creates the file unless it exists, and allocates the disk space of all its rows, which stay as they are."""
        with writing(self.path, self.num_bytes):
            self.path.touch()
            with self.path.open("r+b") as file:  # also where a kill came between a file and its header
                file.write(self._header)
        reserve(self.path, self.num_bytes)

    def write(self, position: int, rows: np.ndarray) -> None:
        """Stores rows (b, *shape) from row `position` on; they are on disk when this returns."""
        offset = len(self._header) + position * self.dtype.itemsize * math.prod(self.shape[1:])
        with writing(self.path, rows.nbytes), self.path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(rows).tobytes())
            flush(file)


class TokenCacheWriter:
    """Fills a cache in order and picks up where an interrupted writer stopped.

    Until `finish` everything is in a folder named `<folder>.partial`, so `folder` is either complete or absent.
    """

    def __init__(self, folder: str | Path, info: TokenCacheInfo):
        """Raises UserError when `folder` exists, or holds an unfinished cache of something else."""
        self.folder, self.info = Path(folder), info
        self.partial = partial_folder(self.folder)
        if self.folder.exists():
            raise UserError(f"{self.folder} already exists; choose another folder for the token cache or remove it.")
        has_started = any((self.partial / name).exists() for name in (PROGRESS, METADATA))
        self.position = self._resume() if has_started else 0
        self._files = {name: StoredRows(self.partial / f"{name}.npy", *of) for name, of in info.arrays().items()}
        self._reserve(is_new=not has_started)
        if not has_started:
            self._write_progress(0)

    def _reserve(self, is_new: bool) -> None:
        """Allocates all files. Raises UserError where the disk cannot hold them; nothing new is left behind then."""
        missing = sum(max(file.num_bytes - allocated_bytes(file.path), 0) for file in self._files.values())
        with writing(self.folder, missing, self.partial if is_new else None):
            new_folder(self.partial)
            if (free := free_bytes(self.partial)) is not None and free < missing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for file in self._files.values():
                file.reserve()

    def _resume(self) -> int:
        path = self.partial / PROGRESS
        if path.exists():
            progress = read_json(path)
        else:  # everything is written, and only its final name is missing
            path = self.partial / METADATA
            progress = {"position": self.info.num_clips, "info": read_json(path)}
        found, wanted = (TokenCacheInfo.from_json(values, path) for values in (progress.get("info"), _plain(self.info)))
        if not found.holds(wanted):
            raise UserError(f"{self.partial} is an unfinished cache of other clips or another tokenizer; remove it.")
        position = progress.get("position")
        if not isinstance(position, int) or not 0 <= position <= self.info.num_clips:
            raise UserError(f"{path} names no clip to continue from; remove {self.partial}.")
        return position

    def write(
        self,
        tokens: Tensor,
        label: Int[Tensor, " b"],
        conditions: Mapping[str, Tensor] | None = None,
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Appends a batch of encoded clips (b, *clip_shape) and, for every task of the info, their conditions.

        `more`: "caption" and "caption_length", "motion", and the fields of the info, all of which must be there.
        """
        end = self.position + len(tokens)
        if end > self.info.num_clips:
            raise ValueError(f"{end} clips do not fit a cache of {self.info.num_clips}")
        values = {"tokens": tokens, "label": label} | {f"condition-{k}": v for k, v in (conditions or {}).items()}
        values |= more or {}
        if values.keys() != self._files.keys():
            raise ValueError(f"expected {sorted(self._files)}, got {sorted(values)}")
        for name, value in values.items():
            rows = _checked(name, value, self._files[name].dtype, self.position)
            self._files[name].write(self.position, rows)
        self.position = end
        self._write_progress(end)

    def finish(self) -> "TokenCache":
        """Gives the full cache its final name and opens it."""
        if self.position != self.info.num_clips:
            raise ValueError(f"only {self.position} of {self.info.num_clips} clips are written")
        write_whole(self.partial / METADATA, json.dumps(_plain(self.info), indent=2) + "\n")
        with writing(self.folder):
            (self.partial / PROGRESS).unlink(missing_ok=True)
            self.partial.rename(self.folder)
        return TokenCache(self.folder)

    def _write_progress(self, position: int) -> None:
        write_whole(self.partial / PROGRESS, json.dumps({"position": position, "info": _plain(self.info)}))


def started_info(folder: Path) -> TokenCacheInfo | None:
    """What the finished or unfinished cache at `folder` is a cache of; None where there is none that can be read."""
    finished, begun = folder / METADATA, partial_folder(folder) / PROGRESS
    try:
        if finished.is_file():
            return TokenCacheInfo.from_json(read_json(finished), finished)
        return TokenCacheInfo.from_json(read_json(begun).get("info"), begun)
    except (OSError, ValueError):
        return None


class TokenCache(ClipSource[TokenBatch]):
    """A finished cache: `cache[indices]` is a batch of tokens with every stored field (see `TokenBatch`)."""

    def __init__(self, folder: str | Path):
        """Raises UserError when the folder holds no finished cache or its files do not fit its metadata."""
        self.folder = Path(folder)
        path = self.folder / METADATA
        try:
            values = read_json(path)
        except UserError as error:
            message = f"{self.folder} is not a finished token cache ({reason(error)}); tokenize the clips first."
            raise UserError(message) from None
        self.info = TokenCacheInfo.from_json(values, path)
        self.num_clips = self.info.num_clips
        self.class_names = tuple(cast(Sequence[str], self.info.data.get("class_names", ())))
        self.fields = {"label": LABEL} | {
            name: Field(stored.dtype, stored.shape) for name, stored in self.info.fields.items()
        }
        for name, expected in self.info.arrays().items():
            if (str(self._arrays[name].dtype), self._arrays[name].shape) != expected:
                raise UserError(f"{self.folder / name}.npy does not fit {path}; tokenize the clips again.")
        self.episodes = np.array(self._arrays["episode"]) if "episode" in self.info.fields else None
        self.plain_rows = None if self.episodes is None else self._plain_rows()

    def _plain_rows(self) -> Bool[np.ndarray, " n"]:
        """Which clips have the interval 1 and no temporal gap."""
        plain = np.ones(self.num_clips or 0, dtype=bool)
        if "interval" in self.info.fields:
            plain &= self._arrays["interval"] == 1
        if "history_only" in self.info.fields:
            plain &= ~self._arrays["history_only"].any(axis=1)
        return plain

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            for name in self.info.arrays():
                check_npy(self.folder / f"{name}.npy")
            return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.info.arrays()}
        except (OSError, ValueError) as error:
            raise UserError(
                f"The token cache {self.folder} is damaged ({reason(error)}); tokenize the clips again."
            ) from None

    @property
    def text_encoder(self) -> Path | None:
        """Folder of the encoder of the captions, where the cache has one of its own."""
        folder = text_encoder_folder(self.folder)
        return folder if folder.is_dir() else None

    def __getstate__(self) -> dict[str, object]:
        """Workers open the files themselves: a pickled memory map would be copied whole."""
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The label of every clip."""
        return self._arrays["label"]

    def __len__(self) -> int:
        return self.info.num_clips

    def __getitem__(self, indices: Sequence[int]) -> TokenBatch:
        rows, info = np.asarray(indices, dtype=np.int64), self.info
        batch: TokenBatch = {
            "tokens": self._read("tokens", rows),
            "label": self._read("label", rows),
            "conditions": {task: self._read(f"condition-{task}", rows) for task in info.conditions},
        }
        if info.caption_shape is not None:
            numbers, lengths = torch.arange(info.caption_shape[0]), self._read("caption_length", rows)
            batch["caption"], batch["caption_mask"] = self._read("caption", rows), numbers < lengths[:, None]
        if info.motion:
            batch["motion"] = self._read("motion", rows)
        fields = {name: self._read(name, rows) for name in info.fields}
        return cast(TokenBatch, {**batch, **fields})

    def _read(self, name: str, rows: np.ndarray) -> Tensor:
        values = self._arrays[name][rows]
        return torch.from_numpy(values.astype({"f": np.float32, "b": np.bool_}.get(values.dtype.kind, np.int64)))


@dataclass(frozen=True, kw_only=True)
class TokensData(PathData):
    """Settings of a finished token cache; its own metadata says which clips it holds."""

    kind: Literal["tokens"] = "tokens"

    def open(self) -> ClipSource[ClipBatch]:
        """Raises UserError: a cache holds no pixels."""
        raise UserError(
            f"{self.path or 'A token cache'} holds tokens, and pixels are needed here: name the videos themselves "
            "with --data."
        )

    def cache(self) -> TokenCache:
        """The cache. Raises UserError where it is not finished or damaged."""
        return TokenCache(self.required_path())

    def class_names(self) -> Sequence[str]:
        return self.cache().class_names

    def describe(self) -> dict[str, object]:
        return self.cache().info.data

    def survey(self) -> DataSurvey:
        """Of the clips that were tokenized: sizes that the cache's metadata lacks are those of these settings."""
        info = self.cache().info
        data = flat(info.data)
        recorded = {n: int(str(data.get(n, getattr(self, n)))) for n in ("height", "width", "num_frames")}
        return DataSurvey(
            height=recorded["height"],
            width=recorded["width"],
            fps=float(str(data.get("fps", self.fps))),
            num_videos=info.num_clips,
            frames=(recorded["num_frames"], recorded["num_frames"]),
            class_names=tuple(self.class_names()),
            has_captions=info.caption_shape is not None,
            actions=described_actions(info.data),
        )


def token_dtype(vocab_size: int | None) -> str:
    """The smallest stored dtype for this many codes; float16 for continuous latents (None)."""
    if vocab_size is None:
        return "float16"
    return "int16" if vocab_size <= 2**15 else "int32"


def _checked(name: str, value: Tensor, dtype: np.dtype, first: int) -> np.ndarray:
    """The values as an array of `dtype`. Raises UserError for latents and features that float16 cannot hold."""
    array = value.detach().cpu().numpy()
    with np.errstate(over="ignore"):  # said below
        stored = array.astype(dtype)
    if dtype.kind == "i" and not np.array_equal(stored, array):
        raise ValueError(f"tokens up to {array.max()} do not fit {dtype}")
    if dtype == np.float16 and not np.isfinite(stored).all():
        found = f"reach {np.abs(array).max():g}" if np.isfinite(array).all() else "hold NaN or infinity"
        raise UserError(
            f"The {name} of clips {first} … {first + len(array) - 1} do not fit float16, which ends at 65504: they "
            f"{found}. The weights that encoded them are damaged, or were never normalised."
        )
    return stored


def _plain(info: TokenCacheInfo) -> dict[str, object]:
    return json.loads(json.dumps(asdict(info)))
