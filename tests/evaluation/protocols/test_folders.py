"""Two folders of videos compared without a download."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.fakes import NARROW, save_narrow_i3d, use_narrow_i3d, write_videos
from mutoscope.data.video.read import write_video
from mutoscope.errors import UserError
from mutoscope.evaluation.engine import Report, evaluate
from mutoscope.evaluation.networks.extractors import WeightFiles
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier

FRECHET = "frechet-shapes-features"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight real clips of the shapes dataset, the same with noise, and others."""
    root = tmp_path_factory.mktemp("folders")
    write_videos(root / "real", 8)
    write_videos(root / "noisy", 8, noise=24)
    write_videos(root / "other", 4, start=20, names=lambda i: f"other{i}")
    return root


def write_scene(path: Path, seed: int, num_frames: int = 16, fps: float = 8, height: int = 36, width: int = 64) -> None:
    """A smooth picture in many colours that moves to the right by one pixel per frame."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.stack([np.roll(picture, shift, axis=1) for shift in range(num_frames)]), fps)


def value(report: Report, name: str) -> float:
    found = report["metrics"][name]["value"]
    assert found is not None
    return found


def test_clips_of_equal_names_are_compared_one_by_one_and_all_beside_real_ones(folders: Path):
    report = evaluate(folders / "noisy", reference=folders / "real")
    details = report["protocol_details"]
    assert report["protocol"] == "folders" and details["pairing"]["clips"] == 8  # type: ignore[index]
    assert 18 < value(report, "psnr_db") < 30 and 0.2 < value(report, "ssim") < 0.95
    assert value(report, "flicker") > 2 * value(report, "flicker_real")
    assert value(report, FRECHET) > 0 and report["metrics"][FRECHET]["ci95"] is not None
    assert {f"{FRECHET}_halves", f"{FRECHET}_halves_real", "motion", "motion_real", "sharpness_drift"} <= set(
        report["metrics"]
    )
    assert not any("fvd" in name for name in report["metrics"])
    assert (report["num_clips"], report["num_real"]) == (8, 8)  # type: ignore[typeddict-item]
    features = details["features"]
    assert features["dimension"] == 64 and features["clips_of_halves"] == 4  # type: ignore[index]
    assert ["8 clips are few for 64 features" in caveat for caveat in report["caveats"]] == [True]  # type: ignore


def test_noise_raises_the_distance_on_an_encoder_s_features_above_that_of_real_halves(folders: Path):
    report = evaluate(folders / "noisy", reference=folders / "real", features="vae-shapes")
    name = "frechet-vae-shapes-encoder"
    assert value(report, f"{name}_halves") > 1.2 * value(report, f"{name}_halves_real")
    assert FRECHET not in report["metrics"]


def test_a_folder_with_itself_has_no_difference_and_says_so(folders: Path, classifier: ShapesClassifier):
    report = evaluate(folders / "real", reference=folders / "real", classifier=classifier)
    assert report["metrics"]["psnr_db"]["value"] is None and value(report, "ssim") == 1
    assert value(report, FRECHET) == pytest.approx(0, abs=1e-6)
    assert value(report, "motion") == value(report, "motion_real")
    assert report["protocol_details"]["pairing"]["identical_clips"] == 8  # type: ignore[index]
    assert any("same folder" in caveat for caveat in report["caveats"])  # type: ignore[typeddict-item]


def test_identical_pairs_do_not_enter_the_mean_psnr(folders: Path, classifier: ShapesClassifier, tmp_path: Path):
    for number in range(2):
        source = folders / ("real" if number else "noisy") / f"{number}.mp4"
        (tmp_path / f"{number}.mp4").write_bytes(source.read_bytes())
    report = evaluate(tmp_path, reference=folders / "real", classifier=classifier)
    assert 18 < value(report, "psnr_db") < 30 and report["metrics"]["psnr_db"]["ci95"] is None


def test_without_equal_names_there_are_no_pairs_unless_order_is_requested(
    folders: Path, classifier: ShapesClassifier, tmp_path: Path
):
    report = evaluate(folders / "other", reference=folders / "real", classifier=classifier)
    assert "psnr_db" not in report["metrics"] and FRECHET in report["metrics"]
    assert report["protocol_details"]["pairing"]["how"] == "not paired: no names are equal"  # type: ignore[index]
    with pytest.raises(UserError, match="--pairs order needs equally many videos on both sides, found 4 and 8"):
        evaluate(folders / "other", reference=folders / "real", pairs="order", classifier=classifier)
    write_videos(tmp_path, 4)
    report = evaluate(folders / "other", reference=tmp_path, pairs="order", classifier=classifier)
    assert "psnr_db" in report["metrics"]
    report = evaluate(folders / "noisy", reference=folders / "real", pairs="none", classifier=classifier)
    assert "psnr_db" not in report["metrics"]


def test_names_that_agree_by_accident_are_noticed(folders: Path, classifier: ShapesClassifier, tmp_path: Path):
    write_videos(tmp_path, 8, start=40, names=lambda i: str(i - 40))
    report = evaluate(tmp_path, reference=folders / "real", classifier=classifier)
    assert any("may agree by accident" in caveat for caveat in report["caveats"])  # type: ignore[typeddict-item]
    report = evaluate(folders / "noisy", reference=folders / "real", classifier=classifier)
    assert not any("accident" in caveat for caveat in report["caveats"])  # type: ignore[typeddict-item]


def test_far_clips_put_the_caveat_first(classifier: ShapesClassifier, tmp_path: Path):
    for seed in range(3):
        write_scene(tmp_path / "real" / f"{seed}.mp4", seed)
        write_scene(tmp_path / "mine" / f"{seed}.mp4", seed + 9)
    report = evaluate(tmp_path / "mine", reference=tmp_path / "real", classifier=classifier)
    assert "far from" in report["caveats"][0] and FRECHET in report["caveats"][0]  # type: ignore[typeddict-item]
    familiarity = report["protocol_details"]["features"]["familiarity"]  # type: ignore[index]
    assert familiarity["far"] and familiarity["value"] < 0.5


def test_one_clip_on_either_side_has_similarity_but_no_distance(folders: Path, classifier: ShapesClassifier):
    mine, real = folders / "noisy" / "0.mp4", folders / "real" / "1.mp4"
    report = evaluate(mine, reference=real, classifier=classifier)
    assert value(report, "psnr_db") > 0 and report["metrics"]["psnr_db"]["ci95"] is None
    assert not any(name.startswith("frechet") for name in report["metrics"]) and report["caveats"] == []  # type: ignore
    assert "needs 2 clips on each side, found 1 and 1" in report["protocol_details"]["notes"][-1]  # type: ignore[index]


def test_videos_of_other_rates_sizes_and_lengths_are_brought_together(classifier: ShapesClassifier, tmp_path: Path):
    for seed in range(2):
        write_scene(tmp_path / "mine" / f"{seed}.mp4", seed, num_frames=10, fps=8, height=24, width=24)
        write_scene(tmp_path / "real" / f"{seed}.mp4", seed, num_frames=60, fps=24)
    report = evaluate(tmp_path / "mine", reference=tmp_path / "real", classifier=classifier)
    details = report["protocol_details"]
    assert (details["num_frames"], details["fps"], details["size"]) == (10, 8.0, [24, 24])
    assert details["real"]["clips"] == 4  # type: ignore[index]
    notes = "; ".join(details["notes"])  # type: ignore[arg-type]
    assert "every 3 frames" in notes and "2 pairs differ in length" in notes and "cropped to the shape" in notes
    # Three frames of 24 per second move as far as one of 8 does not: the scene moves a pixel per frame.
    assert value(report, "motion_real") > value(report, "motion")
    report = evaluate(tmp_path / "mine", reference=tmp_path / "real", by_frame=True, classifier=classifier)
    assert report["protocol_details"]["fps"] is None


def test_broken_and_short_videos_are_named_and_the_others_compared(
    folders: Path, classifier: ShapesClassifier, tmp_path: Path
):
    write_videos(tmp_path, 11, names=lambda i: f"a{i:02d}")
    write_videos(tmp_path, 1, names=lambda i: "short", num_frames=4)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    report = evaluate(tmp_path, reference=folders / "real", classifier=classifier)
    skipped = " | ".join(report["protocol_details"]["skipped"])  # type: ignore[arg-type]
    assert "broken: " in skipped and "short: 4 frames, a clip has 16" in skipped and report["num_clips"] == 11
    assert report["warnings"][0].startswith("2 videos or clips were omitted")  # type: ignore[typeddict-item]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no videos and no images"):
        evaluate(tmp_path / "empty", reference=folders / "real", classifier=classifier)


def test_images_are_compared_by_an_encoder(tmp_path: Path):
    for number in range(4):
        picture = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        large = Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC)
        for name, quality in (("real", 95), ("mine", 20)):
            (tmp_path / name).mkdir(exist_ok=True)
            large.save(tmp_path / name / f"{number}.jpg", quality=quality)
    report = evaluate(tmp_path / "mine", reference=tmp_path / "real")
    assert {"psnr_db", "ssim", "brightness", "frechet-vae-shapes-encoder"} <= set(report["metrics"])
    assert not {"motion", "flicker", "brightness_drift"} & set(report["metrics"])


def test_a_folder_alone_has_measures_of_change_only_unless_it_holds_shapes(
    folders: Path, classifier: ShapesClassifier, tmp_path: Path
):
    assert evaluate(folders / "real", classifier=classifier)["protocol"] == "shapes"
    for seed in range(3):
        write_scene(tmp_path / f"{seed}.mp4", seed)
    report = evaluate(tmp_path, classifier=classifier)
    assert report["protocol"] == "folders" and set(report["metrics"]) >= {"motion", "flicker", "sharpness"}
    assert not any(name.endswith("_real") or "frechet" in name for name in report["metrics"])
    assert "nothing to compare" in report["caveats"][0]  # type: ignore[typeddict-item]
    with pytest.raises(UserError, match="--features is for a comparison with real videos"):
        evaluate(tmp_path, features="vae-shapes")


@pytest.mark.parametrize("protocol", ["shapes", "shapes-10k"])
def test_protocols_of_the_shapes_dataset_say_where_videos_are_far_from_it(
    folders: Path, classifier: ShapesClassifier, tmp_path: Path, protocol: str
):
    for seed in range(3):
        write_scene(tmp_path / f"{seed}.mp4", seed)
    count = 3 if protocol == "shapes-10k" else None
    report = evaluate(tmp_path, protocol, num_clips=count, classifier=classifier)
    assert "say little about these videos" in report["caveats"][0]  # type: ignore[typeddict-item]
    report = evaluate(folders / "real", protocol, num_clips=count, classifier=classifier)
    assert report["caveats"] == []  # type: ignore[typeddict-item]


def test_fvd_is_measured_where_its_weights_are_at_hand(
    folders: Path, classifier: ShapesClassifier, tmp_path, monkeypatch
):
    use_narrow_i3d(monkeypatch)
    files = WeightFiles(i3d=str(save_narrow_i3d(tmp_path / "i3d.pt")))
    report = evaluate(folders / "noisy", reference=folders / "real", num_clips=3, files=files, classifier=classifier)
    assert value(report, "fvd") > 0 and {"kvd", FRECHET, "psnr_db"} <= set(report["metrics"])
    assert report["protocol_details"]["convention"]["name"] == "tats"  # type: ignore[index]
    assert NARROW.num_classes == 6
    write_videos(tmp_path / "short", 3, num_frames=8)
    with pytest.raises(UserError, match="I3D needs clips of 9 frames and more, these have 8"):
        evaluate(tmp_path / "short", reference=folders / "real", files=files, classifier=classifier)


def test_halves_of_the_real_clips_share_no_video_and_no_partner_of_mine(
    folders: Path, classifier: ShapesClassifier, monkeypatch
):
    from mutoscope.evaluation.protocols import folders_figures

    seen: list[torch.Tensor] = []

    def record(x: torch.Tensor, y: torch.Tensor, seed: int):
        seen.extend([x, y])
        return {"value": 0.0, "ci95": None}

    monkeypatch.setattr(folders_figures, "named_distance", record)
    evaluate(folders / "real", reference=folders / "real", classifier=classifier)
    _, whole, mine, rest, half, again = seen
    assert torch.equal(rest, again) and len(mine) == len(rest) == len(half) == 4
    assert sorted(torch.cat([half, rest]).tolist()) == sorted(whole.tolist())
    assert torch.equal(mine, half)  # mine are the same videos: none of them is in the other half


def test_a_comparison_repeats_and_continues_to_the_same_figures(
    folders: Path, classifier: ShapesClassifier, tmp_path: Path
):
    def measure(**options) -> Report:
        return evaluate(folders / "noisy", reference=folders / "real", classifier=classifier, **options)

    first = measure(state=tmp_path / "state")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()}
    assert measure(state=tmp_path / "state")["metrics"] == measure()["metrics"] == first["metrics"]
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()}
    with pytest.raises(UserError, match="parts of another evaluation"):
        measure(state=tmp_path / "state", max_side=16)


def test_settings_of_other_protocols_are_refused(folders: Path):
    real = folders / "real"
    with pytest.raises(UserError, match="--task belongs to other protocols"):
        evaluate(real, reference=real, task="frame-prediction")
    with pytest.raises(UserError, match="--features belongs to the protocol 'folders'"):
        evaluate(real, "shapes", features="vae-shapes")
    with pytest.raises(UserError, match="--by-frame belongs to the protocol 'folders'"):
        evaluate(real, "fvd", reference=real, by_frame=True)
    with pytest.raises(UserError, match="--convention is about FVD"):
        evaluate(real, reference=real, convention="tf")
    with pytest.raises(UserError, match="'magi-shapes' is no folder of videos: save its clips"):
        evaluate("magi-shapes", reference=real)
    with pytest.raises(UserError, match="There is no folder or file 'mistyped'"):
        evaluate("mistyped", reference=real)


def test_episodes_of_a_lerobot_dataset_pair_up_by_number(classifier: ShapesClassifier, tmp_path: Path):
    pytest.importorskip("pyarrow", reason="pyarrow is needed to read LeRobot datasets")
    from dot_recordings import dot_episode, write_lerobot

    for name in ("mine", "real"):
        write_lerobot(tmp_path / name, [dot_episode(seed, 16, grey=60) for seed in range(3)])
    report = evaluate(tmp_path / "mine", reference=tmp_path / "real", classifier=classifier)
    assert report["protocol_details"]["mine"]["kind"] == "episodes"  # type: ignore[index]
    assert report["protocol_details"]["pairing"]["identical_clips"] == 3  # type: ignore[index]
