import os
import sys

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.training.tracking import TRACKERS, Journal, JsonlTracker, open_trackers, read_log


def test_each_step_is_one_line_that_is_on_disk_at_once(tmp_path):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    tracker.log(0, {"loss": 1.5})
    tracker.image(0, "sheet", np.zeros((2, 2, 3), np.uint8))
    assert read_log(tmp_path / "log.jsonl") == [{"step": 0, "loss": 1.5}]
    tracker.close()


def test_continuing_drops_lines_after_the_checkpoint_and_a_cut_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "loss": 3}\n{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    tracker = JsonlTracker(path, start_step=2)
    tracker.log(2, {"loss": 1.1})
    tracker.close()
    assert [line["loss"] for line in read_log(path)] == [3, 2, 1.1]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"{TRACKERS[name]} is not installed; install mutoscope\[tracking\]"):
        open_trackers([name], tmp_path, "run", {})
    assert not list(tmp_path.iterdir())


WANDB = """
calls = []
class Run:
    def log(self, values, step): calls.append((step, values))
    def finish(self): calls.append("finished")
def init(project, name, config): calls.append((project, name, config)); return Run()
def Image(array): return array.shape
"""


def test_a_weights_and_biases_run_gets_numbers_and_images(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    [tracker] = open_trackers(["wandb"], tmp_path, "vq-shapes", {"loop": {}})
    tracker.log(3, {"loss": 1.5})
    tracker.image(4, "sheet", np.zeros((2, 5, 3), np.uint8))
    tracker.close()
    calls = sys.modules["wandb"].calls
    assert calls[0] == ("mutoscope", "vq-shapes", {"loop": {}})
    assert calls[1:] == [(3, {"loss": 1.5}), (4, {"sheet": (2, 5, 3)}), "finished"]
    monkeypatch.delitem(sys.modules, "wandb")


def test_tensorboard_gets_numbers_and_images_and_drops_steps_that_a_resumed_run_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, losses in ((0, (3.0, 2.0, 1.0)), (2, (1.5,))):
        [tracker] = open_trackers(["tensorboard"], tmp_path, "vq-shapes", {}, start)
        for step, loss in enumerate(losses, start):
            tracker.log(step, {"loss": loss})
        tracker.image(start, "sheet", np.zeros((2, 5, 3), np.uint8))
        tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(0, 3.0), (1, 2.0), (2, 1.5)]
    assert found.Images("sheet")[-1].width == 5


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00\x00\n", b"3\n", b'{"loss": 1.0}\n', b"\x00\x00\x00"])
def test_a_log_damaged_by_a_power_cut_is_read_up_to_the_damage(tmp_path, damage):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 2.0}\n' + damage)
    assert read_log(path) == [{"step": 0, "loss": 2.0}]
    JsonlTracker(path, 1).close()
    assert path.read_text() == '{"step": 0, "loss": 2.0}\n'


def test_a_name_that_is_no_text_does_not_end_a_run(tmp_path):
    Journal(tmp_path / "run.log").write(os.fsdecode(b"r\xffun\x1b[2J"))
    assert "r\\udcffun\\x1b[2J" in (tmp_path / "run.log").read_text()
