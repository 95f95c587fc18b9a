"""Named protocols of published tables: which clips, how many, at what size, in which convention.

A protocol names its dataset by a key; the folder is named when the protocol is used. Settings that a paper does not
state are marked "assumed" in the notes. Published figures are part of the protocol, and printed beside the result.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.conventions import DEFAULT_CONVENTION
from mutoscope.evaluation.sources.windows import WindowRule
from mutoscope.json_config import nearest
from mutoscope.layers.condition_regions import TASKS

SHAPES, SHAPES_EXTRACTOR = "shapes", "shapes-features"
UNCONDITIONAL = "unconditional"
Published = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class VideoProtocol:
    """One way of comparing generated videos with real ones.

    split: part of the dataset, in words; splits: names of its reader. task: task of a model, in words; tasks: names of
    the tasks, one of which is measured at a time; classes, frames and videos are those of the real clips. labels:
    classes of the "real" clips, or "balanced". num_clips: generated clips per repeat; repeats: their number, for a mean
    and a standard deviation. num_real: real clips, None for every window of the reference. given_frames: context
    frames of each clip. paste_given: the conditioning pixels replace those of the result. best_of: samples of one real
    video, of which PSNR and SSIM take the best. convention: a name in CONVENTIONS. inception_splits: parts of the
    inception score, 0 if the paper has none. published: figures of papers under this protocol.
    """

    name: str
    dataset: str
    split: str
    task: str
    num_clips: int | None
    splits: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    labels: Literal["real", "balanced"] = "real"
    num_frames: int = 16
    frame_stride: int = 1
    height: int | None = 128
    width: int | None = 128
    resize: str = "central crop, then bilinear with an anti-aliasing filter; 224×224 by the convention"
    windows: WindowRule = WindowRule()  # noqa: RUF009
    num_real: int | None = None
    repeats: int = 1
    given_frames: int = 0
    paste_given: bool = False
    best_of: int = 1
    extractor: str = "i3d-kinetics-400"
    convention: str = DEFAULT_CONVENTION
    inception_splits: int = 0
    published: Published = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        return None if self.height is None or self.width is None else (self.height, self.width)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


_CLASSES, _FRAMES = ("class-conditional",), ("frame-prediction",)
_SELF_SUPERVISED = tuple(task for task in TASKS if not task.startswith("class-conditional"))
_RANDOM = WindowRule("random", crops=0)
_CONTEXT_COUNTS = "the clips that the context frames are taken from are the real side; FVD includes these frames"

UCF101 = (
    VideoProtocol(
        "ucf101-magvit",
        dataset="ucf101",
        split="train, split 1",
        splits=("train",),
        task="class-conditional",
        tasks=_CLASSES,
        num_clips=10_000,
        repeats=4,
        windows=_RANDOM,
        num_real=10_000,
        convention="tf",
        inception_splits=4,
        published={
            "MAGVIT-L": {"fvd": 76},
            "MAGVIT-B": {"fvd": 159},
            "TATS": {"fvd": 332},
            "MAGVIT-v2": {"fvd": 58},
        },
        notes=("real clips: random windows and crops of the 9,537 training videos",),
    ),
    VideoProtocol(
        "ucf101-tats",
        dataset="ucf101",
        split="train, split 1",
        splits=("train",),
        task="class-conditional",
        tasks=_CLASSES,
        labels="balanced",
        num_clips=2_048,
        windows=_RANDOM,
        num_real=2_048,
        convention="tats",
        published={"TATS": {"fvd": 332}},
        notes=("classes balanced; published frames are truncated to 8 bits, rounded ones differ by half a grey level",),
    ),
    VideoProtocol(
        "ucf101-stylegan-v",
        dataset="ucf101",
        split="train and test",
        splits=("train", "test"),
        task="unconditional",
        tasks=(UNCONDITIONAL,),
        num_clips=2_048,
        windows=WindowRule("random"),
        num_real=2_048,
        height=256,
        width=256,
        convention="stylegan-v",
        published={
            "MAGI, Cosmos tokenizer": {"fvd": 297.8},
            "MAGI, SD 1.4 VAE": {"fvd": 420.6},
            "Latte": {"fvd": 477.9},
            "Matten": {"fvd": 210.6},
        },
        notes=("fvd2048_16f: one window per video at a random start, short videos dropped",),
    ),
    VideoProtocol(
        "ucf101-first-frame",
        dataset="ucf101",
        split="train, split 1",
        splits=("train",),
        task="frame-prediction",
        tasks=_FRAMES,
        paste_given=True,
        num_clips=2_048,
        num_real=2_048,
        height=256,
        width=256,
        given_frames=1,
        convention="stylegan-v",
        notes=("MAGI's ablations; number of clips, windows and size are assumed", _CONTEXT_COUNTS),
    ),
    VideoProtocol(
        "ucf101-par",
        dataset="ucf101",
        split="train, split 1",
        splits=("train",),
        task="class-conditional",
        tasks=_CLASSES,
        num_clips=10_000,
        windows=_RANDOM,
        num_real=10_000,
        convention="tf",
        published={"PAR-1x": {"fvd": 94.1}, "PAR-4x": {"fvd": 99.5}, "PAR-16x": {"fvd": 103.4}},
        notes=("17 frames are generated, the first 16 evaluated; number of clips and convention are assumed",),
    ),
)

BAIR = (
    VideoProtocol(
        "bair-frame-prediction",
        dataset="bair",
        split="test",
        splits=("test",),
        task="frame-prediction",
        tasks=_FRAMES,
        num_clips=25_600,
        repeats=4,
        num_real=256,
        height=64,
        width=64,
        given_frames=1,
        best_of=100,
        convention="tf",
        published={"MAGVIT-L": {"fvd": 62}, "MAGVIT-B": {"fvd": 76}},
        notes=("100 samples of each of 256 test videos, whose first 16 frames are the real side", _CONTEXT_COUNTS),
    ),
    VideoProtocol(
        "bair-frame-prediction-debiased",
        dataset="bair",
        split="test",
        splits=("test",),
        task="frame-prediction",
        tasks=_FRAMES,
        num_clips=25_600,
        repeats=4,
        windows=WindowRule("all"),
        num_real=3_840,
        height=64,
        width=64,
        given_frames=1,
        convention="tf",
        published={"MAGVIT-L": {"fvd": 31}, "MAGVIT-B": {"fvd": 47}},
        notes=("real side: all 15 windows of the 256 test videos of 30 frames", _CONTEXT_COUNTS),
    ),
    VideoProtocol(
        "bair-multi-task",
        dataset="bair",
        split="test",
        splits=("test",),
        task="one of the eight self-supervised tasks",
        tasks=_SELF_SUPERVISED,
        num_clips=25_600,
        repeats=4,
        windows=WindowRule("all"),
        num_real=3_840,
        height=64,
        width=64,
        convention="tf",
        notes=("evaluate the videos of one task at a time; FVD is over all 16 frames, conditioning regions included",),
    ),
)

_FAR_REAL = "real clips: the first frames of the videos that the classes of the generated clips are taken from"
_FAR_CODEC = "the authors' frames pass through lossy MP4 files first; here they do not"


def _far_ucf101(name: str, side: int, is_conditional: bool, published: Published) -> VideoProtocol:
    """FAR's generation on UCF-101, after Latte: 16 frames, every third one, of all videos."""
    return VideoProtocol(
        name,
        dataset="ucf101",
        split="train and test",
        splits=("train", "test"),
        task="class-conditional" if is_conditional else "unconditional",
        tasks=_CLASSES if is_conditional else (UNCONDITIONAL,),
        num_clips=2_048,
        repeats=4,
        frame_stride=3,
        num_real=2_048,
        height=side,
        width=side,
        convention="stylegan-v",
        published=published,
        notes=(_FAR_REAL, _FAR_CODEC),
    )


