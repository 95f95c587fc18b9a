import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

import pytest
import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.training.batches import split_batch
from mutoscope.training.callbacks import Recorder
from mutoscope.training.checkpoint import checkpoint_paths
from mutoscope.training.distributed import Process
from mutoscope.training.pace import TimeShares
from mutoscope.training.signals import NOTHING, STOP, StopSignals
from mutoscope.training.tracking import read_log
from mutoscope.training.trainer import check_same_start, train_model
from mutoscope.training.utilisation import Utilisation
from training.fakes import LOOP, FakeModel, FakeSource, features_recipe

ALONE = Process(0, 1, torch.device("cpu"))
RUN = """
import os, signal, sys
from training.fakes import FakeModel, FakeSource, features_recipe
from mutoscope.training.trainer import train_model

class Deadly(FakeSource):
    def __getitem__(self, indices):
        if {deadly} in indices:
            os.kill(os.getpid(), signal.{signal})
        return super().__getitem__(indices)

train_model(FakeModel(), features_recipe(ema_decay=0.9, clip_norm=0.5), Deadly(), sys.argv[1])
"""


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


def run_until(name: str, clip: int, out: Path) -> int:
    """Trains in another process that gets the signal when the batch with that clip is read; its exit status."""
    script = RUN.format(deadly=clip, signal=name)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(out)], env=environment, capture_output=True, timeout=120)
    return done.returncode


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_training_reduces_the_loss_and_logs_every_update(tmp_path):
    recipe = features_recipe(num_steps=60, log_every=1)
    result = train_model(FakeModel(0, 0), recipe, FakeSource(num_clips=8), tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    assert result.finished and result.steps_done == 60
    assert [line["step"] for line in log] == list(range(60))
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[0]["half"] == pytest.approx(log[0]["loss"] / 2)
    assert {"learning_rate", "grad_norm", "clips_per_second"} <= log[0].keys()
    assert log[0]["learning_rate"] == 0 and log[2]["learning_rate"] == pytest.approx(1e-2)


def test_only_every_nth_update_and_the_last_are_logged(tmp_path):
    train_model(FakeModel(), features_recipe(log_every=5), FakeSource(), tmp_path)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 5, 10, 11]


@pytest.mark.slow
def test_a_run_killed_outright_continues_bit_for_bit(tmp_path):
    recipe = features_recipe(ema_decay=0.9, clip_norm=0.5)
    whole = train_model(FakeModel(), recipe, FakeSource(), tmp_path / "whole")
    assert run_until("SIGKILL", 4 * 10, tmp_path / "killed") == -signal.SIGKILL
    assert [p.name for p in checkpoint_paths(tmp_path / "killed" / "checkpoints")][-1] == "step-00000008.pt"
    assert len(losses(tmp_path / "killed")) == 10  # two updates after the last checkpoint will be repeated
    resumed = train_model(FakeModel(), recipe, FakeSource(), tmp_path / "killed", resume=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert torch.equal(weights(resumed.network), weights(whole.network))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_polite_signal_saves_and_the_run_continues_bit_for_bit(tmp_path, name):
    recipe = features_recipe(ema_decay=0.9, clip_norm=0.5)
    train_model(FakeModel(), recipe, FakeSource(), tmp_path / "whole")
    assert run_until(name, 4 * 5, tmp_path / "stopped") == 0
    assert checkpoint_paths(tmp_path / "stopped" / "checkpoints")[-1].name == "step-00000006.pt"
    train_model(FakeModel(), recipe, FakeSource(), tmp_path / "stopped", resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_signal_gives_an_unfinished_result_and_the_old_handler_back(tmp_path):
    class Interrupting(FakeSource):
        def __getitem__(self, indices):
            if 8 in indices:
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(indices)

    handler = signal.getsignal(signal.SIGTERM)
    result = train_model(FakeModel(), features_recipe(), Interrupting(), tmp_path)
    assert not result.finished and result.steps_done == 3
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_stop_and_resume_in_a_row_still_match(tmp_path):
    train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path / "whole")
    for part in (4, 8, 12):  # a run that is cut off twice: the schedule must be that of the whole run
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mutoscope.training.trainer.due", lambda step, every, total, part=part: step + 1 == part)

            class Stopping(StopSignals):
                saved = tmp_path / "cut" / "checkpoints" / f"step-{part:08d}.pt"

                def take(self):
                    return STOP if self.saved.exists() else NOTHING

            patch.setattr("mutoscope.training.trainer.StopSignals", Stopping)
            train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path / "cut", resume=part > 4)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    results = []
    for accumulation in (1, 4):
        recipe = features_recipe(accumulation=accumulation, batch_size=8, clip_norm=0.1)
        result = train_model(FakeModel(0, 0), recipe, FakeSource(), tmp_path / str(accumulation))
        results.append((weights(result.network), losses(tmp_path / str(accumulation))))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)


