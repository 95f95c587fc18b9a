"""Flags of one model: help shows exactly what it takes, and every option can be typed."""

import json
from pathlib import Path

import pytest

from mutoscope import hub
from mutoscope.commands.options import model_flags, parse_options
from mutoscope.errors import UserError
from mutoscope.families import family_named

BUNDLED = ["magvit-shapes", "par-shapes-4x", "nova-shapes", "magi-shapes"]
TWO_SCREENS = 2 * 50


def help_of(run, model: str) -> str:
    done = run("generate", model, "--help")
    assert done.status == 0
    return done.out


def test_help_of_two_families_differs_and_fits_two_screens_each(run):
    texts = {model: help_of(run, model) for model in BUNDLED}
    assert len(set(texts.values())) == len(BUNDLED)
    assert all(len(text.splitlines()) <= TWO_SCREENS for text in texts.values())
    assert "--choice-temperature" in texts["magvit-shapes"] and "--choice-temperature" not in texts["magi-shapes"]
    assert "--guidance-by {conditions,history}" in texts["magi-shapes"] and "[history]" in texts["magi-shapes"]
    assert "--prompt" in texts["nova-shapes"] and "--prompt" not in texts["magvit-shapes"]
    assert "circle-glide" in texts["par-shapes-4x"]


@pytest.mark.parametrize("model", BUNDLED)
def test_every_flag_is_in_the_help_with_a_description(run, model: str):
    text = help_of(run, model)
    for flag in model_flags(hub.open_folder(model)):
        assert flag.spelling in text and flag.help, flag.name


@pytest.mark.parametrize("model", BUNDLED)
def test_defaults_that_are_typed_change_nothing(model: str):
    folder = hub.open_folder(model)
    family = family_named(folder.index.family)
    typed: list[str] = []
    for flag in model_flags(folder):
        if flag.group == "How to sample" and flag.default is not None:
            typed += [flag.spelling, str(flag.default)]
    options = parse_options(folder, "test", typed)
    plain = parse_options(folder, "test", [])
    assert options == plain
    names = {flag.name for flag in model_flags(folder)} - {"panorama", "context", "task_video", "actions"}
    family.build_call(folder.index, {name: value for name, value in options.items() if name in names})


def test_defaults_depend_on_the_task_that_the_other_flags_imply():
    folder = hub.open_folder("magvit-shapes")
    scales = [
        parse_options(folder, "test", arguments)["guidance_scale"]
        for arguments in ([], ["--task", "inpaint-central"], ["--task", "inpaint-central", "--guidance-scale", "4.0"])
    ]
    assert scales == [4.0, 2.0, 4.0]


def test_an_option_of_another_family_is_refused(run, out):
    done = run("generate", "magvit-shapes", "--out", out / "x.gif", "--prompt", "a red circle")
    assert done.status == 2 and "--prompt" in done.error and "mutoscope generate magvit-shapes --help" in done.error


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="window-mode"):
        parse_options(hub.open_folder("magi-shapes"), "test", ["--window-mode", "jumping"])


def test_one_call_reads_the_model_index_once(run, out, monkeypatch: pytest.MonkeyPatch):
    reads: list[Path] = []
    read = hub.read_json
    monkeypatch.setattr(hub, "read_json", lambda path: (reads.append(path), read(path))[1])
    assert run("generate", "par-shapes-16x", "--out", out / "x.gif", "--json").status == 0
    indices = [path for path in reads if path.name == "model_index.json"]
    assert len(indices) == len(set(indices)) == 2  # the model's and its tokenizer's
    assert json.loads(indices[0].read_text())["family"] == "par"
