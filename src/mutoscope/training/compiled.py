"""`loop.compile`: the blocks of a network compiled by torch, while gradients are computed and at no other time.

Contact sheets, validation, averaged weights and checkpoints see the network as it always is: the names of its tensors
do not change, and what samples it compiles nothing for shapes that occur once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from mutoscope.errors import reason
from mutoscope.layers.draws import Draws, state_of

Forward = Callable[..., object]
PROBE = 8  # numbers of the tensor that tries the compiler out


class CompiledBlocks:
    """The repeated blocks of a network, each with a compiled forward pass that shares its parameters.

    Blocks of one class and one shape share their code too, so a network of many layers compiles one or two. If a block
    cannot be compiled, all of them go on without. A block that draws random numbers stays as it is, because compiled
    code draws others than those of the clips' generators.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None]) -> None:
        """`say` receives the line that names why nothing is compiled."""
        self._say = say
        self._forwards: dict[nn.Module, Forward] = {}
        if (failure := compiler_failure()) is not None:
            self._give_up(failure)
            return
        for block in repeated_blocks(model):
            self._forwards[block] = self._guarded(block.forward, torch.compile(block.forward, dynamic=False))
        self._draws: dict[Forward, bool] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the blocks run compiled."""
        changed = list(self._forwards.items())
        for block, forward in changed:
            block.forward = forward
        try:
            yield
        finally:
            for block, _ in changed:
                del block.forward  # the method of its class is found again

    def _guarded(self, plain: Forward, compiled: Forward) -> Forward:
        def forward(*args: object, **kwargs: object) -> object:
            draws = next((value for value in (*args, *kwargs.values()) if isinstance(value, Draws)), None)
            if self._forwards and draws is not None and plain not in self._draws:
                before, out = state_of(draws), plain(*args, **kwargs)
                self._draws[plain] = not torch.equal(before, state_of(draws))
                if sum(self._draws.values()) == 1 and self._draws[plain]:
                    self._say("loop.compile: blocks with dropout run as they are, with the numbers of their clips.")
                return out
            if self._forwards and not self._draws.get(plain, False):
                try:
                    return compiled(*args, **kwargs)
                except compiler_errors() as error:
                    self._give_up(error)
            return plain(*args, **kwargs)

        return forward

    def _give_up(self, error: Exception) -> None:
        self._forwards = {}
        self._say(f"loop.compile: nothing is compiled, training goes on without ({reason(error)}).")


def active(blocks: CompiledBlocks | None, wanted: bool = True) -> AbstractContextManager[None]:
    """Runs `blocks` compiled, if there are any and it is wanted."""
    return nullcontext() if blocks is None or not wanted else blocks.active()


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with parts of their own in lists and sequences: transformer blocks and ResNet blocks."""
    found: list[nn.Module] = []
    for child in model.children():
        is_list = isinstance(child, nn.ModuleList | nn.Sequential)
        blocks = [part for part in child if any(True for _ in part.children())] if is_list else []
        found += blocks or repeated_blocks(child)
    if isinstance(model, nn.Sequential):  # an encoder may be a sequence itself
        found = [part for part in model if any(True for _ in part.children())] or found
    return found


def compiler_failure() -> Exception | None:
    """The error of compiling a small function and its gradient here; None if it works."""
    try:
        x = torch.ones(PROBE, requires_grad=True)
        torch.compile(lambda y: (y.sin() + 1).sum())(x).backward()
    except Exception as error:  # a missing C++ compiler, a read-only cache, a platform without support: each its own
        return error
    return None


def compiler_errors() -> tuple[type[Exception], ...]:
    """What torch's compiler raises; loaded with it, which takes seconds."""
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)
