"""`loop.compile`: blocks run compiled while gradients are computed; without a compiler training goes on as it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from mutoscope.layers.draws import Draws, dropout
from mutoscope.models.magi import MAGI
from mutoscope.models.magvit import Magvit
from mutoscope.models.nova import NOVA
from mutoscope.models.par import PAR
from mutoscope.tokenizers.causal3d import Causal3D, Causal3DConfig
from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig
from mutoscope.training import compiled
from mutoscope.training.callbacks import TrainEvent
from mutoscope.training.compiled import CompiledBlocks, repeated_blocks
from mutoscope.training.tracking import read_log
from mutoscope.training.trainer import train_model
from tiny_magi import tiny_config as magi_config
from tiny_nova import tiny_config as nova_config
from training.fakes import FakeModel, FakeSource, features_recipe
from training.split_runs import MAGVIT, PAR_CONFIG


class Blocky(FakeModel):
    """A classifier with two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(2))
        self.layers.append(Residual(self.blocks))


class Residual(nn.Module):
    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = [*blocks]  # registered by the network already

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Compiler:
    """In place of torch.compile: counts the calls of what it has "compiled"."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, function: Callable, dynamic: bool | None = None) -> Callable:
        @wraps(function)
        def counted(*args: object, **kwargs: object) -> object:
            self.calls += 1
            return function(*args, **kwargs)

        return counted


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(compiled.torch, "compile", found)
    return found


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


def test_the_blocks_of_a_network_are_the_outermost_ones_that_repeat():
    magvit, nova, magi = Magvit(MAGVIT), NOVA(nova_config()), MAGI(magi_config())
    assert repeated_blocks(magvit) == [*magvit.blocks]
    assert repeated_blocks(par := PAR(PAR_CONFIG)) == [*cast(nn.ModuleList, par.blocks)]
    expected = [*nova.temporal_encoder.blocks, *nova.spatial_encoder.blocks, *nova.head.blocks]
    assert repeated_blocks(nova) == expected
    assert repeated_blocks(magi) == [*magi.blocks, *magi.denoiser.blocks]
    vq = VQ3D(VQ3DConfig(4, (1, 2), 1, (True,), embedding_dim=4, codebook_size=8, num_groups=2))
    causal = Causal3D(Causal3DConfig(4, (1, 2), 1, (True,), num_groups=2))
    for tokenizer in (vq, causal):
        names = {type(block).__name__ for block in repeated_blocks(tokenizer)}
        assert {"ResBlock", "Up"} <= names and "Conv3d" not in names


def test_compiled_updates_are_the_same_and_leave_the_network_as_it_is(tmp_path: Path, compiler: Compiler):
    options = {"accumulation": 2, "ema_decay": 0.9}
    plain = train_model(Blocky(), features_recipe(**options), FakeSource(), tmp_path / "plain")
    fast = train_model(Blocky(), features_recipe(compile=True, **options), FakeSource(), tmp_path / "fast")
    assert losses(tmp_path / "fast") == losses(tmp_path / "plain")
    assert list(fast.network.state_dict()) == list(plain.network.state_dict())
    assert not [name for module in fast.network.modules() for name in vars(module) if name == "forward"]
    assert compiler.calls == 1 + 12 * 2 * 2  # the trial; updates, micro-batches and blocks


class Drawing(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.layers, self.share = nn.Sequential(nn.Linear(4, 4)), share

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return dropout(self.layers(x), self.share, draws)


def test_blocks_that_draw_stay_as_they_are(compiler: Compiler):
    network, said, draws = nn.ModuleList([Drawing(0.5), Drawing(0.0)]), [], torch.Generator().manual_seed(0)
    blocks = CompiledBlocks(nn.ModuleList([network]), said.append)
    compiler.calls, x = 0, torch.ones(2, 4)
    expected = [[block(x, draws=draws) for block in network] for _ in range(3)]
    draws.manual_seed(0)
    with blocks.active():
        found = [[block(x, draws=draws) for block in network] for _ in range(3)]
    assert all(torch.equal(a, b) for both in zip(expected, found, strict=True) for a, b in zip(*both, strict=True))
    assert compiler.calls == 2  # of the block without dropout, after its first call
    assert len(said) == 1 and "blocks with dropout" in said[0]


def test_contact_sheets_run_uncompiled(tmp_path: Path, compiler: Compiler):
    calls: list[int] = []

    def sheet(event: TrainEvent) -> None:
        before = compiler.calls
        cast(Blocky, event.network).blocks[0](torch.zeros(1, 16))
        calls.append(compiler.calls - before)

    recipe = features_recipe(compile=True, sample_every=6)
    train_model(Blocky(), recipe, FakeSource(), tmp_path, callbacks=[sheet])
    assert calls and not any(calls)


def test_a_run_may_be_resumed_with_and_without(tmp_path: Path, compiler: Compiler):
    whole = train_model(Blocky(), features_recipe(), FakeSource(), tmp_path / "whole")
    train_model(Blocky(), features_recipe(num_steps=8, compile=True), FakeSource(), tmp_path / "parts")
    train_model(Blocky(), features_recipe(num_steps=12), FakeSource(), tmp_path / "parts", resume=True)
    assert whole.finished and len(losses(tmp_path / "parts")) == 12


def test_without_a_compiler_training_goes_on_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(function: object, dynamic: bool | None = None) -> object:
        raise RuntimeError("Invalid C++ compiler. Install g++.")

    train_model(Blocky(), features_recipe(), FakeSource(), tmp_path / "plain")
    monkeypatch.setattr(compiled.torch, "compile", refuse)
    train_model(Blocky(), features_recipe(compile=True), FakeSource(), tmp_path / "fast")
    said = [line for line in capsys.readouterr().err.splitlines() if "loop.compile" in line]
    assert len(said) == 1 and "Invalid C++ compiler" in said[0] and "without" in said[0]
    assert losses(tmp_path / "fast") == losses(tmp_path / "plain")


def test_a_block_that_cannot_be_compiled_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torch._dynamo.exc import TorchDynamoException

    def late(function: Callable, dynamic: bool | None = None) -> Callable:
        def fails(*args: object) -> object:
            raise TorchDynamoException("no such operation")

        return fails if hasattr(function, "__self__") else function  # the trial is no method

    train_model(Blocky(), features_recipe(), FakeSource(), tmp_path / "plain")
    monkeypatch.setattr(compiled.torch, "compile", late)
    train_model(Blocky(), features_recipe(compile=True), FakeSource(), tmp_path / "fast")
    assert losses(tmp_path / "fast") == losses(tmp_path / "plain")
    assert "no such operation" in (tmp_path / "fast" / "run.log").read_text()


TRAIN_BOTH = """
import sys
from dataclasses import replace
from pathlib import Path
from training.split_runs import LOOP, RUNS
for folder, compile in (("plain", False), ("fast", True)):
    loop = replace(LOOP, accumulation=2, compile=compile)
    RUNS[sys.argv[1]]({"out": Path(sys.argv[2], folder), "loop": loop, "stop_after": 0})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magvit", "par", "nova", "magi", "causal"])
def test_losses_of_a_compiled_family_differ_by_rounding(tmp_path: Path, name: str):
    # In a process of its own: the tests' checks of shapes would be compiled with the blocks.
    folders = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", TRAIN_BOTH, name, str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": folders}, check=True, capture_output=True, timeout=500)
    for log in (tmp_path / "plain").glob("*/log.jsonl"):
        fast = tmp_path / "fast" / log.parent.name
        assert losses(fast) == pytest.approx(losses(log.parent), rel=1e-4)
        said = [line for line in (fast / "run.log").read_text().splitlines() if "loop.compile" in line]
        assert all("blocks with dropout" in line for line in said)
