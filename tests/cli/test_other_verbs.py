"""models, inspect, train, tokenize, evaluate and bench on the command line."""

import json
import os

import numpy as np
import pytest

from mutoscope import hub
from mutoscope.data.video.read import write_video


@pytest.fixture
def folder(tmp_path):
    """Two classes with a clip each, and a file that is no video."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    for name in ("cats", "dogs"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_video(tmp_path / "data" / name / "clip.mp4", frames, 10)
    (tmp_path / "data" / "dogs" / "broken.mp4").write_text("not a video")
    return tmp_path / "data"


def test_models_lists_what_is_bundled_and_the_papers_sizes(run, models, monkeypatch):
    monkeypatch.setattr(hub, "ZOO", models)
    report = run("models", "--json").report
    bundled = {row["name"]: row for row in report["bundled"]}
    assert bundled["model"]["tasks"] == ["class-conditional", "frame-prediction"]
    assert bundled["model"]["tokens"] == 64 and bundled["model"]["num_decoding_steps"] == 3
    assert bundled["tokenizer"]["tasks"] == ["reconstruction"]
    paper = {row["name"]: row["parameters"] for row in report["paper"]}
    assert paper["3d-vq-B-128"] == 40_579_843 and paper["3d-vq-L-64"] == 141_882_371  # arXiv 2212.05199, appendix
    assert paper["magvit-B-ucf101"] == 87_301_991 and paper["magvit-H-ssv2-mt10"] == 634_192_575


def test_models_for_people(run, models, monkeypatch):
    monkeypatch.setattr(hub, "ZOO", models)
    lines = run("models").out.splitlines()
    assert any(line.startswith("magvit-L-bair ") and "305,464,322" in line for line in lines)
    assert any(line.startswith("model ") for line in lines)


def test_inspect_reports_classes_clips_and_broken_files(run, folder):
    report = run("inspect", folder, "--num-frames", 5, "--json").report
    assert (report["files"], report["readable"], report["clips"]) == (3, 2, 4)
    assert report["classes"] == ["cats", "dogs"]
    assert [entry["path"] for entry in report["broken"]] == [str(folder / "dogs" / "broken.mp4")]
    assert report["broken"][0]["reason"]


def test_inspect_knows_the_layouts_of_data_sets_and_draws_a_sheet(run, miniature, out):
    report = run("inspect", miniature("ucf101"), "--sheet", out / "x.png", "--json").report
    assert report["dataset"] == "ucf101" and report["sheet"] == str(out / "x.png") and len(report["missing"]) == 2
    done = run("inspect", miniature("ucf101"), "--headers-only")
    assert done.status == 0 and "test: 2 readable" in done.out and "missing: " in done.out
    assert os.listdir(out) == ["x.png"]
    assert ".png" in run("inspect", miniature("ucf101"), "--sheet", out / "x.mp4").error


def test_tokenize_reads_a_split_of_a_data_set(run, model, miniature, out):
    options = ("--dataset", "bair", "--split", "test", "--windows", 3, "--num-frames", 8)
    report = run("tokenize", model, miniature("bair"), out / "tokens", *options, "--json").report
    assert report["clips"] == 6
    assert "one of ucf101" in run("tokenize", model, miniature("bair"), out / "x", "--dataset", "mnist").error
    assert "has the splits" in run("tokenize", model, miniature("bair"), out / "x", *options[:3], "val").error


def test_inspect_of_a_folder_with_nothing_readable_reports_and_fails(run, tmp_path):
    (tmp_path / "a.mp4").write_text("no")
    done = run("inspect", tmp_path, "--json")
    assert done.status == 2 and "None of the 1 files" in done.err
    assert json.loads(done.out)["readable"] == 0


@pytest.mark.parametrize("what", ["missing", "empty folder", "text file", "empty file"])
def test_inspect_refuses_what_holds_no_video(run, tmp_path, what):
    path = tmp_path / "x.mp4"
    if what == "empty folder":
        path.mkdir()
    elif what != "missing":
        path.write_text("text" if what == "text file" else "")
    assert "x.mp4" in run("inspect", path).error


def test_a_dry_run_shows_the_resolved_recipe_and_writes_nothing(run, out):
    path = out / "run"
    report = run("train", "vq-shapes", "--dry-run", "--out", path, "--loop.num-steps", 700, "--json").report
    assert report["num_steps"] == report["resolved"]["loop"]["num_steps"] == 700
    assert report["parameters"] > 100_000 and os.listdir(out) == []


def test_a_recipe_file_is_a_recipe(run, out):
    resolved = run("train", "magvit-shapes", "--dry-run", "--model.num-layers", 2, "--json").report["resolved"]
    (out / "recipe.json").write_text(json.dumps(resolved))
    for given in (out, out / "recipe.json"):
        again = run("train", given, "--dry-run", "--loop.seed", 4, "--json").report["resolved"]
        assert again == {**resolved, "loop": {**resolved["loop"], "seed": 4}}


def test_skipped_files_are_told_in_lines_without_places_in_the_code(run, tmp_path, out):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "text.mp4").write_text("no video")
    done = run("tokenize", "vq-shapes", tmp_path / "clips", out / "tokens")
    warning, error = done.err.splitlines()
    assert warning.startswith("mutoscope: warning: skipped: ") and ".py" not in warning
    assert error.startswith("mutoscope: nothing readable is left") and done.status == 2


def test_data_that_cannot_be_read_are_refused_with_the_first_reason(run, tmp_path, out):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "text.mp4").write_text("no video")
    done = run("train", "vq-shapes", "--data.kind", "folder", "--data.path", tmp_path / "clips", "--out", out / "run")
    [error] = done.err.splitlines()
    assert error.startswith("mutoscope: nothing readable is left") and "text.mp4 is not a video" in error
    assert done.status == 2


def test_help_of_a_recipe_lists_the_flags_of_the_chosen_data(run):
    done = run("train", "vq-shapes", "--data.kind", "folder", "--help")
    assert done.status == 0 and "--data.kind {folder}" in done.out and "--data.max-objects" not in done.out


def test_help_of_a_recipe_lists_its_flags(run):
    done = run("train", "vq-shapes", "--help")
    assert done.status == 0 and "--dry-run" in done.out and "--loop.num-steps" in done.out


@pytest.mark.slow
def test_a_trained_tokenizer_is_a_model_folder(run, out):
    sizes = ("--tokenizer.filters", 8, "--tokenizer.num-groups", 4, "--tokenizer.channel-multipliers", 1, 1, 1)
    clips = ("--data.height", 8, "--data.width", 8, "--data.num-frames", 8, "--loop.num-workers", 0)
    steps = ("--loop.num-steps", 2, "--loop.batch-size", 2, "--loop.ema-decay", "None", "--device", "cpu")
    steps += ("--optim.warmup-steps", 0)
    report = run("train", "vq-shapes", "--out", out / "vq", *sizes, *clips, *steps, "--json").report
    assert report["steps_done"] == 2
    assert hub.read_json(out / "vq" / "tokenizer" / "config.json")["filters"] == 8
    assert hub.read_json(out / "vq" / "recipe.json")["loop"]["num_steps"] == 2


REFUSED_RECIPES = {
    "a recipe of another name": (["vq-shape"], "did you mean 'vq-shapes'"),
    "a recipe file that is missing": (["nowhere.json"], "nowhere.json"),
    "a flag nobody has": (["vq-shapes", "--loop.num-step", "3"], "--loop.num-step"),
    "a value that is no number": (["vq-shapes", "--loop.num-steps", "many"], "'many'"),
    "values that make no network": (["vq-shapes", "--tokenizer.num-groups", "7"], "num_groups"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED_RECIPES.values(), ids=REFUSED_RECIPES)
def test_a_recipe_that_cannot_be_is_refused(run, out, arguments, message):
    assert message in run("train", *arguments, "--dry-run", "--out", out / "x").error


def test_a_recipe_file_with_an_unknown_key_is_refused(run, out):
    (out / "r.json").write_text('{"recipe": "TokenizerRecipe", "nam": "x"}')
    assert "nam" in run("train", out / "r.json", "--dry-run").error


def test_training_into_a_place_that_cannot_be_written_is_refused(run, out):
    (out / "file").write_text("x")
    assert "is a file" in run("train", "vq-shapes", "--out", out / "file").error
    assert "Cannot write" in run("train", "vq-shapes", "--out", out / "file" / "run").error


def test_tokenize_writes_a_cache_of_the_built_in_world(run, tokenizer, out):
    report = run("tokenize", tokenizer, "shapes", out / "cache", "--num-clips", 3, "--json").report
    assert report["clips"] == 3 and report["latent_shape"] == [4, 4, 4]
    assert "frame-prediction" in report["conditions"] and len(report["conditions"]) == 8  # of MAGVIT's ten tasks
    assert report["fields"] == ["caption", "label"] and (out / "cache" / "text_encoder" / "config.json").is_file()
    assert np.load(out / "cache" / "tokens.npy").shape == (3, 4, 4, 4)


def test_tokenize_stores_what_a_model_reads_and_no_more(run, model, out):
    report = run("tokenize", model, "shapes", out / "cache", "--num-clips", 3, "--json").report
    assert report["conditions"] == ["frame-prediction"] and report["fields"] == ["label"]


def test_tokenize_reads_a_folder_of_videos(run, tokenizer, folder, out):
    (folder / "dogs" / "broken.mp4").unlink()
    report = run("tokenize", tokenizer, folder, out / "cache", "--json").report
    assert report["clips"] == 2
    assert np.load(out / "cache" / "label.npy").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "OUT"], "no folder"),
        (["shapes", "OUT", "--num-clips", "0"], "--num-clips"),
        (["shapes", "OUT", "--batch-size", "0"], "--batch-size"),
        (["shapes", "OUT", "--tasks", "frame-predict"], "'frame-prediction'"),
    ],
)
def test_tokenize_refuses(run, tokenizer, out, arguments, message):
    replaced = [out / "cache" if argument == "OUT" else argument for argument in arguments]
    assert message in run("tokenize", tokenizer, *replaced).error
    assert os.listdir(out) == []


def test_evaluate_refuses_an_unknown_protocol(run, model):
    assert "did you mean 'shapes" in run("evaluate", model, "--protocol", "shape").error


@pytest.mark.parametrize("option", ["--num-clips", "--batch-size"])
def test_evaluate_refuses_counts_out_of_range(run, model, option):
    assert option in run("evaluate", model, option, 0).error


def test_evaluate_refuses_an_unknown_source(run):
    assert "Unknown model" in run("evaluate", "magvit-shape").error


def test_evaluate_prints_figures_with_their_intervals(run, model, monkeypatch):
    metrics = {"shapes_fvd": {"value": 1.5, "ci95": [1.0, 2.0]}, "spread": {"value": None, "ci95": None}}

    def measured(source, protocol, *, num_clips, seed, **_):
        return {"source": source, "protocol": protocol, "metrics": metrics, "num_clips": num_clips, "seconds": 0.1}

    monkeypatch.setattr("mutoscope.evaluation.engine.evaluate", measured)
    assert run("evaluate", model, "--num-clips", 4, "--json").report["metrics"] == metrics
    assert "[1, 2]" in run("evaluate", model, "--num-clips", 4).out


ROW_KEYS = {
    "mode", "num_decoding_steps", "seconds", "seconds_first_frame", "frames_per_second",
    "frames_per_second_with_decoding", "peak_memory_bytes",
}  # fmt: skip


def test_bench_speed_has_a_row_per_mode_and_number_of_steps(run, model):
    options = ("--num-decoding-steps", 1, 4, "--batch", 2, "--repeats", 1)
    report = run("bench", "speed", model, *options, "--json").report
    assert report.keys() >= {"model", "device", "dtype", "threads", "batch", "rows"}
    assert report["batch"] == 2 and report["device"] == "cpu" and report["threads"] >= 1
    rows = [(row["mode"], row["num_decoding_steps"]) for row in report["rows"]]
    assert rows == [(mode, steps) for mode in ("class-conditional", "frame-prediction") for steps in (1, 4)]
    assert all(row.keys() >= ROW_KEYS and row["frames"] == 16 for row in report["rows"])


def test_bench_against_the_plain_loop(run, model, monkeypatch):
    monkeypatch.setattr("mutoscope.arithmetic.MEASURED_SECONDS", 0.01)
    options = ("--against", "plain", "--repeats", 1, "--threads", 1)
    report = run("bench", "speed", model, *options, "--json").report
    assert report.keys() >= {"model", "processor", "torch", "threads", "clock", "matrix_rates", "memory_rate", "rows"}
    assert [row["row"] for row in report["rows"]] == ["plain", "eager", "compiled", "bfloat16"]
    assert report["clock"] == "processor" and report["random_weights"] is False
    assert set(report["matrix_rates"]) == {"float32", "bfloat16"}
    text = run("bench", "speed", model, *options).out
    assert "of the bound" in text and "GFLOP/s" in text and "\nplain " in text


def test_bench_for_people(run, model):
    assert "with decoding" in run("bench", "speed", model, "--repeats", 1).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped", "MODEL"], "sped"),
        (["speed", "nothing"], "Unknown model"),
        (["speed", "MODEL", "--batch", "0"], "--batch"),
        (["speed", "MODEL", "--repeats", "0"], "--repeats"),
        (["speed", "MODEL", "--threads", "0"], "--threads"),
        (["speed", "MODEL", "--num-decoding-steps", "65"], "64 tokens"),
    ],
)
def test_bench_refuses(run, model, arguments, message):
    assert message in run("bench", *[model if argument == "MODEL" else argument for argument in arguments]).error


def test_the_plan_of_the_claims_is_listed_without_training(run, out):
    report = run("bench", "claims", "magvit", "--out", out / "run", "--seeds", 3, "--dry-run", "--json").report
    assert {entry["seed"] for entry in report["trainings"]} == {3}
    assert {"commit", "autoregressive", "commit-mt8"} <= {entry["variant"] for entry in report["trainings"]}
    assert "Tab. 5" in run("bench", "claims", "magvit", "--out", out / "run", "--dry-run").out
    assert not list(out.iterdir())
    assert "papers: magvit" in run("bench", "claims", "phenaki", "--dry-run").error


def test_entropies_of_a_tokenizer_are_told_and_drawn(run, models, out):
    pytest.importorskip("matplotlib")
    few = ("--num-clips", 300, "--json")
    report = run("bench", "entropy", models / "tokenizer", "--out", out / "x.png", *few).report
    assert report["grid"] == [4, 4] and set(report["mean_increase"]) == {"regions", "raster"}
    assert [path.name for path in out.iterdir()] == ["x.png"]
    assert "too few" in run("bench", "entropy", models / "tokenizer", "--num-clips", 20).error
    assert ".png" in run("bench", "entropy", models / "tokenizer", "--out", out / "x.gif").error
    assert "no folder" in run("bench", "entropy", models / "tokenizer", "--data", out / "none").error


def test_recipes_are_listed_with_data_size_and_cost(run):
    rows = {row["name"]: row for row in run("recipes", "--json").report["recipes"]}
    assert len(rows) > 50
    vq = rows["vq-shapes"]
    assert vq["trains"] == "tokenizer" and vq["data"] == "shapes" and vq["parameters"] == 1_096_787
    assert vq["cost"].startswith("41 minutes on two CPU cores") and "30.7 dB" in vq["result"]
    assert "Result" not in vq["cost"]
    assert rows["magvit-b-ucf101"]["cost"].startswith("B 1.24 updates/s")


def test_one_recipe_is_described_with_the_papers_figures(run):
    report = run("recipes", "magvit-b-ucf101", "--json").report
    assert report["published"]["MAGVIT-B"] == {"fvd": 159} and report["resolved"]["data"]["kind"] == "ucf101"
    text = run("recipes", "nova-shapes").out
    assert "text-conditional" in text and "mutoscope train nova-shapes --out" in text


def test_one_model_lists_its_classes_tasks_and_options(run, model):
    report = run("models", model, "--json").report
    assert report["classes"] == ["square-spin", "circle-orbit", "cross-swing"] and report["fps"] == 4
    options = {option["flag"]: option["default"] for option in report["options"]}
    assert options["--num-decoding-steps"] == 3 and "--context" in options
    text = run("models", model).out
    assert "classes (3): square-spin" in text and "--num-decoding-steps INT  [3]" in text


def test_a_published_size_is_described_without_options(run):
    report = run("models", "magvit-B-ucf101", "--json").report
    assert report["parameters"] == 87_301_991 and report["options"] == [] and report["fps"] is None


def test_a_dry_run_prints_one_object_and_names_a_missing_file(run, out):
    done = run("train", "magvit-shapes", "--tokenizer", "nowhere", "--dry-run", "--json", "--out", out / "run")
    assert done.status == 2 and "nowhere" in done.err and done.err.count("\n") == 1
    assert json.loads(done.out)["resolved"]["tokenizer"] == "nowhere" and os.listdir(out) == []
