"""Folders of VBench, GenEval and DPG-Bench, written by a tiny model and read back by the tools' own rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mutoscope.data.video.read import read_video
from mutoscope.errors import UserError
from mutoscope.pipeline import VideoPipeline
from mutoscope.runs.export import BENCHMARKS, export, grid, read_prompts
from tiny_nova import save_tiny_nova

GENEVAL = [
    '{"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red circle"}',
    '{"tag": "colors", "include": [{"class": "square", "count": 1, "color": "blue"}], "prompt": "a blue square"}',
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(save_tiny_nova(tmp_path_factory.mktemp("models") / "nova"))


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, Path]:
    """Two prompts in every benchmark's own format."""
    files = {"vbench": tmp_path / "VBench_full_info.json", "geneval": tmp_path / "evaluation_metadata.jsonl"}
    entries = [{"prompt_en": text, "dimension": ["color"]} for text in ("a red circle", "a blue square")]
    files["vbench"].write_text(json.dumps(entries))
    files["geneval"].write_text("\n".join(GENEVAL) + "\n")
    files["dpg-bench"] = tmp_path / "prompts"
    files["dpg-bench"].mkdir()
    (files["dpg-bench"] / "partiprompts7.txt").write_text("a red circle\n")
    (files["dpg-bench"] / "COCOval2014_1.txt").write_text("a blue square swings")
    return files