FAR = (
    _far_ucf101("ucf101-far", 128, True, {"FAR-L": {"fvd": 99}}),
    _far_ucf101("ucf101-far-unconditional", 128, False, {"FAR-L": {"fvd": 280}}),
    _far_ucf101("ucf101-far-256", 256, True, {"FAR-L": {"fvd": 113}, "FAR-XL": {"fvd": 108}}),
    _far_ucf101("ucf101-far-256-unconditional", 256, False, {"FAR-L": {"fvd": 303}, "FAR-XL": {"fvd": 279}}),
    VideoProtocol(
        "ucf101-far-prediction",
        dataset="ucf101",
        split="test",
        splits=("test",),
        task="frame-prediction",
        tasks=_FRAMES,
        num_clips=25_600,
        num_real=256,
        height=64,
        width=64,
        given_frames=4,
        best_of=100,
        convention="stylegan-v",
        published={"FAR-B": {"fvd": 194.1, "psnr": 25.64, "ssim": 0.818, "lpips": 0.037}},
        notes=("after MCVD, which takes every tenth video of the third test list", _FAR_CODEC, _CONTEXT_COUNTS),
    ),
    VideoProtocol(
        "bair-far",
        dataset="bair",
        split="test",
        splits=("test",),
        task="frame-prediction",
        tasks=_FRAMES,
        num_clips=25_600,
        num_frames=30,
        num_real=256,
        height=64,
        width=64,
        given_frames=2,
        best_of=100,
        convention="stylegan-v",
        published={"FAR-B": {"fvd": 144.3, "psnr": 19.40, "ssim": 0.819, "lpips": 0.049}},
        notes=("after MCVD: 28 frames after 2", _FAR_CODEC, _CONTEXT_COUNTS),
    ),
)

