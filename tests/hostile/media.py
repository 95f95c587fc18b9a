# ruff: noqa: E501 - tables with one case in a line
"""Hostile recordings: images and videos that declare absurd sizes, and tables, texts and datasets around them."""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hostile.case import Case, alone
from hostile.settings import ESCAPES, TEXTS
from hostile.weights import squeezed
from mutoscope.data.video.read import write_video

READ = ("inspect {}", "reconstruct tokenizer {} out.mp4", "generate world --out out.mp4 --context {}", "upload {}")


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    """A PNG file with any header."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gif(width: int, height: int, frames: int = 1) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0x80) + bytes(6) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame * frames + b"\x3b"


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100)
    )


def webp(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", 0x02) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = (
        b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + b"VP8L" + struct.pack("<I", 8) + b"\x2f" + b"\xff" * 7
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    data = content.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def tiff(width: int, height: int, count: int = 1) -> bytes:
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, count, 8),
    ]
    entries += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, count, 8)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", 8)


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", len(data) + 8, kind) + data


def patched(kind: bytes, content: bytes) -> bytes:
    """A small MP4 file in which one table of its video is another; boxes around it have the right lengths."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        write_video(path, np.zeros((4, 16, 16, 3), np.uint8), 8)
        data = path.read_bytes()
    return rebuilt(data, kind, content)


def rebuilt(data: bytes, kind: bytes, content: bytes) -> bytes:
    out, at = b"", 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        inner = data[at + 8 : at + length]
        if name == kind:
            inner = content
        elif name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"):
            inner = rebuilt(inner, kind, content)
        out += box(name, inner)
        at += max(length, 8)
    return out


def fragment(count: int) -> bytes:
    run = box(b"trun", struct.pack(">III", 0, count, 0))
    return patched(b"free", b"") + box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 0x20000, 1)), run))


