"""A recorder of steps for machines without a GPU: a tape of the operators that a step asks for, played without it.

As a CUDA graph has it, the tape holds operators, the addresses of their tensors and all other arguments as they were;
recording changes nothing; and what lies in the tape's own memory is lost between two plays.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Operator:
    """One call: ``made`` are tensors in memory of their own, which the call fills."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: tuple[tuple[int, Tensor], ...]

    def play(self) -> None:
        found = [x for x in tree_leaves(self.func(*self.args, **self.kwargs)) if isinstance(x, Tensor)]
        for position, kept in self.made:
            kept.copy_(found[position])

    def told(self) -> tuple[Any, ...]:
        """What is the same whichever tensors it is called with: its name, other arguments, shapes and types."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        kinds = [(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
        return self.func, str(spec), [x for x in kinds if not isinstance(x, torch.Generator)]


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.own: set[int] = set()  # addresses of memory that was taken in the recording
        self.read: dict[int, Tensor] = {}  # by address: what was there before
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what was written to, and what it held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in given:
            if _address(x) not in self.own:
                self.read.setdefault(_address(x), x)
        for x in _written(func, args, kwargs):
            if _address(x) not in self.own and _address(x) not in self.before:
                self.before[_address(x)] = x, x.detach().clone()
        result = func(*args, **kwargs)
        inputs = {_address(x) for x in given}
        found = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        made = tuple((n, x) for n, x in enumerate(found) if _address(x) not in inputs)
        self.own |= {_address(x) for _, x in made}
        self.operators.append(Operator(func, args, kwargs, made))
        return result


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The arguments that an operator writes to."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (x for x in tree_leaves(value) if isinstance(x, Tensor))


class Tape:
    """A `Recorder`; ``recorded``: the operators of each recording, ``launched``: how often something was launched."""

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        self._generator = generator
        self.recorded: list[list[Operator]] = []
        self.read: list[dict[int, Tensor]] = []
        self.launched = self.played = 0

    def launch(self, run: Callable[[], Result]) -> Result:
        self.launched += 1
        return run()

    def record(self, run: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        drawn, recording = self._generator.get_state(), _Recording()
        with recording:
            result = run()
        with torch.no_grad():
            for x, before in recording.before.values():
                x.copy_(before)
        self._generator.set_state(drawn)
        self.recorded.append(recording.operators)
        self.read.append(recording.read)

        @torch.no_grad()
        def play() -> None:
            self.played += 1
            for operator in recording.operators:
                for _, x in operator.made:
                    if x.is_floating_point():
                        x.fill_(torch.nan)
            for operator in recording.operators:
                operator.play()

        return result, play
