"""Model folders: what is written is read back; whatever is wrong is told, and nothing in a folder is ever run."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mutoscope import hub
from mutoscope.errors import UserError
from tiny_models import (
    save_tiny_model,
    save_tiny_tokenizer,
    tiny_index,
    tiny_model,
    tiny_tokenizer,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_comes_back_with_its_configuration_and_weights_in_half_precision(folder: Path) -> None:
    before, after = tiny_model(), hub.load_model(folder)
    assert after.config == before.config
    for key, value in before.state_dict().items():
        assert after.state_dict()[key].dtype == value.dtype == torch.float32
        torch.testing.assert_close(after.state_dict()[key], value.half().float(), rtol=0, atol=0)


def test_a_tokenizer_comes_back(folder: Path) -> None:
    tokenizer = hub.load_tokenizer(folder)
    assert tokenizer.config == tiny_tokenizer().config and not tokenizer.training
    assert tokenizer.encode(torch.zeros(1, 3, 8, 8, 8)).shape == (1, 4, 4, 4)


def test_the_index_comes_back(folder: Path) -> None:
    assert hub.load_index(folder) == tiny_index()


def test_weights_on_disk_are_half_precision(folder: Path) -> None:
    assert {tensor.dtype for tensor in load_file(folder / "model" / "model.safetensors").values()} == {torch.float16}


def test_numbers_too_large_for_half_precision_keep_full_precision(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("head.bias").fill_(1e6)
    hub.save_pretrained(tmp_path / "m", tiny_index(), tiny_tokenizer(), model)
    assert hub.load_model(tmp_path / "m").get_parameter("head.bias")[0] == 1e6


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    hub.load_model(folder)
    hub.load_tokenizer(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_loading_does_not_import_the_compiler(folder: Path) -> None:
    code = f"import sys; from mutoscope import hub; hub.load_model({str(folder)!r}); "
    code += f"hub.load_tokenizer({str(folder)!r}); "
    code += "sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_may_name_another_folder_as_its_tokenizer(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path / "vq")
    hub.save_pretrained(tmp_path / "m", replace(tiny_index(), tokenizer="../vq"), model=tiny_model())
    assert hub.load_tokenizer(tmp_path / "m").config == tiny_tokenizer().config


def test_a_model_may_name_a_bundled_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ZOO", tmp_path / "zoo")
    save_tiny_tokenizer(tmp_path / "zoo" / "vq-tiny")
    hub.save_pretrained(tmp_path / "m", replace(tiny_index(), tokenizer="vq-tiny"), model=tiny_model())
    assert hub.load_tokenizer(tmp_path / "m").config == tiny_tokenizer().config
    assert hub.load_tokenizer("vq-tiny").config == tiny_tokenizer().config


def test_tokenizers_that_name_each_other_are_an_error(tmp_path: Path) -> None:
    for name, other in (("a", "../b"), ("b", "../a")):
        hub.save_pretrained(tmp_path / name, replace(tiny_index(), tokenizer=other))
    with pytest.raises(UserError, match="circle"):
        hub.load_tokenizer(tmp_path / "a")


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ZOO", tmp_path)
    save_tiny_tokenizer(tmp_path / "vq-shapes")
    with pytest.raises(UserError, match="did you mean 'vq-shapes'"):
        hub.resolve("vq-shape")


@pytest.mark.parametrize(
    ("name", "message"), [("./nowhere", "no folder"), ("", "without model_index"), ("file", "is a file")]
)
def test_what_is_not_a_model_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=message):
        hub.resolve(tmp_path / name if name != "./nowhere" else name)


@pytest.mark.parametrize("part", ["model/config.json", "model/model.safetensors", "tokenizer/config.json"])
def test_a_missing_file_is_named(folder: Path, part: str) -> None:
    (folder / part).unlink()
    with pytest.raises(UserError, match=part):
        hub.load_model(folder)
        hub.load_tokenizer(folder)


def test_an_unknown_key_is_named_with_the_nearest(folder: Path) -> None:
    edit_json(folder / "model" / "config.json", num_layer=3)
    with pytest.raises(UserError, match="'num_layer'.*'num_layers'"):
        hub.load_model(folder)


def test_a_missing_key_is_named(folder: Path) -> None:
    path = folder / "model" / "config.json"
    values = json.loads(path.read_text())
    del values["hidden_size"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="'hidden_size' is missing"):
        hub.load_model(folder)


@pytest.mark.parametrize(
    "values", [{"hidden_size": "wide"}, {"num_heads": 0}, {"latent_shape": [4, 4]}, {"hidden_size": -16}, {"tasks": 3}]
)
def test_a_value_that_makes_no_network_is_an_error(folder: Path, values: dict[str, object]) -> None:
    edit_json(folder / "model" / "config.json", **values)
    with pytest.raises(UserError):
        hub.load_model(folder)


def test_a_huge_network_is_refused_before_memory_is_spent(folder: Path) -> None:
    edit_json(folder / "model" / "config.json", hidden_size=2**24, mlp_size=2**24)
    with pytest.raises(UserError, match="more than 1,099"):
        hub.load_model(folder)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\xff"])
def test_damaged_json_is_an_error(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="JSON"):
        hub.load_index(folder)


def test_an_unknown_format_is_an_error(folder: Path) -> None:
    edit_json(folder / "model_index.json", format="mutoscope-9")
    with pytest.raises(UserError, match="mutoscope-9"):
        hub.load_index(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_cut_off_weights_file_is_an_error(folder: Path, keep: int) -> None:
    path = folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged"):
        hub.load_model(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["head.bias"]
    save_file(weights, path)
    with pytest.raises(UserError, match="'head.bias' is missing"):
        hub.load_model(folder)


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    save_file({**load_file(path), "stray": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="'stray'"):
        hub.load_model(folder)


def test_weights_that_are_not_numbers_are_an_error(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    save_file({**load_file(path), "head.bias": torch.full((36,), float("nan"))}, path)
    with pytest.raises(UserError, match="NaN"):
        hub.load_model(folder)


def test_a_class_outside_the_list_is_never_imported(folder: Path) -> None:
    edit_json(folder / "model" / "config.json", **{"class": "os.system"})
    with pytest.raises(UserError, match="unknown class"):
        hub.load_model(folder)


def test_a_pickle_in_place_of_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    (folder / "model" / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="damaged"):
        hub.load_model(folder)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder on another file system than that of temporary files, where there is one."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no other file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_a_tokenizer_alone_has_no_model(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path / "vq")
    with pytest.raises(UserError, match="tokenizer only"):
        hub.load_model(tmp_path / "vq")


def test_saving_keeps_what_else_lies_in_the_folder(folder: Path) -> None:
    (folder / "log.jsonl").write_text("kept")
    save_tiny_model(folder)
    assert (folder / "log.jsonl").read_text() == "kept"
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "model", "model_index.json", "tokenizer"]


def test_an_interrupted_save_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = hub.load_model(folder).state_dict()
    monkeypatch.setattr(hub, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hub.save_pretrained(folder, tiny_index(), tiny_tokenizer(), tiny_model())
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    torch.testing.assert_close(hub.load_model(folder).state_dict(), before)


def test_a_save_stopped_between_two_renames_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, before = os.replace, hub.load_model(folder).state_dict()

    def interrupted(source: Path, target: Path) -> None:
        if Path(target) == folder / "model":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.save_pretrained(folder, tiny_index(), tiny_tokenizer(), tiny_model())
    torch.testing.assert_close(hub.load_model(folder).state_dict(), before)
    assert sorted(path.name for path in folder.iterdir()) == ["model", "model_index.json", "tokenizer"]


@pytest.mark.parametrize("name", [".", "link", "link to nothing"])
def test_a_model_is_saved_where_links_and_points_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: Path, name: str
) -> None:
    """As after a night of training in `--out .`, or in a link to a larger disk."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("link").symlink_to(other_disk)
    Path("link to nothing").symlink_to(other_disk / "new")
    save_tiny_model(Path(name))
    found = sorted(path.name for path in Path(name).iterdir() if not path.is_symlink())
    assert found == ["model", "model_index.json", "tokenizer"] and Path("link").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write"):
        save_tiny_tokenizer(tmp_path / "file" / "model")