def images() -> Iterator[Case]:
    profile = chunk(b"iCCP", b"a\0\0" + squeezed(2**30, 15))
    text = chunk(b"zTXt", b"a\0\0" + squeezed(2**30, 15))
    contents = {
        "p.png": {
            "sixty thousand squared": png(60_000, 60_000, zlib.compress(bytes(100))),
            "two billion squared": png(2**31 - 1, 2**31 - 1, zlib.compress(bytes(100))),
            "nothing squared": png(0, 0),
            "nine thousand squared, all there": png(9000, 9000, squeezed(9000 * 27001 + 2**24, 15)),
            "16 bits, nine thousand squared": png(9000, 9000, squeezed(9000 * 54001, 15), depth=16),
            "a colour profile of a gigabyte": png(10**5, 10**5, b"", profile),
            "a text of a gigabyte": png(10**5, 10**5, b"", text),
            "a chunk of gigabytes": png(10**5, 10**5)[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(10),
            "animation of billions": png(10**5, 10**5, b"", chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        },
        "p.webp": {"sixteen thousand squared": webp(16384, 16384), "no image": webp(100, 100)},
        "p.bmp": {"thirty thousand squared": bmp(30_000, 30_000), "two billion": bmp(2**31 - 1, 2**31 - 1)},
        "p.jpg": {"sixty-five thousand squared": jpeg(65_500, 65_500)},
        "p.tif": {
            "sixty thousand squared": tiff(60_000, 60_000), "strips of gigabytes": tiff(100, 100, 2**30),
            "pages in a circle": tiff(60_000, 60_000),
        },
        "p.avif": {"text": b"\0\0\0\x1cftypavif" + b"x" * 100},
        "p.gif": {"sixty-five thousand squared": gif(65_535, 65_535), "thirty thousand, many": gif(30_000, 30_000, 100)},
    }  # fmt: skip
    for name, found in contents.items():
        for label, content in found.items():
            yield Case(f"{name} of {label}", "image", alone(name, content), tuple(line.format(name) for line in READ))
    folder = png(60_000, 60_000, zlib.compress(bytes(100)))
    lines = ("inspect images", "tokenize tokenizer images out --num-clips 2", "evaluate images --reference clips")
    yield Case("a folder of such an image", "image", alone("images/p.png", folder), lines)


def videos() -> Iterator[Case]:
    many = struct.pack(">I", 2**28)
    contents = {
        "a billion frames of one size": patched(b"stsz", struct.pack(">III", 0, 1, 2**30)),
        "four billion frames": patched(b"stsz", struct.pack(">III", 0, 0, 2**32 - 1)),
        "times of a billion frames": patched(b"stts", struct.pack(">IIII", 0, 1, 2**30, 1)),
        "offsets of a billion frames": patched(b"ctts", struct.pack(">IIII", 0, 1, 2**30, 1)),
        "edits without end": patched(
            b"elst", struct.pack(">II", 0, 100_000) + struct.pack(">IIHH", 10, 0, 1, 0) * 100_000
        ),
        "a fragment of a billion frames": fragment(2**30),
        "boxes inside boxes": box(b"ftyp", b"isom") + nested(20_000),
        "a box of exabytes": box(b"ftyp", b"isom") + struct.pack(">I4sQ", 1, b"moov", 2**63),
        "no boxes": b"\0\0\0\x18ftypmp42" + bytes(1000),
    }
    for label, content in contents.items():
        lines = tuple(line.format("v.mp4") for line in READ)
        yield Case(f"v.mp4 with {label}", "video", alone("v.mp4", content), lines)
    others = {
        "v.y4m": b"YUV4MPEG2 W60000 H60000 F25:1 C420\nFRAME\n" + bytes(100),
        "v.avi": b"RIFF" + many + b"AVI LIST" + many + b"hdrlavih" + struct.pack("<I", 56) + b"\xff" * 56,
        "v.mkv": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xfe" + bytes(100),
        "v.webm": b"\x1a\x45\xdf\xa3\x8f\x42\x82\x84webm\x42\x87\x81\x02\x42\x85\x81\x02\x18\x53\x80\x67\x10\xff\xff\xff" + bytes(50),
        "v.flv": b"FLV\1\5\0\0\0\x09" + b"\xff" * 1000,
        "v.ts": b"\x47\x40\x00\x10" + b"\xff" * 184 * 10,
        "v.h264": b"\0\0\0\1\x67" + b"\xff" * 200,
        "v.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "v.mov": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }  # fmt: skip
    for name, content in others.items():
        yield Case(f"{name} of wrong bytes", "video", alone(name, content), tuple(line.format(name) for line in READ))


def nested(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = box(b"moov", data)
    return data


def table(rows: int, text: str = "a", column: str = "episode_index") -> bytes:
    """A Parquet file whose columns repeat one value."""
    import pyarrow
    from pyarrow import parquet

    part, kind = min(rows, 2**20), pyarrow.string() if len(text) == 1 else pyarrow.large_string()
    schema = pyarrow.schema([(column, pyarrow.int64()), ("text", kind)])
    batch = pyarrow.Table.from_arrays(
        [pyarrow.array(np.zeros(part, np.int64)), pyarrow.repeat(pyarrow.scalar(text, kind), part)], schema=schema
    )
    content = io.BytesIO()
    with parquet.ParquetWriter(content, schema) as writer:
        for _ in range(max(rows // part, 1)):
            writer.write_table(batch)
    return content.getvalue()


INFO = {
    "codebase_version": "v3.0", "robot_type": "x", "total_episodes": 1, "total_frames": 10, "total_tasks": 1, "fps": 10,
    "chunks_size": 1000, "splits": {"train": "0:1"}, "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "features": {
        "observation.image": {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [1], "names": ["a"]},
    },
}  # fmt: skip
LEROBOT = (
    "inspect robot",
    "tokenize tokenizer robot out --num-clips 2",
    "finetune world robot out --loop.num-steps 400",
)


def datasets() -> Iterator[Case]:
    absurd: dict[str, dict[str, object]] = {
        "a path of gigabytes": {"data_path": "{chunk_index:>1000000000}"},
        "a path to attributes": {"data_path": "{chunk_index.__class__.__mro__}"},
        "a path out of the folder": {"data_path": "../../../etc/passwd"},
        "a path of a megabyte": {"data_path": "p" * 10**6},
        "billions of episodes": {"total_episodes": 10**18},
        "a rate of 1e308": {"fps": 1e308},
        "a rate in escapes": {"fps": ESCAPES},
        "actions of exabytes": {
            "features": INFO["features"] | {"action": {"dtype": "float32", "shape": [2**60], "names": None}}
        },  # type: ignore[operator]
        "a version in escapes": {"codebase_version": ESCAPES},
        "a version of a megabyte": {"codebase_version": "v" * 10**6},
        "a camera of a megabyte": {"features": {"n" * 10**6: {"dtype": "video", "shape": [1, 1, 3], "names": None}}},
        "splits of a megabyte": {"splits": {"train": "0" * 10**6 + ":1"}},
    }
    for label, values in absurd.items():
        settings = alone("robot/meta/info.json", json.dumps(INFO | values).encode())
        yield Case(f"info.json with {label}", "dataset", settings, LEROBOT)
    for label, content in TEXTS.items():
        if label != "a list":
            yield Case(f"info.json with {label}", "JSON", alone("robot/meta/info.json", content), LEROBOT[:2])
    tables = {
        "thirty million rows": table(2**26 // 2 + 2**20),
        "a text of a megabyte in a thousand rows": table(1000, "t" * 2**20),
        "half a table": table(1000)[:-100],
        "no table": b"PAR1" + bytes(100) + b"PAR1",
        "a footer of gigabytes": b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1",
    }
    for label, content in tables.items():

        def write(folder: Path, content: bytes = content) -> None:
            alone("robot/meta/info.json", json.dumps(INFO).encode())(folder)
            alone("robot/meta/episodes/chunk-000/file-000.parquet", content)(folder)
            alone("robot/meta/tasks.parquet", content)(folder)
            alone("robot/data/chunk-000/file-000.parquet", content)(folder)

        yield Case(f"Parquet of {label}", "dataset", write, LEROBOT[:2])


def tables() -> dict[str, tuple[str, bytes]]:
    """Files beside videos: label -> name and content."""
    return {
        "metadata.csv with a name of megabytes": ("metadata.csv", b"file_name,text\n" + b"n" * 10**7 + b",a\n"),
        "metadata.csv with escapes": ("metadata.csv", b"file_name,text\n" + ESCAPES.encode() + b".mp4,a\n"),
        "metadata.jsonl nested deep": ("metadata.jsonl", b'{"file_name": ' + b"[" * 100_000 + b"\n\n"),
        "metadata.jsonl with escapes": (
            "metadata.jsonl",
            json.dumps({"file_name": ESCAPES, "text": 1}).encode() + b"\n\n",
        ),
        "metadata.parquet of no table": ("metadata.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        "metadata.parquet of rows without end": ("metadata.parquet", table(2**25, column="file_name")),
        "actions.json nested deep": ("actions.json", b"[" * 100_000),
        "actions.json with escapes": ("actions.json", json.dumps({"names": [ESCAPES], "kind": ESCAPES}).encode()),
    }


def captions() -> Iterator[Case]:
    for label, (name, content) in tables().items():

        def write(folder: Path, name: str = name, content: bytes = content) -> None:
            (folder / "films").mkdir()
            (folder / "films" / "a.mp4").write_bytes((folder / "clip.mp4").read_bytes())
            (folder / "films" / name).write_bytes(content)

        yield Case(
            label, "captions", write, ("inspect films", "tokenize tokenizer films out --num-clips 2"), reports=True
        )


def actions() -> Iterator[Case]:
    contents = {
        "a.json": {label: content for label, content in TEXTS.items()},
        "a.csv": {
            "a line of ten megabytes": b"1," * 5_000_000, "a cell of megabytes": b"a\n" + b"9" * 10**6 + b"\n",
            "escapes": b"a\n" + ESCAPES.encode() + b"\n", "names of escapes": ESCAPES.encode() + b",b\n1,2\n",
        },
    }  # fmt: skip
    for name, found in contents.items():
        for label, content in found.items():
            yield Case(
                f"{name} with {label}",
                "actions",
                alone(name, content),
                (f"generate world --out out.mp4 --actions {name}",),
            )


def media_cases() -> Iterator[Case]:
    """All of them."""
    for cases in (images, videos, datasets, captions, actions):
        yield from cases()
