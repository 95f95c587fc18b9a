"""Folders of videos against folders of real ones under named protocols, with a narrow I3D."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.fakes import save_narrow_i3d, use_narrow_i3d, write_videos
from mutoscope.data.sources.folder import MediaFile
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import evaluate
from mutoscope.evaluation.metrics.conventions import CONVENTIONS
from mutoscope.evaluation.networks import extractors
from mutoscope.evaluation.networks.c3d import C3D
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.i3d import MIN_FRAMES
from mutoscope.evaluation.protocols import published_plan
from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS, VideoProtocol, video_protocol
from mutoscope.evaluation.protocols.published_figures import Sampled, samples_of_videos
from mutoscope.evaluation.protocols.published_plan import PublishedPlan, plan_clips
from mutoscope.evaluation.rows import Rows
from mutoscope.evaluation.sources.windows import ClipListing
from mutoscope.tokenizers.perceptual import AlexNet

PLAIN = VIDEO_PROTOCOLS["fvd"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    save_narrow_i3d(root / "i3d.pt")
    write_videos(root / "real", 5, num_frames=18)
    write_videos(root / "good", 5, noise=2)
    write_videos(root / "noisy", 5, noise=60)
    return root


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_i3d(monkeypatch)


def measure(folder: Path, source: str = "good", protocol: VideoProtocol = PLAIN, **options) -> dict:
    files = WeightFiles(i3d=str(folder / "i3d.pt"))
    return evaluated(folder / source, protocol, reference=folder / "real", files=files, **options)


def evaluated(source: Path, protocol: VideoProtocol, **options) -> dict:
    return dict(evaluate(source, protocol, **options))


def test_a_report_has_figures_intervals_and_everything_they_depend_on(folder: Path):
    report = measure(folder)
    assert {"source", "protocol", "metrics", "num_clips", "seconds"} <= set(report)
    assert report["num_clips"] == report["num_real"] == 5
    assert {"fvd", "kvd", "motion", "motion_real", "flicker", "sharpness_drift"} <= set(report["metrics"])
    low, high = report["metrics"]["fvd"]["ci95"]
    assert low <= report["metrics"]["fvd"]["value"] <= high
    details = report["protocol_details"]
    assert details["convention"]["name"] == "tats" and len(details["weights_sha256"]["i3d"]) == 64
    assert len(report["curves"]["brightness_by_frame"]) == len(report["curves"]["psnr_by_frame_db"]) == 16
    json.dumps(report, allow_nan=False)


def test_noise_is_farther_from_the_real_videos(folder: Path):
    good, noisy = (measure(folder, source)["metrics"] for source in ("good", "noisy"))
    assert noisy["fvd"]["value"] > good["fvd"]["value"]
    assert noisy["psnr_mcvd_db"]["value"] < good["psnr_mcvd_db"]["value"]
    assert noisy["ssim_magvit"]["value"] < good["ssim_magvit"]["value"]
    assert noisy["flicker"]["value"] > good["flicker"]["value"]


@pytest.mark.parametrize("name", [name for name in VIDEO_PROTOCOLS if name != "shapes-10k"])
def test_every_protocol_runs_on_folders(folder: Path, name: str):
    protocol = video_protocol(name)
    protocol = replace(protocol, num_frames=min(protocol.num_frames, 16), frame_stride=1)  # the videos are short
    if protocol.height and protocol.height > 64:
        protocol = replace(protocol, height=64, width=64)
    report = measure(folder, protocol=protocol, num_clips=2)
    assert 0 < report["metrics"]["fvd"]["value"] < 1e4 and report["num_clips"] == report["num_real"] == 2
    assert report["protocol_details"]["convention"]["name"] == protocol.convention
    assert bool(report["warnings"]) == (name != "fvd")


def test_protocols_know_their_conventions_and_lengths():
    for protocol in VIDEO_PROTOCOLS.values():
        assert protocol.convention in CONVENTIONS and protocol.num_frames >= MIN_FRAMES
        assert all("fvd" in numbers for numbers in protocol.published.values())
        json.dumps(protocol.as_dict())
    with pytest.raises(UserError, match="ucf101-magvit"):
        video_protocol("ucf101-magvi")


def test_repeats_have_the_mean_and_the_deviation_of_their_distances(folder: Path, tmp_path):
    for name in ("real", "i3d.pt"):
        (tmp_path / name).symlink_to(folder / name)
    for repeat in (0, 1):
        (tmp_path / str(repeat)).mkdir()
        for i in (2 * repeat, 2 * repeat + 1):
            shutil.copy(folder / "noisy" / f"{i}.mp4", tmp_path / str(repeat))
    once = replace(PLAIN, num_clips=2)
    apart = [measure(tmp_path, name, once)["metrics"]["fvd"]["value"] for name in ("0", "1")]
    report = measure(folder, "noisy", replace(once, repeats=4))
    assert report["protocol_details"]["repeats_measured"] == 2 and report["num_clips"] == 4
    assert report["metrics"]["fvd"]["value"] == pytest.approx(sum(apart) / 2)
    deviation = report["metrics"]["fvd_deviation_over_repeats"]["value"]
    assert deviation == pytest.approx(abs(apart[0] - apart[1]) / 2**0.5)


def test_several_samples_of_a_video_have_a_best_one(folder: Path, tmp_path):
    (tmp_path / "real").symlink_to(folder / "real")
    (tmp_path / "i3d.pt").symlink_to(folder / "i3d.pt")
    (tmp_path / "samples").mkdir()
    for sample, source in enumerate(("good", "noisy")):
        for i in range(3):
            shutil.copy(folder / source / f"{i}.mp4", tmp_path / "samples" / f"{i}-{sample}.mp4")
    metrics = measure(tmp_path, "samples")["metrics"]
    good, noisy = (measure(folder, source, num_clips=3)["metrics"] for source in ("good", "noisy"))
    best = metrics["psnr_magvit_db_best_of_2"]["value"]
    assert best == pytest.approx(good["psnr_magvit_db"]["value"])
    mean = (good["psnr_magvit_db"]["value"] + noisy["psnr_magvit_db"]["value"]) / 2
    assert metrics["psnr_magvit_db"]["value"] == pytest.approx(mean)


def test_a_repeat_holds_every_video_and_further_samples_are_further_repeats():
    real = ClipListing(Path("r"), tuple(MediaFile(Path(f"r/{name}.mp4"), -1) for name in "ab"), (16, 16))
    names = [f"{name}-{sample}" for name in "ab" for sample in range(12)]  # a-10 sorts before a-2
    files = tuple(MediaFile(Path(f"g/{name}.mp4"), -1) for name in sorted(names))
    generated = ClipListing(Path("g"), files, (16,) * 24)
    protocol = replace(PLAIN, num_clips=6, repeats=4, best_of=3)
    plan = plan_clips(protocol, extractors.Extractors(CONVENTIONS["tats"]), generated, real, None, 0)
    clips = plan.generated
    assert [clip.file.path.stem for clip in clips.windows[:6]] == ["a-0", "b-0", "a-1", "b-1", "a-2", "b-2"]
    assert plan.repeats == 4 and clips.count == 24
    sampled = Sampled(protocol, plan.num_clips, plan.repeats, 0, clips.partners)
    samples = samples_of_videos(sampled, Rows({"index": torch.arange(24)}))
    assert samples is not None and samples.shape == (8, 3)
    assert samples[:2].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert samples_of_videos(sampled, Rows({"index": torch.arange(23)})) is None


def test_videos_of_other_names_have_no_psnr(folder: Path, tmp_path):
    (tmp_path / "real").symlink_to(folder / "real")
    (tmp_path / "i3d.pt").symlink_to(folder / "i3d.pt")
    write_videos(tmp_path / "made", 2, names=lambda i: f"sample{i}x")
    report = measure(tmp_path, "made")
    assert not report["protocol_details"]["paired"]
    assert not [name for name in report["metrics"] if name.startswith("psnr")]


def test_a_killed_evaluation_continues_to_the_same_figures(folder: Path, tmp_path, monkeypatch):
    monkeypatch.setattr(published_plan, "CHUNK", 2)
    expected = measure(folder)["metrics"]
    whole, calls = PublishedPlan.measure, []

    def dies(plan, clips, numbers):
        calls.append((clips.label, numbers))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return whole(plan, clips, numbers)

    monkeypatch.setattr(PublishedPlan, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(folder, state=tmp_path / "state")
    assert len(list((tmp_path / "state").glob("*.safetensors"))) == 3
    calls.clear()
    report = measure(folder, state=tmp_path / "state")
    assert [label for label, _ in calls] == ["generated"] * 3
    assert report["metrics"] == expected
    with pytest.raises(UserError, match="parts of another evaluation"):
        measure(folder, "noisy", state=tmp_path / "state")


# ------------------------------------------------------------------------------------------------------- bad input


def test_without_weights_the_file_is_asked_for(folder: Path):
    with pytest.raises(UserError, match="needs I3D's Kinetics-400 weights.*--i3d FILE"):
        evaluated(folder / "good", PLAIN, reference=folder / "real", files=WeightFiles())
    with pytest.raises(UserError, match="it is another file"):
        files = WeightFiles(i3d=str(folder / "i3d.pt"), i3d_sha256="0" * 64)
        evaluated(folder / "good", PLAIN, reference=folder / "real", files=files)
    with pytest.raises(UserError, match="LPIPS needs two files"):
        files = WeightFiles(i3d=str(folder / "i3d.pt"), lpips="a")
        evaluated(folder / "good", PLAIN, reference=folder / "real", files=files)


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path):
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not hold I3D"):
        evaluated(folder / "good", PLAIN, reference=folder / "real", files=WeightFiles(i3d=str(tmp_path / "other.pt")))


def test_empty_folders_and_missing_ones_are_refused(folder: Path, tmp_path):
    with pytest.raises(UserError, match="holds no videos"):
        evaluated(tmp_path, PLAIN, reference=folder / "real", files=WeightFiles(i3d=str(folder / "i3d.pt")))
    with pytest.raises(UserError, match="There is no folder .*missing"):
        measure(folder, "missing")
    with pytest.raises(UserError, match="there is no folder"):
        evaluated(folder / "good", PLAIN, reference=tmp_path / "none", files=WeightFiles(i3d=str(folder / "i3d.pt")))


def test_one_clip_has_no_distance(folder: Path, tmp_path):
    write_videos(tmp_path / "one", 1)
    with pytest.raises(UserError, match="holds 1 usable videos of 16 frames, 2 are needed"):
        evaluated(tmp_path / "one", PLAIN, reference=folder / "real", files=WeightFiles(i3d=str(folder / "i3d.pt")))
    with pytest.raises(UserError, match="holds 1 usable videos .* 2 are needed"):
        evaluated(folder / "good", PLAIN, reference=tmp_path / "one", files=WeightFiles(i3d=str(folder / "i3d.pt")))


def test_fewer_clips_than_the_protocol_wants_are_refused(folder: Path):
    with pytest.raises(UserError, match="holds 5 usable videos of 16 frames, 10,000 are needed"):
        measure(folder, protocol=VIDEO_PROTOCOLS["ucf101-magvit"])


def test_generated_videos_shorter_than_the_protocol_are_refused_and_real_ones_omitted(folder: Path, tmp_path):
    files = WeightFiles(i3d=str(folder / "i3d.pt"))
    write_videos(tmp_path / "short", 2, num_frames=9)
    with pytest.raises(UserError, match="9 frames, 16 are needed"):
        evaluated(tmp_path / "short", PLAIN, reference=folder / "real", files=files)
    with pytest.raises(UserError, match="at least 9 frames, found 8"):
        evaluated(tmp_path / "short", replace(PLAIN, num_frames=8), reference=folder / "real", files=files)
    write_videos(tmp_path / "short", 2, start=2)
    with pytest.raises(UserError, match="2 of the generated videos .* are too short; 0.mp4: 9 frames, 16 are needed"):
        evaluated(tmp_path / "short", PLAIN, reference=folder / "real", files=files)
    report = evaluated(folder / "good", PLAIN, reference=tmp_path / "short", files=files)
    assert report["num_real"] == 2 and "2 videos or clips were omitted" in report["warnings"][0]


def test_broken_generated_videos_are_omitted_and_counted(folder: Path, tmp_path):
    write_videos(tmp_path, 2)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    report = evaluated(tmp_path, PLAIN, reference=folder / "real", files=WeightFiles(i3d=str(folder / "i3d.pt")))
    assert report["num_clips"] == 2 and "1 videos or clips were omitted" in report["warnings"][0]


def test_features_that_are_not_finite_are_refused(folder: Path, monkeypatch):
    from mutoscope.evaluation.networks.i3d import I3D

    monkeypatch.setattr(I3D, "forward", lambda self, video: torch.full((len(video), 6), torch.nan))
    with pytest.raises(UserError, match="not finite"):
        measure(folder)


# ------------------------------------------------------------------------------------------------- further networks


class MeanColour(torch.nn.Module):
    """Three numbers per frame in place of Inception's 2048."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float().mean(dim=(1, 2))


