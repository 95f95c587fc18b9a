"""What was played, as files: a film, a picture, or an episode that training reads."""

import io
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mutoscope.actions import ActionSpec
from mutoscope.data.sources.parquet import require_pyarrow
from mutoscope.data.video.write import VideoWriter
from mutoscope.playground.world import Card
from mutoscope.worlds.lerobot_writer import DatasetForm, EpisodePart, encode_episode, pixel_statistics, write_dataset
from mutoscope.writing import workspace

FILM_TYPES = {"mp4": "video/mp4", "gif": "image/gif", "png": "image/png"}
SHORTEST_SIDE = 256  # of a film: small frames are enlarged, since most programs blur them


def written(frames: UInt8[np.ndarray, "t h w 3"], fps: float, suffix: str) -> bytes:
    """Frames as a video file (.mp4 or .gif) or a contact sheet (.png)."""
    with workspace("mutoscope-film-") as folder:
        path = Path(folder) / f"film{suffix}"
        scale = 1 if suffix == ".png" else max(1, SHORTEST_SIDE // min(frames.shape[1:3]))
        with VideoWriter(path, fps, scale) as writer:
            for frame in frames:
                writer.write(frame)
        return path.read_bytes()


def film(cards: list[Card], fps: float, suffix: str) -> bytes:
    """What was played, as `written` writes it."""
    return written(np.stack([card.pixels() for card in cards]), fps, suffix)


def episode(cards: list[Card], actions: ActionSpec, fps: float, task: str) -> bytes:
    """A LeRobot v3.0 dataset of one episode as a ZIP archive. Raises UserError where pyarrow is missing.

    An action leads to its card; the dataset's row t leads from frame t to the next, and the last one does nothing.
    """
    require_pyarrow(Path("the episode"))
    frames = [card.pixels() for card in cards]
    rows = np.array([card.action for card in cards[1:]] + [(0.0,) * actions.size], np.float32)
    with workspace("mutoscope-episode-") as temporary:
        video, out = Path(temporary) / "episode.mp4", Path(temporary) / "dataset"
        out.mkdir()
        encode_episode(frames, fps, video)
        nothing = np.zeros(len(frames), np.float32)
        part = EpisodePart(video, task, rows, nothing, nothing.astype(bool), pixel_statistics(frames))
        height, width = frames[0].shape[:2]
        write_dataset(out, [part], DatasetForm(fps, height, width, actions.names, actions.kind, "mutoscope play"))
        return zipped(out)


def zipped(folder: Path) -> bytes:
    """A folder as a ZIP archive without compression: videos are compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return buffer.getvalue()