OTHERS = (
    VideoProtocol(
        "kinetics600-frame-prediction",
        dataset="kinetics600",
        split="validation",
        splits=("validation",),
        task="frame-prediction",
        tasks=_FRAMES,
        num_clips=50_000,
        repeats=4,
        windows=WindowRule("uniform", count=2, crops=3),
        given_frames=5,
        convention="tf-64",
        published={"MAGVIT-L": {"fvd": 9.9}, "MAGVIT-B": {"fvd": 24.5}, "MAGI": {"fvd": 11.5}},
        notes=("videos of 128×128 are brought to 64×64 before 224×224; 29K evaluation videos", _CONTEXT_COUNTS),
    ),
    VideoProtocol(
        "ssv2-class-conditional",
        dataset="ssv2",
        split="train",
        splits=("train",),
        task="class-conditional",
        tasks=_CLASSES,
        num_clips=50_000,
        repeats=4,
        windows=_RANDOM,
        num_real=50_000,
        convention="tf",
        notes=("real clips: random windows and crops of the training videos",),
    ),
    VideoProtocol(
        "ssv2-multi-task",
        dataset="ssv2",
        split="validation",
        splits=("validation",),
        task="one of MAGVIT's ten tasks but class-conditional generation",
        tasks=tuple(task for task in TASKS if task != "class-conditional"),
        num_clips=50_000,
        repeats=4,
        windows=WindowRule("uniform", count=2),
        convention="tf",
        notes=("two windows, central crop, of 24K validation videos; evaluate one task at a time",),
    ),
    VideoProtocol(
        "nuscenes-frame-prediction",
        dataset="nuscenes",
        split="validation, front camera",
        splits=("validation",),
        task="frame-prediction",
        tasks=_FRAMES,
        num_clips=50_000,
        repeats=4,
        windows=WindowRule("uniform", count=16, crops=3),
        given_frames=1,
        convention="tf",
        notes=("0.6K videos of 32 frames; the split was not published", _CONTEXT_COUNTS),
    ),
    VideoProtocol(
        "objectron-frame-interpolation",
        dataset="objectron",
        split="test",
        splits=("test",),
        task="frame-interpolation",
        tasks=("frame-interpolation",),
        num_clips=50_000,
        repeats=4,
        windows=WindowRule("uniform", count=5),
        convention="tf",
        notes=("3.6K evaluation videos; FVD includes the first and last frame, which are context",),
    ),
    VideoProtocol(
        "fvd",
        dataset="any",
        split="as named",
        task="any",
        tasks=(UNCONDITIONAL, *TASKS),
        num_clips=None,
        height=None,
        width=None,
        notes=("first 16 frames of every video at their own size; a protocol of no paper",),
    ),
)

SHAPES_10K = VideoProtocol(
    "shapes-10k",
    dataset=SHAPES,
    split="held-out clips of the shapes dataset",
    task="class-conditional",
    tasks=_CLASSES,
    labels="balanced",
    num_clips=10_000,
    num_real=10_000,
    height=32,
    width=32,
    resize="central crop, then bilinear with an anti-aliasing filter",
    extractor=SHAPES_EXTRACTOR,
    notes=("figures of the shapes classifier, which compare with no other FVD",),
)

VIDEO_PROTOCOLS = {protocol.name: protocol for protocol in (*UCF101, *BAIR, *FAR, *OTHERS, SHAPES_10K)}


def video_protocol(name: str) -> VideoProtocol:
    """Raises UserError for a name that is not in VIDEO_PROTOCOLS."""
    if name not in VIDEO_PROTOCOLS:
        raise UserError(f"Unknown protocol {name!r}: {nearest(name, VIDEO_PROTOCOLS)}")
    return VIDEO_PROTOCOLS[name]