def test_every_network_that_is_given_adds_its_figures(folder: Path, tmp_path, monkeypatch):
    torch.manual_seed(0)
    small = C3D(num_classes=3, hidden=4)
    monkeypatch.setattr(extractors, "load_c3d", lambda path: (small, "c" * 64))
    monkeypatch.setattr(extractors, "load_inception", lambda path: (MeanColour(), "d" * 64))
    torch.save(AlexNet().state_dict(), tmp_path / "alexnet.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(AlexNet.MAP_WIDTHS)}
    torch.save(heads, tmp_path / "alex.pth")
    trunk, linear = str(tmp_path / "alexnet.pth"), str(tmp_path / "alex.pth")
    files = WeightFiles(str(folder / "i3d.pt"), c3d="c3d.pt", inception="inc.pt", lpips=trunk, lpips_heads=linear)
    report = evaluated(
        folder / "noisy", replace(PLAIN, inception_splits=2), reference=folder / "real", files=files, num_clips=2
    )
    metrics = report["metrics"]
    assert 1 <= metrics["inception_score"]["value"] <= 3 and metrics["inception_score"]["ci95"] is not None
    assert {"inception_score_real", "fid_one_frame_per_clip"} <= set(metrics)
    assert metrics["lpips_alex"]["value"] > 0
    assert set(report["protocol_details"]["weights_sha256"]) == {"i3d", "c3d", "inception", "lpips"}


def test_frames_for_alexnet_are_brought_to_one_size():
    clips = torch.randint(256, (1, 2, 16, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert extractors.at_mcvd_size(clips).shape == (1, 2, 128, 128, 3)
    assert torch.equal(extractors.at_mcvd_size(clips[:, :, :, :16], side=16), clips[:, :, :, :16])