@pytest.mark.slow
def test_worker_count_does_not_change_the_run(tmp_path):
    for workers in (0, 2):
        train_model(FakeModel(), features_recipe(num_workers=workers), FakeSource(), tmp_path / str(workers))
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_callbacks_see_the_exported_weights_in_evaluation_mode_and_cannot_disturb_the_run(tmp_path):
    recipe = features_recipe(sample_every=5, ema_decay=0.5)
    model, seen = FakeModel(), []

    def nosy(event):
        torch.rand(7)  # draws from the global generator
        seen.append((event.step, event.network.training, weights(event.network), weights(model)))

    train_model(FakeModel(), recipe, FakeSource(), tmp_path / "quiet")
    result = train_model(model, recipe, FakeSource(), tmp_path / "nosy", callbacks=[nosy])
    assert [step for step, *_ in seen] == [1, 5, 10, 12]
    assert not any(training for _, training, *_ in seen)
    assert not any(torch.equal(shown, raw) for *_, shown, raw in seen[1:])  # the first update has a rate of 0
    assert torch.equal(seen[-1][2], weights(result.network))
    assert model.training
    assert losses(tmp_path / "quiet") == losses(tmp_path / "nosy")


def test_a_run_returns_averaged_weights(tmp_path):
    model = FakeModel()
    result = train_model(model, features_recipe(ema_decay=0.5), FakeSource(), tmp_path)
    assert result.network is not model and not torch.equal(weights(result.network), weights(model))


def test_a_diverging_loss_stops_the_run_before_it_overwrites_a_good_checkpoint(tmp_path):
    class Exploding(FakeModel):
        def loss(self, batch, generator):
            loss, parts = super().loss(batch, generator)
            return (loss * float("nan") if 4 * 6 in batch["index"] else loss), parts

    class Indexed(FakeSource):
        def __getitem__(self, indices):
            return super().__getitem__(indices) | {"index": torch.tensor(indices)}

    with pytest.raises(UserError, match=r"loss is nan at step 7; the last good checkpoint is .*step-00000004\.pt"):
        train_model(Exploding(), features_recipe(log_every=100), Indexed(), tmp_path)
    assert checkpoint_paths(tmp_path / "checkpoints")[-1].name == "step-00000004.pt"


def test_only_the_main_rank_sets_checkpoints_aside_and_speaks(tmp_path, monkeypatch):
    """Another rank has judged no checkpoint, and would set aside the one that the main rank names."""
    asked = []

    def after_divergence():
        asked.append(True)
        return "the last good checkpoint is here"

    monkeypatch.setattr("mutoscope.training.callbacks.mean_over_ranks", lambda values, process: {"loss": math.nan})
    for rank, sentence in ((1, r"^$"), (0, "loss is nan at step 3; the last good checkpoint is here")):
        process = Process(rank, 2, torch.device("cpu"))
        use = Utilisation(LOOP, process.device, None)
        recorder = Recorder(tmp_path, LOOP, 0, process, (), after_divergence, use)
        with pytest.raises(UserError, match=sentence), recorder as r:
            r.record(3, {}, 0.1, torch.tensor(1.0))
    assert asked == [True]


def test_ranks_that_see_different_checkpoints_do_not_start(monkeypatch):
    process = Process(0, 2, torch.device("cpu"))
    others = {10: 20, -10: -10}  # another rank starts after 20 updates
    monkeypatch.setattr("mutoscope.training.trainer.largest_over_ranks", lambda number, process: others[number])
    with pytest.raises(UserError, match="after 10 and 20 updates"):
        check_same_start(10, process)
    monkeypatch.undo()
    check_same_start(10, ALONE)


def test_the_log_of_a_run_says_why_it_ended(tmp_path):
    """Whoever read its messages may be gone by then."""
    with pytest.raises(UserError):
        train_model(Explodes(2), features_recipe(), FakeSource(), tmp_path, prepare_batch=lambda b, s: {**b, "step": s})
    assert "The run ends: Training diverged: loss is nan at step 2" in (tmp_path / "run.log").read_text()