def run(pipeline: VideoPipeline, benchmark: str, prompts: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    values = {"num_decoding_steps": 2, "num_diffusion_steps": 2}
    return export(pipeline, "tiny", benchmark, prompts[benchmark], out, options=values, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_vbench_reads_clips_named_after_prompt_and_number(pipeline, prompts, tmp_path):
    report = run(pipeline, "vbench", prompts, tmp_path / "out")
    folder = tmp_path / "out" / "vbench"
    names = [f"{text}-{i}.mp4" for text in ("a blue square", "a red circle") for i in range(5)]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (report["prompts"], report["written"], report["num_samples"]) == (2, 10, 5)
    assert read_video(folder / names[0]).frames.shape == (4, 16, 16, 3) and read_video(folder / names[0]).fps == 4
    assert str(folder) in report["tool"]
    assert (folder / names[0]).read_bytes() != (folder / names[1]).read_bytes()


def test_geneval_reads_images_and_the_line_of_each_prompt(pipeline, prompts, tmp_path):
    run(pipeline, "geneval", prompts, tmp_path / "out")
    for number, line in enumerate(GENEVAL):
        folder = tmp_path / "out" / "geneval" / f"{number:05}"
        assert (folder / "metadata.jsonl").read_text() == f"{line}\n"
        assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{i:04}.png" for i in range(4)]
        assert Image.open(folder / "samples" / "0003.png").size == (
            16,
            16,
        )  # one frame, although the model generates clips


def test_dpg_bench_reads_four_samples_on_one_image(pipeline, prompts, tmp_path):
    report = run(pipeline, "dpg-bench", prompts, tmp_path / "out")
    folder = tmp_path / "out" / "dpg-bench"
    assert sorted(path.name for path in folder.iterdir()) == ["COCOval2014_1.png", "partiprompts7.png"]
    assert Image.open(folder / "partiprompts7.png").size == (32, 32) and "--resolution 16" in report["tool"]
    with pytest.raises(UserError, match="4 samples on one image"):
        run(pipeline, "dpg-bench", prompts, tmp_path / "other", num_samples=2)


def test_a_grid_goes_by_rows():
    clips = [np.full((1, 2, 3, 3), value, np.uint8) for value in range(4)]
    assert grid(clips)[0, ::2, ::3, 0].tolist() == [[0, 1], [2, 3]] and grid(clips).shape == (1, 4, 6, 3)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_an_interrupted_export_continues_to_the_same_files(pipeline, prompts, tmp_path, benchmark):
    run(pipeline, benchmark, prompts, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    first = run(pipeline, benchmark, prompts, tmp_path / "out", num_prompts=1)
    lost = [path for path in (tmp_path / "out" / benchmark).rglob("*") if path.name.endswith(("-1.mp4", "1.png"))]
    for path in lost:  # as if the first prompt's samples had not all been written
        path.unlink()
    rest = run(pipeline, benchmark, prompts, tmp_path / "out")
    assert 0 < rest["written"] < len(whole) and first["prompts"] == 1
    assert contents(tmp_path / "out") == whole
    assert run(pipeline, benchmark, prompts, tmp_path / "out")["written"] == 0


def test_existing_files_are_never_overwritten(pipeline, prompts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no export"):
        run(pipeline, "vbench", prompts, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    run(pipeline, "vbench", prompts, tmp_path / "mine", num_prompts=1)
    changed = tmp_path / "mine" / "vbench" / "a red circle-0.mp4"
    changed.write_bytes(b"edited")
    run(pipeline, "vbench", prompts, tmp_path / "mine")
    assert changed.read_bytes() == b"edited"
    for options in ({"seed": 2}, {"num_samples": 3}):
        with pytest.raises(UserError, match=f"another {next(iter(options))}"):
            run(pipeline, "vbench", prompts, tmp_path / "mine", **options)
    with pytest.raises(UserError, match="another benchmark"):
        run(pipeline, "geneval", prompts, tmp_path / "mine")


def test_prompts_of_other_forms(tmp_path):
    (tmp_path / "all.txt").write_text("a cat\n\na dog\na cat\n")
    assert [prompt.text for prompt in read_prompts("vbench", tmp_path / "all.txt")] == ["a cat", "a dog"]
    (tmp_path / "dpg.csv").write_text('item_id,text,tuple\np1,"a cat, asleep",x\np1,"a cat, asleep",y\np2,a dog,z\n')
    found = read_prompts("dpg-bench", tmp_path / "dpg.csv")
    assert [(prompt.key, prompt.text) for prompt in found] == [("p1", "a cat, asleep"), ("p2", "a dog")]


@pytest.mark.parametrize(
    "benchmark, name, text, message",
    [
        ("vbench", "x.json", '[{"prompt": "a"}]', "entry 1 has no \"prompt_en\""),
        ("vbench", "x.json", "[", "not JSON"),
        ("vbench", "x.txt", "and/or", "cannot be a file name"),
        ("vbench", "x.txt", "long " * 60, "longer than a file name"),
        ("vbench", "x.txt", "", "holds no prompts"),
        ("geneval", "x.jsonl", "a red circle", "not JSON"),
        ("geneval", "x.jsonl", '{"tag": 1}', "has no \"prompt\""),
        ("dpg-bench", "x.csv", "a,b\n1,2\n", "item_id and text"),
        ("dpg-bench", "x.csv", "item_id,text\np1,\n", "is empty"),
        ("vbnech", "x.txt", "a", "did you mean 'vbench'"),
    ],
)  # fmt: skip
def test_prompts_that_do_not_fit_are_explained(tmp_path, benchmark, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(benchmark, tmp_path / name)
    with pytest.raises(UserError, match="cannot be read|Unknown benchmark"):
        read_prompts(benchmark, tmp_path / f"none{Path(name).suffix}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_prompts_of_every_editor_are_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("ein grüner Kreis\r\nкруг".encode(encoding))
    assert [prompt.text for prompt in read_prompts("vbench", tmp_path / "a.txt")] == ["ein grüner Kreis", "круг"]
    (tmp_path / "a.json").write_bytes('[{"prompt_en": "grün"}]'.encode(encoding))
    assert [prompt.text for prompt in read_prompts("vbench", tmp_path / "a.json")] == ["grün"]
    (tmp_path / "a.csv").write_bytes('item_id,text\r\np1,"grün,\r\nrund"\r\n'.encode(encoding))
    assert [prompt.text for prompt in read_prompts("dpg-bench", tmp_path / "a.csv")] == ["grün,\nrund"]


def test_prompts_in_another_encoding_are_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text .* save it as UTF-8"):
        read_prompts("vbench", tmp_path / "a.txt")
