"""Validation watches a run without changing it, repeats exactly, and decides which weights are exported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mutoscope.data.base import ClipBatch
from mutoscope.errors import UserError
from mutoscope.tokenizers.discriminator import DiscriminatorConfig
from mutoscope.training.callbacks import EARLY
from mutoscope.training.checkpoint import checkpoint_paths
from mutoscope.training.config import AdversarialConfig, LoopConfig
from mutoscope.training.tokenizer_trainer import tokenizer_figures, train_tokenizer
from mutoscope.training.tracking import read_log
from mutoscope.training.trainer import train_model
from mutoscope.training.validation import Candidates, Validation, ValidationRule
from training.fakes import FakeModel, FakeSource, FakeTokenizer, features_recipe, tokenizer_recipe

CPU = torch.device("cpu")
ON = {"validation_share": 0.25, "validate_every": 5, "validation_clips": 12}

OF_THE_CLOCK = {"clips_per_second", "tokens_per_second", "data_share", "model_flops_use"}


class Recordings(FakeSource):
    """Three clips of each of eight recordings; remembers which were read."""

    def __init__(self) -> None:
        super().__init__(num_clips=24)
        self.episodes, self.read = np.arange(24) // 3, set[int]()

    def __getitem__(self, indices: Sequence[int]) -> ClipBatch:
        self.read |= set(indices)
        return super().__getitem__(indices)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def log(folder: Path) -> list[dict[str, float]]:
    """Every line without its speed."""
    return [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in read_log(folder / "log.jsonl")]


def test_watching_an_endless_dataset_changes_nothing(tmp_path):
    runs = [
        train_model(FakeModel(), features_recipe(ema_decay=0.5, **options), FakeSource(), tmp_path / name)
        for name, options in (("blind", {}), ("watched", ON))
    ]
    assert torch.equal(*(weights(run.network) for run in runs)) or runs[1].kind == "raw"
    blind, watched = (log(tmp_path / name) for name in ("blind", "watched"))
    assert [line["loss"] for line in blind] == [line["loss"] for line in watched]
    assert [line["step"] for line in watched if "validation_loss" in line] == [0, 4, 9, 11]


def test_a_resumed_run_equals_an_uninterrupted_one_with_validation_and_a_warmed_average(tmp_path):
    recipe = features_recipe(ema_decay=0.99, ema_warmup=True, **ON)
    whole = train_model(FakeModel(), recipe, Recordings(), tmp_path / "whole")
    train_model(FakeModel(), recipe, Recordings(), tmp_path / "cut")
    for path in checkpoint_paths(tmp_path / "cut" / "checkpoints")[1:]:
        path.unlink()  # as if killed after update 8
    resumed = train_model(FakeModel(), recipe, Recordings(), tmp_path / "cut", resume=True)
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    assert resumed.kind == whole.kind and torch.equal(weights(resumed.network), weights(whole.network))
    again = train_model(FakeModel(), recipe, Recordings(), tmp_path / "cut", resume=True)  # finished already
    assert again.kind == whole.kind and again.figures == whole.figures


def test_training_reads_no_clip_of_a_held_back_recording(tmp_path):
    source = Recordings()
    train_model(FakeModel(), features_recipe(num_steps=40, **ON | {"validation_clips": 1}), source, tmp_path)
    trained = {clip // 3 for clip in source.read}
    assert len(source.read) == 18 + 1 and len(trained) == 6 + 1  # and one clip of one of the two for validation


@pytest.mark.slow
def test_workers_do_not_change_what_is_measured(tmp_path):
    for workers in (0, 2):
        train_model(FakeModel(), features_recipe(num_workers=workers, **ON), Recordings(), tmp_path / str(workers))
    assert log(tmp_path / "0") == log(tmp_path / "2")


def test_validations_have_a_line_of_their_own_with_the_training_loss(tmp_path):
    train_model(FakeModel(), features_recipe(log_every=100, **ON), Recordings(), tmp_path)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [0, 4, 9, 11]
    assert all({"loss", "validation_loss"} <= line.keys() for line in lines)


def constant(value: float) -> nn.Module:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    return model


def candidates(raw: float, averaged: float) -> tuple[Candidates, nn.Module, AveragedModel]:
    """Weights whose loss is their value."""
    model, ema = constant(raw), AveragedModel(constant(averaged))
    rule = ValidationRule(lambda network, batch, generator: {"loss": network.weight.sum()})
    return Candidates(model, ema, Validation(FakeSource(5), rule, LoopConfig(1, 1), CPU, lambda b, i: b)), model, ema


@pytest.mark.parametrize("raw, averaged, kind", [(1.0, 2.0, "raw"), (2.0, 1.0, "averaged"), (1.0, 1.0, "averaged")])
def test_the_better_weights_are_exported_and_the_log_says_so(raw: float, averaged: float, kind: str):
    chosen, model, ema = candidates(raw, averaged)
    assert chosen.network is ema.module  # before the first validation, as without one
    values = chosen.validate()
    assert chosen.kind == kind and chosen.network is (model if kind == "raw" else ema.module)
    assert values == {
        "validation_loss": raw, "validation_loss_averaged": averaged,
        "exports_averaged_weights": float(kind == "averaged"),
    }  # fmt: skip
    assert f"The {kind} weights are exported, by 5 held-back clips" in chosen.report()


def test_an_average_that_lags_behind_is_not_exported(tmp_path, capsys):
    recipe = features_recipe(num_steps=30, ema_decay=0.999, **ON)
    model = FakeModel(0, 0)
    result = train_model(model, recipe, FakeSource(), tmp_path)
    assert result.kind == "raw" and result.network is model
    assert result.figures["raw"]["loss"] < result.figures["averaged"]["loss"]
    assert "The raw weights are exported" in capsys.readouterr().err


def test_without_validation_the_averaged_weights_are_exported(tmp_path):
    result = train_model(FakeModel(), features_recipe(ema_decay=0.999), FakeSource(), tmp_path)
    assert result.kind == "averaged" and result.figures == {}


def test_the_figure_is_the_mean_over_all_clips_and_the_mode_is_put_back():
    def measure(network: nn.Module, batch: object, generator: torch.Generator) -> dict[str, torch.Tensor]:
        assert not network.training
        assert isinstance(batch, dict)
        return {"loss": batch["label"].float().mean(), "draw": torch.rand((), generator=generator)}

    validation = Validation(FakeSource(10), ValidationRule(measure), LoopConfig(1, 1), CPU, lambda b, i: dict(b))
    network = FakeModel().train()
    first, second = validation.measure(network), validation.measure(network)
    assert first["loss"] == pytest.approx(2.0) and network.training  # batches of 8 and 2 clips with labels 0 to 4
    assert first == second  # also what is drawn


def test_a_diverging_validation_stops_the_run(tmp_path):
    class Brittle(FakeModel):
        def loss(self, batch, generator):
            loss, named = super().loss(batch, generator)
            return (loss if self.training else loss * float("nan")), named

    with pytest.raises(UserError, match="validation_loss is nan at step 0"):
        train_model(Brittle(), features_recipe(**ON), Recordings(), tmp_path)


def test_tokenizers_are_validated_by_psnr_without_touching_the_discriminator(tmp_path):
    network = DiscriminatorConfig(4, (2,), (2, 4, 4))
    for name, options in (("blind", {}), ("watched", ON)):
        recipe = replace(tokenizer_recipe(num_steps=6, **options), adversarial=AdversarialConfig(network))
        torch.manual_seed(0)
        train_tokenizer(FakeTokenizer(), recipe, FakeSource(), tmp_path / name)
    blind, watched = (log(tmp_path / name) for name in ("blind", "watched"))
    assert [line["discriminator"] for line in blind] == [line["discriminator"] for line in watched]
    assert "validation_psnr" in watched[-1] and "validation_discriminator" not in watched[-1]


def test_psnr_is_that_of_pixels():
    tokenizer, clips = FakeTokenizer(), FakeSource()[range(3)]
    figures = tokenizer_figures(tokenizer, dict(clips), torch.Generator())
    video = tokenizer.from_uint8(clips["video"])
    error = (((tokenizer.decode(video).clamp(-1, 1) - video) / 2) ** 2).flatten(1).mean(1)
    assert figures["psnr"].item() == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-5)


def test_contact_sheets_come_from_the_start_and_then_regularly(tmp_path):
    seen = []
    recipe = features_recipe(num_steps=40, sample_every=20)
    train_model(FakeModel(), recipe, FakeSource(), tmp_path, callbacks=[lambda event: seen.append(event.step)])
    assert seen == [1, 10, 20, 40] and EARLY[:2] == (1, 10)


def test_the_curve_is_redrawn_and_a_resumed_run_draws_all_of_it(tmp_path, monkeypatch):
    lengths = []
    monkeypatch.setattr(
        "mutoscope.training.callbacks.write_curve", lambda path, image: lengths.append(len(log(path.parent)))
    )
    train_model(FakeModel(), features_recipe(), FakeSource(), tmp_path)
    assert lengths == [1, 4, 8, 10, 12]  # first sheets, and checkpoints every fourth update
    train_model(FakeModel(), features_recipe(num_steps=16), FakeSource(), tmp_path, resume=True)
    assert lengths[5:] == [16]


def test_the_estimate_is_printed_once_and_logged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mutoscope.training.pace.MEASURED_SECONDS", 0.0)
    train_model(FakeModel(), features_recipe(recognisable_after=8), FakeSource(), tmp_path)
    assert capsys.readouterr().err.count("recognisable output (update 8) in about") == 1
    [line] = [line for line in log(tmp_path) if "updates_per_second" in line]
    assert line["step"] == 3 and line["seconds_to_end"] > line["seconds_to_recognisable"] > 0


@pytest.mark.parametrize("wrong", [{"validation_share": 1.0}, {"validation_share": -0.1}, {"validate_every": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        features_recipe(**wrong)


def test_a_run_from_before_validation_existed_resumes_under_its_own_rules(tmp_path):
    train_model(FakeModel(), features_recipe(ema_decay=0.9), FakeSource(), tmp_path)
    path = checkpoint_paths(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    for name in ("ema_warmup", "validation_share", "validate_every", "validation_clips", "recognisable_after"):
        del state["recipe"]["loop"][name]
    torch.save(state, path)
    resumed = features_recipe(ema_decay=0.9, recognisable_after=3, validate_every=7, num_steps=14)
    assert train_model(FakeModel(), resumed, FakeSource(), tmp_path, resume=True).finished
    with pytest.raises(UserError, match=r"loop\.ema_warmup differ"):
        warmed = features_recipe(ema_decay=0.9, ema_warmup=True)
        train_model(FakeModel(), warmed, FakeSource(), tmp_path, resume=True)
