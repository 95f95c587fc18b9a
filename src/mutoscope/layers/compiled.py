"""Steps compiled by PyTorch's inductor: fused kernels in place of many small operations, on CPU and GPU.

A step is traced once for the shapes of its arguments; no guard is checked and nothing is compiled again while it is
replayed. Weights and caches that it reads become inputs of the compiled code, which therefore depends on shapes
alone: it is kept on disk, in the folder of inductor's own cache, and another process loads it in place of compiling.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mutoscope.errors import UserError
from mutoscope.layers.cuda_graph import CUDAGraphCall
from mutoscope.layers.recorded import RecordedStep, Step
from mutoscope.writing import new_folder, write_whole

FOLDER = "mutoscope-steps"  # in inductor's cache
FALLBACK = (
    "Steps are not compiled, which is slower and changes no result: {reason}. Install a C++ compiler, or omit compile."
)

OnCompiled = Callable[[float], object]
"""Receives the seconds that one step took to compile or to load."""


@dataclass
class Compiler:
    """Compiles steps; see `layers.recorded.Record`. Compiling one takes seconds to minutes, loading it a second.

    Where it fails once, one warning says so, and from then on steps are called as they are.
    """

    on_compiled: OnCompiled = lambda seconds: None
    works: bool = True
    """False once compiling has failed."""

    holds_memory = False

    @torch.no_grad()
    def __call__(self, function: Step, *examples: Tensor, memory: Sequence[Tensor]) -> RecordedStep | None:
        if not self.works:
            return None
        began = time.perf_counter()
        try:
            function(*examples)  # what is prepared at a first call, such as packed weights, must precede tracing
            compiled = CompiledStep(function, *examples, memory=memory)
        except Exception as error:  # inductor, its code generators and the C++ compiler raise errors of many kinds
            self.works = False
            warnings.warn(FALLBACK.format(reason=_first_line(error)), stacklevel=2)
            return None
        self.on_compiled(time.perf_counter() - began)
        return compiled


class CompiledStep:
    """A step as compiled code, loaded from disk if an equal one was compiled before. Any memory fits."""

    def __init__(self, function: Step, *examples: Tensor, memory: Sequence[Tensor]) -> None:
        graph, captured = traced(function, *examples)
        self._code = _loaded(graph, [*examples, *captured])
        places = {id(tensor): place for place, tensor in enumerate(memory)}
        self._memory = [(i, places[id(tensor)]) for i, tensor in enumerate(captured) if id(tensor) in places]
        self._captured = [tensor.detach() for tensor in captured]

    @torch.no_grad()
    def __call__(self, *arguments: Tensor, memory: Sequence[Tensor]) -> Tensor:
        captured = self._captured.copy()
        for i, place in self._memory:
            captured[i] = memory[place]
        result = self._code(*arguments, *captured)
        return result if isinstance(result, Tensor) else result[0]


@dataclass
class CapturedCompiler:
    """Compiled steps, recorded as CUDA graphs: fused kernels, and no Python between them."""

    compiler: Compiler

    holds_memory = True

    def __call__(self, function: Step, *examples: Tensor, memory: Sequence[Tensor]) -> CUDAGraphCall:
        compiled = self.compiler(function, *examples, memory=memory)
        return CUDAGraphCall(function if compiled is None else partial(compiled, memory=memory), *examples)


def traced(function: Step, *examples: Tensor) -> tuple[fx.GraphModule, list[Tensor]]:
    """The operations of a step, and the tensors that it reads beside its arguments, as further inputs.

    Raises an error for a step that depends on the numbers in a tensor.
    """

    def step(*arguments: Tensor) -> Tensor:  # optional parameters of the function itself would count as missing
        return function(*arguments)

    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True  # as torch's own exporter does: complex rotations give way to real ones
    try:
        module = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    finally:
        torch.compiler._is_compiling_flag = before
    graph, captured, known = module.graph, list[Tensor](), dict[int, fx.Node]()
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, cast(str, node.target))
        if id(tensor) not in known:
            with graph.inserting_after(last):
                last = known[id(tensor)] = graph.placeholder(f"captured_{len(captured)}")
            last.meta = dict(node.meta)
            captured.append(tensor)
        node.replace_all_uses_with(known[id(tensor)])
        graph.erase_node(node)
    return fx.GraphModule({}, graph), captured


def _loaded(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    # Imported here: these modules take seconds and belong to compiling alone.
    import torch._inductor.config as inductor_config
    from torch._inductor import standalone_compile
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    file = Path(cache_dir()) / FOLDER / f"{_key(graph, inputs)}.bin"
    if file.is_file():
        try:
            return AOTCompiledArtifact.deserialize(file.read_bytes())
        except Exception:  # a damaged file, or one of another torch: it is written again
            file.unlink(missing_ok=True)
    with inductor_config.patch(compile_threads=1):  # a pool of processes takes longer to start than these steps
        artifact = standalone_compile(graph, [*inputs], dynamic_shapes="from_example_inputs", aot=True)
    with suppress(UserError):  # a full disk costs the next process its time, and nothing else
        write_whole(new_folder(file.parent) / file.name, cast(AOTCompiledArtifact, artifact).serialize())
    return artifact


def _key(graph: fx.GraphModule, inputs: list[Tensor]) -> str:
    """A name for everything that compiled code depends on."""
    device = inputs[0].device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    layout = [(str(x.dtype), str(x.device), tuple(x.shape), x.stride(), x.storage_offset()) for x in inputs]
    settings = torch.__version__, torch.version.git_version, machine, torch.get_num_threads()
    return hashlib.sha256(repr((graph.code, layout, settings)).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].strip().rstrip(".:")[:200]
