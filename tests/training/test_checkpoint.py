import resource

import pytest
import torch
from torch import nn

from mutoscope.errors import UserError
from mutoscope.training.checkpoint import (
    changed_fields,
    checkpoint_paths,
    load_latest_checkpoint,
    save_checkpoint,
    start_or_resume,
    write_recipe,
)

RECIPE = {"name": "a", "loop": {"num_steps": 10, "log_every": 1, "seed": 0}, "optim": {"eps": 1e-8}}


def save(folder, step, recipe=RECIPE, size=3):
    torch.manual_seed(step)
    generator = torch.Generator().manual_seed(step)
    return save_checkpoint(folder, step, {"model": nn.Linear(size, size)}, generator, recipe)


def latest_step(folder):
    checkpoint = load_latest_checkpoint(folder)
    return checkpoint and checkpoint["step"]


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    for step in (2, 9, 10, 11):
        save(tmp_path, step)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-00000010.pt", "step-00000011.pt"]
    assert not list(tmp_path.glob("*.tmp"))


def test_restoring_brings_back_weights_and_both_generators(tmp_path):
    save(tmp_path, 5)
    torch.manual_seed(5)
    expected = nn.Linear(3, 3)
    drawn = torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    model, generator = nn.Linear(3, 3), torch.Generator()
    assert start_or_resume(tmp_path, RECIPE, {"model": model}, generator, resume=True) == 5
    assert torch.equal(model.weight, expected.weight)
    assert torch.equal(torch.rand(2), drawn[0])
    assert torch.equal(torch.rand(2, generator=generator), drawn[1])


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 1, size=64)
    path = save(tmp_path, 2, size=64)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    if damage == "foreign":
        torch.save({"weights": torch.zeros(1)}, path)
    with pytest.warns(UserWarning, match="step-00000002.pt is damaged"):
        assert latest_step(tmp_path) == 1


def test_damage_of_every_checkpoint_is_reported(tmp_path):
    save(tmp_path, 1).write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="all are damaged"):
        load_latest_checkpoint(tmp_path)


def test_a_checkpoint_loads_without_code(tmp_path):
    state = torch.load(save(tmp_path, 3), weights_only=True)
    assert state["step"] == 3 and state["recipe"] == RECIPE


def test_a_full_disk_is_reported_and_the_last_good_checkpoint_survives(tmp_path):
    good = save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # writing past it fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"Cannot write .*step-00000002.*step-00000001"):
            save(tmp_path, 2, size=300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint_paths(tmp_path) == [good] and not list(tmp_path.glob("*.tmp"))
    assert latest_step(tmp_path) == 1


def test_resuming_under_another_recipe_names_every_changed_field(tmp_path):
    save(tmp_path, 1)
    other = {"name": "a", "loop": {"num_steps": 10, "log_every": 1, "seed": 3}, "optim": {"eps": 0.1}}
    with pytest.raises(UserError, match=r"loop\.seed, optim\.eps differ"):
        start_or_resume(tmp_path, other, {"model": nn.Linear(3, 3)}, torch.Generator(), resume=True)


def test_length_and_logging_may_change_on_resume(tmp_path):
    save(tmp_path, 1)
    other = RECIPE | {"loop": {"num_steps": 20, "log_every": 5, "seed": 0, "report_to": ["wandb"]}}
    assert start_or_resume(tmp_path, other, {"model": nn.Linear(3, 3)}, torch.Generator(), resume=True) == 1


def test_copies_beside_the_checkpoints_are_no_checkpoints(tmp_path):
    for name in ("step-00000001-mine.pt", "step-best.pt", "step-1.pt"):
        (tmp_path / name).write_text("mine")
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000001-mine.pt", "step-00000003.pt", "step-00000004.pt", "step-1.pt", "step-best.pt"]
    assert latest_step(tmp_path) == 4


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, error):
    save(tmp_path, 1)

    def full(*_, **__):
        raise error("CUDA out of memory")

    monkeypatch.setattr("mutoscope.training.checkpoint.read_torch", full)
    with pytest.raises(error):
        load_latest_checkpoint(tmp_path)


def test_a_run_continues_on_another_kind_of_device(tmp_path):
    """The generator of a GPU has a state of 16 bytes, that of the CPU one of thousands."""
    save(tmp_path, 5)
    path = checkpoint_paths(tmp_path)[0]
    state = torch.load(path, weights_only=True)
    torch.save(state | {"generator": torch.zeros(16, dtype=torch.uint8)}, path)
    assert start_or_resume(tmp_path, RECIPE, {"model": nn.Linear(3, 3)}, torch.Generator(), resume=True) == 5


def test_a_new_run_refuses_a_folder_that_holds_checkpoints(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match="already holds checkpoints"):
        start_or_resume(tmp_path, RECIPE, {}, torch.Generator(), resume=False)


def test_resuming_before_the_first_checkpoint_starts_over(tmp_path):
    with pytest.warns(UserWarning, match="starting at step 0"):
        assert start_or_resume(tmp_path / "none", RECIPE, {}, torch.Generator(), resume=True) == 0


def test_changed_fields_include_missing_ones():
    assert changed_fields({"a": {"b": 1}}, {"a": {"b": 1, "c": None}}) == ["a.c"]


def test_the_recipe_is_stored_beside_the_run(tmp_path):
    write_recipe(tmp_path / "new", RECIPE)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["recipe.json"]
