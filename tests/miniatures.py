"""Miniature copies of the papers' datasets in their exact layouts, with the faults that real copies have.

Every builder writes below the folder it is given and returns what the readers are pointed at.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from mutoscope.data.sources.datasets.tfrecord import crc32c
from tfrecord_files import example, write_records

LONG, SHORT = 50, 8  # frames


def moving(count: int, height: int = 24, width: int = 32, light: int = 90) -> np.ndarray:
    """uint8 (t, h, w, 3): waves that move to the right, on average as bright as `light`."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    waves = light + 40 * np.sin(0.3 * x - 0.4 * t)
    return np.stack([waves, waves + 10 * np.sin(0.2 * y), waves - 5], axis=-1).clip(0, 255).astype(np.uint8)


def video(path: Path, frames: np.ndarray, codec: str = "libx264", fps: int = 25, rotation: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = "yuv420p"
        stream.options = {"cpu-used": "8", "preset": "ultrafast"} if codec != "mpeg4" else {}
        if rotation:
            stream.set_display_rotation(rotation)
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cut(path: Path, part: float = 0.3) -> Path:
    """Keeps the first part of a file."""
    data = path.read_bytes()
    return write(path, data[: int(len(data) * part)])


def ucf101(root: Path) -> Path:
    """Two classes; of the training list two videos are whole, one is short, one no video, one empty, one missing."""
    lists, videos = root / "ucfTrainTestlist", root / "UCF-101"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    makeup = "ApplyEyeMakeup/v_ApplyEyeMakeup_g{:02}_c01.avi"
    stand = "HandstandPushups/v_HandStandPushups_g{:02}_c01.avi"
    names = [makeup.format(8), stand.format(8), makeup.format(9), stand.format(9), makeup.format(10), stand.format(10)]
    write(lists / "trainlist01.txt", "".join(f"{name} {1 + name.startswith('H')}\r\n" for name in names))
    write(lists / "testlist01.txt", f"{makeup.format(1)}\r\n{stand.format(1)}\r\n")
    for number, name in enumerate((names[0], names[1], makeup.format(1), stand.format(1), makeup.format(25))):
        video(videos / name, moving(LONG, light=60 + 40 * (number % 2)), "mpeg4")
    video(videos / names[2], moving(SHORT), "mpeg4")
    write(videos / names[3], "<html>404</html>" * 50)
    write(videos / names[4], "")
    return root


def trajectory(number: int, frames: np.ndarray) -> bytes:
    """A record of BAIR: raw pixels of two cameras, actions and positions, one feature per frame."""
    features: dict[str, Sequence[bytes] | np.ndarray] = {}
    for t, frame in enumerate(frames):
        features[f"{t}/image_aux1/encoded"] = [frame.tobytes()]
        features[f"{t}/image_main/encoded"] = [(255 - frame).tobytes()]
        features[f"{t}/action"] = np.array([number, t, 0.5, -1], np.float32)
        features[f"{t}/endeffector_pos"] = np.array([number, t, 2], np.float32)
    return example(features)


def bair(root: Path) -> Path:
    """A training file of three trajectories, the second damaged; one that is cut off in its second; two for testing."""
    base = root / "softmotion30_44k"
    records = [trajectory(number, moving(30, 64, 64, 60 + 20 * number)) for number in range(3)]
    whole = write_records(base / "train" / "traj_0_to_255.tfrecords", records, crc32c)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1
    write(whole, bytes(data))
    cut(write_records(base / "train" / "traj_256_to_511.tfrecords", records[:2], crc32c), 0.7)
    write_records(base / "test" / "traj_0_to_255.tfrecords", records[:2], crc32c)
    return root


def bair_tfds(root: Path) -> Path:
    """The copy of TensorFlow Datasets: PNG pictures, one feature for all frames."""
    import io

    frames = moving(30, 64, 64)
    pictures = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "png")
        pictures.append(buffer.getvalue())
    action = np.arange(120, dtype=np.float32)
    features = {"image_aux1": pictures, "image_main": pictures, "action": action}
    record = example({**features, "endeffector_pos": action[:90]})
    name = "bair_robot_pushing_small-train.tfrecord-00000-of-00001"
    write_records(root / "bair_robot_pushing_small" / "2.0.0" / name, [record], crc32c)
    return root


def kinetics600(root: Path) -> Path:
    """Two classes, files in class folders for training and flat for validation; dead, short and broken ones."""
    header = "label,youtube_id,time_start,time_end,split"
    train = [
        "riding a bike,aaaaaaaaaaa,1.0,11.0,train", "abseiling,-bbbbbbbbbb,20,30,train",
        "abseiling,dead0000000,3,13,train", "riding a bike,short000000,3,13,train", "abseiling,broken00000,3,13,train",
    ]  # fmt: skip
    write(root / "train.csv", "\n".join([header, *train]) + "\n")
    write(root / "validate.csv", "\n".join([header, "abseiling,ccccccccccc,5,15,val", "abseiling,gone,5,15,val"]))
    write(root / "test.csv", f"{header}\n,ddddddddddd,5,15,test\n")
    folder = root / "train"
    video(folder / "riding a bike" / "aaaaaaaaaaa_000001_000011.mp4", moving(LONG, light=60))
    video(folder / "abseiling" / "-bbbbbbbbbb_000020_000030.mp4", moving(LONG, light=120))
    video(folder / "riding a bike" / "short000000_000003_000013.mp4", moving(SHORT))
    cut(video(folder / "abseiling" / "broken00000_000003_000013.mp4", moving(LONG)))
    video(root / "val" / "ccccccccccc_000005_000015.mp4", moving(LONG))
    video(root / "test" / "ddddddddddd_000005_000015.mp4", moving(LONG))
    return root