def test_recipe_and_card_are_written(tmp_path: Path) -> None:
    hub.save_pretrained(tmp_path / "m", tiny_index(), recipe={"name": "x"}, card="# X\n")
    assert hub.read_json(tmp_path / "m" / "recipe.json") == {"name": "x"}
    assert (tmp_path / "m" / "MODEL_CARD.md").read_text() == "# X\n"


def test_the_index_is_plain_json(folder: Path) -> None:
    assert json.loads((folder / "model_index.json").read_text()) == json.loads(json.dumps(asdict(tiny_index())))


def test_weights_are_as_readable_as_any_other_file(tmp_path: Path):
    hub.save_component(tmp_path, tiny_tokenizer())
    assert (tmp_path / hub.WEIGHTS).stat().st_mode == (tmp_path / hub.CONFIG).stat().st_mode


def test_the_hash_of_weights_ignores_files_and_memory_layout(tmp_path):
    kernels = torch.nn.Conv3d(2, 2, 2)
    assert hub.weights_hash(kernels) == hub.weights_hash(kernels.to(memory_format=torch.channels_last_3d))
    for name in ("a", "b"):
        hub.save_pretrained(tmp_path / name, tiny_index(), tiny_tokenizer(), tiny_model())
    first, again = (hub.load_model(tmp_path / name) for name in ("a", "b"))
    assert hub.weights_hash(kernels, first) == hub.weights_hash(kernels, again)
    next(again.parameters()).data += 1
    assert hub.weights_hash(kernels, first) != hub.weights_hash(kernels, again)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod."])
def test_prefixes_of_wrappers_are_removed(folder: Path, prefix: str) -> None:
    plain = hub.load_model(folder).state_dict()
    path = folder / "model" / "model.safetensors"
    save_file({f"{prefix}{name}": value for name, value in load_file(path).items()}, path)
    found = hub.load_model(folder).state_dict()
    assert all(torch.equal(found[key], value) for key, value in plain.items())


def test_a_model_folder_is_unfinished_until_its_index_is_there(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert hub.is_unfinished(folder)
    (folder / "tokenizer").mkdir()
    assert hub.is_unfinished(folder)
    (folder / "model_index.json").touch()
    assert not hub.is_unfinished(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    assert not hub.is_unfinished(tmp_path / "mine") and not hub.is_unfinished(tmp_path / "nothing")
