import importlib.util

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.training.tracking import JsonlTracker, TensorBoardTracker, WandbTracker, read_log


def test_each_step_is_one_line_that_is_on_disk_at_once(tmp_path):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    tracker.log(0, {"loss": 1.5})
    tracker.image(0, "sheet", np.zeros((2, 2, 3), np.uint8))
    assert read_log(tmp_path / "log.jsonl") == [{"step": 0, "loss": 1.5}]
    tracker.close()


def test_continuing_drops_what_was_logged_after_the_checkpoint_and_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "loss": 3}\n{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    tracker = JsonlTracker(path, start_step=2)
    tracker.log(2, {"loss": 1.1})
    tracker.close()
    assert [line["loss"] for line in read_log(path)] == [3, 2, 1.1]


@pytest.mark.parametrize(
    ("module", "make"),
    [("tensorboard", lambda path: TensorBoardTracker(path)), ("wandb", lambda path: WandbTracker("p", "n"))],
)
def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path, module, make):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(UserError, match=r"mutoscope\[tracking\]"):
        make(tmp_path)