SSV2_TEMPLATES = ("Holding [something] next to [something]", "Pushing [something] from left to right")


def ssv2(root: Path) -> Path:
    """Two templates; one training video is missing and one cut off."""
    labels = {template.replace("[", "").replace("]", ""): str(1 - i) for i, template in enumerate(SSV2_TEMPLATES)}
    write(root / "labels" / "labels.json", json.dumps(labels))

    def row(number: int, template: int, text: str) -> dict[str, object]:
        return {"id": str(number), "label": text, "template": SSV2_TEMPLATES[template], "placeholders": ["a potato"]}

    train = [row(1, 0, "holding a potato next to a cup"), row(2, 1, "pushing a cup from left to right")]
    write(root / "labels" / "train.json", json.dumps([*train, row(3, 0, "missing"), row(4, 1, "cut off")]))
    write(root / "labels" / "validation.json", json.dumps([row(5, 1, "pushing a potato from left to right")]))
    write(root / "labels" / "test.json", json.dumps([{"id": "6"}]))
    write(root / "labels" / "test-answers.csv", "6;Holding something next to something\n")
    for number in (1, 2, 4, 5, 6):
        frames = moving(20, light=50 + 20 * number)
        video(root / "20bn-something-something-v2" / f"{number}.webm", frames, "libvpx-vp9", fps=12)
    cut(root / "20bn-something-something-v2" / "4.webm", 0.05)
    return root


def nuscenes(root: Path, scenes: int = 10, frames: int = 65) -> Path:
    """Ten scenes of two videos each, the second of the first scene without one image; a broken one in another."""
    rows: dict[str, list[dict[str, object]]] = {"scene": [], "sample": [], "sample_data": []}
    cameras = {"cam": "CAM_FRONT", "lidar": "LIDAR_TOP"}
    rows["sensor"] = [{"token": f"s-{key}", "channel": channel} for key, channel in cameras.items()]
    rows["calibrated_sensor"] = [{"token": f"c-{key}", "sensor_token": f"s-{key}"} for key in cameras]
    for scene in range(scenes):
        rows["scene"].append({"token": f"scene{scene}", "name": f"scene-{scene:04}"})
        pictures = moving(frames, 18, 32, 50 + 10 * scene)
        for number, picture in enumerate(pictures):
            key_frame = number % 6 == 0
            name = f"{'samples' if key_frame else 'sweeps'}/CAM_FRONT/n015__CAM_FRONT__{scene:02}{number:04}.jpg"
            sample: dict[str, object] = {"token": f"{scene}-{number // 6}", "scene_token": f"scene{scene}"}
            rows["sample"] += [sample] if key_frame else []
            shared: dict[str, object] = {
                "sample_token": sample["token"],
                "timestamp": 10**15 + 10**7 * scene + 83_000 * number,
            }
            image = {"token": f"d{scene}-{number}", "calibrated_sensor_token": "c-cam", "filename": name}
            rows["sample_data"].append({**image, **shared})
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / name)
        cloud = {"token": f"l{scene}", "calibrated_sensor_token": "c-lidar", "sample_token": f"{scene}-0"}
        rows["sample_data"].append({**cloud, "filename": f"samples/LIDAR_TOP/{scene}.bin", "timestamp": 10**15})
    rows["sample_data"].reverse()  # tables are in no order
    for name, table in rows.items():
        write(root / "v1.0-trainval" / f"{name}.json", json.dumps(table))
    (root / "sweeps/CAM_FRONT/n015__CAM_FRONT__000040.jpg").unlink()
    write(root / "sweeps/CAM_FRONT/n015__CAM_FRONT__010003.jpg", b"\xff\xd8 no picture")
    return root


def objectron(root: Path) -> Path:
    """Two classes of phone videos that are stored lying; one that the index names is missing."""
    for number, place in enumerate(("bike/batch-1/0", "bike/batch-1/1", "shoe/batch-12/4", "shoe/batch-3/2")):
        video(root / "videos" / place / "video.MOV", moving(20, light=60 + 20 * number), fps=30, rotation=90)
        write(root / "videos" / place / "geometry.pbdata", b"\x00\x01")
    write(root / "index" / "bike_annotations_train", "bike/batch-1/0\nbike/batch-1/7\n")
    write(root / "index" / "bike_annotations_test", "bike/batch-1/1\n")
    write(root / "index" / "shoe_annotations_train", "shoe/batch-12/4\n")
    write(root / "index" / "shoe_annotations_test", "shoe/batch-3/2\n")
    return root


def imagenet(root: Path) -> Path:
    """Two classes; among the training images one is a PNG by content, one CMYK, one cut off."""
    for label, name in enumerate(("n01440764", "n02105855")):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                picture = Image.fromarray(moving(1, 40, 48, 60 + 60 * label + 10 * number)[0])
                picture.save(root / split / name / f"{name}_{number}.JPEG")
    picture.save(root / "train" / "n02105855" / "n02105855_2.JPEG", "PNG")
    picture.convert("CMYK").save(root / "train" / "n01440764" / "n01440764_2.JPEG")
    cut(root / "train" / "n01440764" / "n01440764_0.JPEG", 0.2)
    return root


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "ucf101": ucf101, "bair": bair, "kinetics600": kinetics600, "ssv2": ssv2, "nuscenes": nuscenes,
    "objectron": objectron, "imagenet": imagenet,
}  # fmt: skip


class Miniatures:
    """Builds each dataset once per session."""

    def __init__(self, root: Path):
        self.root, self.made = root, {}

    def __call__(self, kind: str) -> Path:
        if kind not in self.made:
            folder = self.root / kind
            folder.mkdir()
            self.made[kind] = BUILDERS[kind](folder)
        return self.made[kind]


def names(paths: Iterable[str]) -> list[str]:
    return [Path(path).name for path in paths]
