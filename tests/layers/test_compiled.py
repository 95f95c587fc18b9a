"""Compiled steps: what they compute, what they write to, where they are kept, and what happens without a compiler."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mutoscope.layers import compiled
from mutoscope.layers.compiled import CapturedCompiler, CompiledStep, Compiler, traced
from mutoscope.layers.kv_cache import StaticKVCache
from mutoscope.layers.packed import pack_linears
from mutoscope.layers.recorded import Step, Steps

SHAPE = 2, 1, 2, 5, 4  # layers, batch, heads, positions, size of a head


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of inductor."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return tmp_path / "inductor"


def cache(value: float = 0.0) -> StaticKVCache:
    found = StaticKVCache.reserve(SHAPE, torch.device("cpu"))
    found.keys.fill_(value)
    found.aim(1)
    return found


def step_of(linear: torch.nn.Module, memory: StaticKVCache) -> Step:
    """Appends to every layer, and sums up what is there."""

    def step(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for layer in range(SHAPE[0]):
            k = linear(x + layer).view(1, 2, 1, 4)
            keys, values = memory.append(layer, k, 2 * k)
            total = total + (keys + values).sum(2).flatten(1)
        return total

    return step


def tensors(memory: StaticKVCache) -> list[Tensor]:
    return [*memory.indices(1), *(tensor for layer in memory.layers for tensor in layer)]


@torch.no_grad()
def test_a_compiled_step_equals_its_function_and_writes_to_the_memory_of_each_call(own_folder: Path):
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8)
    x, first, other, plain = torch.randn(1, 8), cache(), cache(3.0), cache(3.0)
    step = CompiledStep(step_of(linear, first), x, memory=tensors(first))
    other.length = plain.length = 2
    for memory in (other, plain):
        memory.aim(1)
    before = first.keys.clone()
    torch.testing.assert_close(step(x, memory=tensors(other)), step_of(linear, plain)(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.keys, plain.keys, atol=1e-6, rtol=1e-6)
    assert torch.equal(first.keys, before)  # the memory that it was compiled with is not touched any more
    linear.weight.mul_(2)  # weights may change in place
    torch.testing.assert_close(step(x, memory=tensors(other)), step_of(linear, plain)(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_equal_step_is_loaded_from_disk(own_folder: Path, monkeypatch: pytest.MonkeyPatch):
    linear, x = torch.nn.Linear(8, 8), torch.randn(1, 8)
    CompiledStep(lambda x: linear(x).sin(), x, memory=())
    [file] = (own_folder / compiled.FOLDER).iterdir()

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(torch._inductor, "standalone_compile", refuse)
    other = torch.nn.Linear(8, 8)  # other weights, the same code
    torch.testing.assert_close(CompiledStep(lambda x: other(x).sin(), x, memory=())(x, memory=()), other(x).sin())
    with pytest.raises(AssertionError, match="compiled again"):
        CompiledStep(lambda x: other(x).cos(), x, memory=())
    monkeypatch.undo()
    file.write_bytes(b"damaged")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(own_folder))
    torch.testing.assert_close(CompiledStep(lambda x: other(x).sin(), x, memory=())(x, memory=()), other(x).sin())
    assert file.read_bytes() != b"damaged"


def test_without_a_compiler_steps_run_as_they_are_after_one_warning(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nonexistent",))
    steps, x = Steps(Compiler()), torch.randn(3)
    for key in range(3):
        assert torch.equal(steps.replay(key, torch.sin, x), x.sin())
    assert torch.equal(steps.replay(0, torch.cos, x), x.cos())  # the step of the call, not of the first one
    sentences = [str(w.message) for w in recwarn if "compile" in str(w.message)]
    assert len(sentences) == 1 and sentences[0].startswith("Steps are not compiled") and "\n" not in sentences[0]


@torch.no_grad()
def test_tracing_keeps_the_memory_of_every_layer_apart():
    memory, linear, x = cache(), torch.nn.Linear(8, 8), torch.randn(1, 8)
    graph, captured = traced(step_of(linear, memory), x)
    assert {id(t) for t in tensors(memory)} <= {id(t) for t in captured}
    assert not [node for node in graph.graph.nodes if node.op == "get_attr" or "select" in node.name]


@torch.no_grad()
def test_packed_weights_are_no_part_of_a_step():
    network = torch.nn.Sequential(torch.nn.Linear(64, 64))
    pack_linears(network)
    x = torch.randn(8, 64)
    expected = network(x)
    graph, captured = traced(network, x)
    assert not [node for node in graph.graph.nodes if "reorder" in node.name or "mkl" in node.name]
    torch.testing.assert_close(graph(x, *captured), expected)


def test_numbers_in_tensors_decide_nothing():
    with pytest.raises(Exception, match="data-dependent|DataDependent|GuardOn"):
        traced(lambda x: x if bool(x.sum() > 0) else -x, torch.randn(3))


def test_steps_are_recorded_once_for_all_memory_or_once_for_each():
    class Counts:
        def __init__(self, holds_memory: bool) -> None:
            self.holds_memory, self.count = holds_memory, 0

        def __call__(self, function: Step, *examples: Tensor, memory: object) -> None:
            self.count += 1

    for holds_memory, expected in ((False, 1), (True, 2)):
        steps = Steps(record := Counts(holds_memory))
        memories = [torch.zeros(2), torch.zeros(2)]
        for memory in (*memories, *memories):
            steps.replay("key", lambda x, memory=memory: x + memory, torch.zeros(2), memory=[memory])
        assert record.count == expected
    assert CapturedCompiler(Compiler()).holds_memory and not Compiler().holds_memory