class Explodes(FakeModel):
    """The loss of one update is no number."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def loss(self, batch, generator):
        loss, parts = super().loss(batch, generator)
        return (loss * float("nan") if batch["step"] == self.step else loss), parts


def test_a_checkpoint_whose_following_updates_went_wrong_is_not_continued(tmp_path):
    recipe = features_recipe(num_steps=60, checkpoint_every=20, log_every=5)

    def with_step(batch, step):
        return {**batch, "step": step}

    with pytest.raises(UserError, match=r"step-00000020\.pt \(not confirmed, and set aside: step-00000040\.pt\)"):
        train_model(Explodes(47), recipe, FakeSource(), tmp_path, prepare_batch=with_step)
    assert [path.name for path in checkpoint_paths(tmp_path / "checkpoints")] == ["step-00000020.pt"]
    steps = []
    train_model(
        Explodes(100),
        recipe,
        FakeSource(),
        tmp_path,
        resume=True,
        prepare_batch=lambda batch, step: steps.append(step) or with_step(batch, step),
    )
    assert steps[0] == 20


def test_contact_sheets_that_took_their_share_of_the_time_wait_except_for_the_last(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mutoscope.training.callbacks.TimeShares", lambda: TimeShares(lambda: clock[0]))
    drawn = []

    def prepare(batch, step):
        clock[0] += 20.0
        return batch

    def slow(event):
        clock[0] += 30.0
        drawn.append(event.step)

    recipe = features_recipe(num_steps=60, sample_every=10, checkpoint_every=100, sheet_share=0.1)
    train_model(FakeModel(), recipe, FakeSource(), tmp_path, prepare_batch=prepare, callbacks=[slow])
    # 30 s each and 20 s an update: a tenth of the time is one in 14 updates, taken where one is scheduled and the
    # share is not exceeded even with it; the last one always
    assert drawn == [1, 30, 50, 60]


def test_the_log_says_that_nobody_reads_the_progress(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("sys.stderr", os.fdopen(writer, "w"))
    assert train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path).finished
    assert "reader of our messages is gone (Broken pipe)" in (tmp_path / "run.log").read_text()


def test_a_batch_that_does_not_split_evenly_is_refused(tmp_path):
    with pytest.raises(UserError, match="use a multiple of 3"):
        train_model(FakeModel(), features_recipe(accumulation=3), FakeSource(), tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_changed_recipe_leaves_the_saved_one_alone(tmp_path):
    train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path)
    before = (tmp_path / "recipe.json").read_text()
    with pytest.raises(UserError, match=r"loop\.seed differ"):
        train_model(FakeModel(), features_recipe(seed=1), FakeSource(), tmp_path, resume=True)
    assert (tmp_path / "recipe.json").read_text() == before


def test_resuming_a_finished_run_only_returns_its_weights(tmp_path):
    first = train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path)
    again = train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path, resume=True)
    assert again.finished and torch.equal(weights(first.network), weights(again.network))
    assert len(losses(tmp_path)) == 12


def test_a_finished_run_can_be_extended(tmp_path):
    train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path)
    result = train_model(FakeModel(), features_recipe(num_steps=16), FakeSource(), tmp_path, resume=True)
    assert result.steps_done == 16
    log = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == list(range(16))
    assert log[12]["learning_rate"] > log[11]["learning_rate"]  # back on the cosine of the longer run


def test_prepare_batch_gets_the_step(tmp_path):
    steps = []
    recipe = features_recipe(num_steps=3)
    train_model(
        FakeModel(), recipe, FakeSource(), tmp_path, prepare_batch=lambda batch, step: steps.append(step) or batch
    )
    assert steps == [0, 1, 2]


class NestedBatch(TypedDict):
    x: Tensor
    task: str
    nested: dict[str, Tensor]


def test_splitting_keeps_names_and_values_that_are_no_tensors():
    batch: NestedBatch = {"x": torch.arange(4), "task": "t", "nested": {"y": torch.arange(8).view(4, 2)}}
    first, second = (cast(NestedBatch, part) for part in split_batch(batch, 2))
    assert first["x"].tolist() == [0, 1] and second["x"].tolist() == [2, 3]
    assert second["task"] == "t" and second["nested"]["y"].tolist() == [[4, 5], [6, 7]]


def test_bfloat16_autocast_reaches_the_model(tmp_path):
    dtypes = set()

    class Watching(FakeModel):
        def loss(self, batch, generator):
            dtypes.add(self.layers[0](batch["video"].flatten(1).float()).dtype)
            return super().loss(batch, generator)

    train_model(Watching(), features_recipe(num_steps=3, autocast="bf16"), FakeSource(), tmp_path / "bf16")
    assert dtypes == {torch.bfloat16}
    recipe = replace(features_recipe(num_steps=3), name="plain")
    train_model(Watching(), recipe, FakeSource(), tmp_path / "none")
    assert dtypes == {torch.bfloat16, torch.float32}


def test_a_run_from_before_a_field_existed_can_be_resumed(tmp_path):
    train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path)
    path = checkpoint_paths(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    del state["recipe"]["optim"]["decay_embeddings"]
    torch.save(state, path)
    assert train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path, resume=True).finished


def test_reports_go_to_the_trackers_of_the_recipe_which_may_change_on_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_model(FakeModel(), features_recipe(num_steps=4, report_to=("tensorboard",)), FakeSource(), tmp_path)
    logged = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in logged] == [0, 1, 2, 3]
    assert [event.value for event in logged] == pytest.approx(losses(tmp_path))
    assert train_model(FakeModel(), features_recipe(num_steps=6), FakeSource(), tmp_path, resume=True).finished


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Weights & Biases is not installed; install mutoscope\[tracking\]"):
        train_model(FakeModel(), features_recipe(report_to=("wandb",)), FakeSource(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
