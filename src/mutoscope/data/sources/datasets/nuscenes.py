"""nuScenes: videos of the front camera, cut out of driving scenes that are kept as tables and images."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mutoscope.data.media import visible_matches
from mutoscope.data.sources.datasets.listing import Listing
from mutoscope.data.sources.folder import FileProblem, MediaFile
from mutoscope.data.sources.readers import StillsFile, StillsReader
from mutoscope.data.text_files import read_text
from mutoscope.errors import UserError, reason
from mutoscope.json_config import parse_json

CHANNEL, VIDEO_FRAMES = "CAM_FRONT", 32
EVERY_NTH = 10  # scene by name belongs to validation, which gives about the paper's 5.4K and 0.6K videos
NOTE = (
    f"videos are {VIDEO_FRAMES} consecutive frames of {CHANNEL} within one scene; MAGVIT's split is not published: "
    f"here every {EVERY_NTH}th scene by name is validation"
)


Row = Mapping[str, str | int]  # of a table, by column


def tables_folder(folder: Path) -> Path | None:
    """The folder with the tables: v1.0-trainval, or v1.0-mini and the like."""
    found = sorted(path.parent for path in visible_matches(folder, "v1.0-*/scene.json"))
    preferred = [path for path in found if path.name == "v1.0-trainval"]
    return (preferred or found or [None])[0]


def list_nuscenes(folder: Path, split: str) -> Listing:
    """Every VIDEO_FRAMES frames in a row are one video; a video that lacks an image is omitted."""
    tables = tables_folder(folder)
    if tables is None:
        raise UserError(f"{folder} holds no tables of nuScenes (v1.0-trainval/scene.json and others)")
    present = set(_images(folder))
    files: list[MediaFile] = []
    missing: list[FileProblem] = []
    for number, (scene, names) in enumerate(sorted(_frames_of_scenes(tables).items())):
        if (number % EVERY_NTH == EVERY_NTH - 1) != (split == "validation"):
            continue
        for start in range(0, len(names) - VIDEO_FRAMES + 1, VIDEO_FRAMES):
            chunk = names[start : start + VIDEO_FRAMES]
            absent = [name for name in chunk if name not in present]
            if absent:
                reason = f"{len(absent)} of {VIDEO_FRAMES} images of {scene} from {start} on are missing or empty"
                missing.append(FileProblem(str(folder / absent[0]), reason))
                continue
            paths = tuple(folder / name for name in chunk)
            files.append(StillsFile(paths[0], -1, part=f"{scene}/{start}", frames=paths))
    return Listing("nuscenes", folder, split, files, missing=missing, reader=StillsReader(), notes=(NOTE,))


def _images(folder: Path) -> Iterator[str]:
    """Names, as the tables write them, of the camera's images that exist and are not empty."""
    for kind in ("samples", "sweeps"):
        for path in visible_matches(folder, f"{kind}/{CHANNEL}/*"):
            if path.is_file() and path.stat().st_size:
                yield f"{kind}/{CHANNEL}/{path.name}"


def _frames_of_scenes(tables: Path) -> dict[str, list[str]]:
    """Image names of the front camera in order of time, by the scene's name."""
    sensors = {row["token"] for row in _table(tables, "sensor", "token", "channel") if row["channel"] == CHANNEL}
    cameras = {
        row["token"]
        for row in _table(tables, "calibrated_sensor", "token", "sensor_token")
        if row["sensor_token"] in sensors
    }
    scenes = {row["token"]: str(row["name"]) for row in _table(tables, "scene", "token", "name")}
    samples = {row["token"]: row["scene_token"] for row in _table(tables, "sample", "token", "scene_token")}
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    keys = ("calibrated_sensor_token", "sample_token", "timestamp", "filename")
    for row in _table(tables, "sample_data", *keys):
        scene = scenes.get(samples.get(str(row["sample_token"]), ""))
        if scene is not None and row["calibrated_sensor_token"] in cameras:
            found[scene].append((int(row["timestamp"]), str(row["filename"])))
    return {scene: [name for _, name in sorted(frames)] for scene, frames in found.items()}


def _table(tables: Path, name: str, *keys: str) -> Iterable[Row]:
    """Rows of a table, all of which have these keys."""
    path = tables / f"{name}.json"
    text = read_text(path)
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({reason(error)}); copy it again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(keys) <= row.keys() for row in rows):
        raise UserError(f"{path} is not a table of nuScenes: every row needs {', '.join(keys)}")
    return rows
