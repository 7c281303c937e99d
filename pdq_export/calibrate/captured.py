"""Steps that a device plays from a recording: one launch in place of hundreds.

What is recorded is a `Step`: kernels and the addresses that they read and write, nothing of Python. So whatever changes
from step to step lies in tensors that stay where they are: weights, scales and Adam's state do anyhow; batches and
numbers are copied into buffers before each step; and the generator of masks goes on, since the recording knows it.
"""

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pdq_export.calibrate.step import Batch, Step, StepNumbers
from pdq_export.errors import OptionError
from pdq_export.frontend.ops.interpolate import without_kept_tables
from pdq_export.ranks import Ranks

Result = TypeVar("Result")
Warn = Callable[[str], None]

# Steps of each kind that are launched operator by operator first: libraries take their workspaces in them, and what is
# made once, at first use, is made outside of a recording.
_LAUNCHED_FIRST = 3
_CAUSE = 160  # characters of it


class Recorder(Protocol):
    """Records what a device is asked to do, without doing it."""

    def launch(self, run: Callable[[], Result]) -> Result:
        """What ``run`` gives, done where it would be recorded."""

    def record(self, run: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """What ``run`` will give, in tensors that each call of the function beside it fills."""


class CudaRecorder:
    """Records CUDA graphs of one memory pool, of which only one runs at a time, on a stream of their own.

    ``generator``: draws in them.
    """

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        self._device, self._generator = device, generator
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def launch(self, run: Callable[[], Result]) -> Result:
        """What ``run`` gives, on the stream of the graphs, whose workspaces of cuBLAS and cuDNN it makes."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        return result

    def record(self, run: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """What ``run`` will give, and what replays the graph on the current stream.

        Raises RuntimeError where something in ``run`` cannot be part of a graph; nothing has changed then.
        """
        graph: Any = torch.cuda.CUDAGraph()
        before = self._generator.get_state()
        graph.register_generator_state(self._generator)
        current = torch.cuda.current_stream(self._device)
        try:
            # Within the stream that is the current one anyhow: a recording that fails leaves its own in its place.
            with torch.cuda.stream(current), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = run()
        except BaseException:
            self._renew_generator(before)
            raise
        return result, graph.replay

    def _renew_generator(self, state: Tensor) -> None:
        """A generator takes itself for one of a recording for ever, where that has failed."""
        fresh: Any = torch.Generator(self._device)
        fresh.set_state(state)
        generator: Any = self._generator
        generator.graphsafe_set_state(fresh.graphsafe_get_state())


# By type of device.
RECORDERS: dict[str, Callable[[torch.device, torch.Generator], Recorder]] = {"cuda": CudaRecorder}


def check_capture(device: torch.device, ranks: Ranks) -> None:
    """Raise OptionError where steps cannot be captured."""
    if device.type not in RECORDERS:
        raise OptionError(
            f"capture_step: calibration runs on {device.type}, where there is nothing to capture; expected a GPU; "
            "leave it out (--set capture_step=false), or give --device cuda"
        )
    if not ranks.is_alone:
        raise OptionError(
            f"capture_step: {ranks.size} ranks exchange gradients in every step, which is not captured; expected one "
            "process; leave it out (--set capture_step=false), or start without torchrun"
        )


class Capture:
    """Has the steps of a run's blocks captured, until one cannot be: that is told, and all others are launched.

    ``device``: of the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.works = True

    def of(self, step: Step, masks: torch.Generator, warn: Warn) -> "Step | CapturedStep":
        """The same step, captured where that works; ``masks``: what it draws from."""

        def failed(reason: str) -> None:
            self.works = False
            warn(f"capture_step: a step cannot be captured ({reason}); operators are launched one by one from here on")

        return CapturedStep(step, RECORDERS[self._device.type](self._device, masks), failed) if self.works else step


class CapturedStep:
    """A `Step` that is recorded after a few of its kind, with the same results to the bit.

    Kinds are steps with and without the prediction difference, and with and without the rounding term. ``failed``: told
    why a step cannot be recorded; it and those after it are launched.
    """

    def __init__(self, step: Step, recorder: Recorder, failed: Warn) -> None:
        self._step, self._recorder, self._failed = step, recorder, failed
        self._launched: dict[tuple[bool, ...], int] = {}
        self._recorded: dict[tuple[bool, ...], _Recording] = {}
        self._gave_up = False
        drop = weakref.WeakMethod(self._drop)  # or recordings would hold their memory beyond the block
        step.try_first(lambda: bool((known := drop()) and known()))

    def __call__(self, batch: Batch, numbers: StepNumbers) -> tuple[Tensor, Tensor]:
        """The reconstruction error and the whole loss, [] each, before the step; to be read before the next one."""
        kind = tuple(value is not None for value in (numbers.prediction_weight, numbers.rounding_weight))
        known = self._recorded.get(kind)
        if known is None and not self._gave_up and self._launched.get(kind, 0) >= _LAUNCHED_FIRST:
            known = self._record(kind, batch, numbers)
        if known is not None:
            return known.play(batch, numbers)
        self._launched[kind] = self._launched.get(kind, 0) + 1
        if self._gave_up:
            return self._step(batch, numbers)
        return self._recorder.launch(lambda: self._step(batch, numbers))

    def _record(self, kind: tuple[bool, ...], batch: Batch, numbers: StepNumbers) -> "_Recording | None":
        if self._step.is_cut:
            self._give_up("the GPU's memory does not hold one at once")
            return None
        try:
            own, own_numbers = _copied(batch), _copied(numbers)
            with without_kept_tables():
                results, play = self._recorder.record(lambda: self._step.once(own, own_numbers))
        except RuntimeError as error:  # torch's, running out of memory among them
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:_CAUSE]}")
            return None
        self._recorded[kind] = _Recording(own, own_numbers, results, play)
        return self._recorded[kind]

    def _drop(self) -> bool:
        """Free what recordings hold; whether there were any."""
        if self._recorded:
            self._give_up("the GPU's memory does not hold recordings beside a step that is launched")
            return True
        return False

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self._recorded.clear()  # with the memory that recordings hold
        self._failed(reason)


@dataclasses.dataclass(frozen=True)
class _Recording:
    """``batch``, ``numbers`` and ``results``: the tensors that ``replay`` reads and fills."""

    batch: Batch
    numbers: StepNumbers
    results: tuple[Tensor, Tensor]
    replay: Callable[[], None]

    def play(self, batch: Batch, numbers: StepNumbers) -> tuple[Tensor, Tensor]:
        own, given = ([*_tensors(x), *_tensors(y)] for x, y in ((self.batch, self.numbers), (batch, numbers)))
        torch._foreach_copy_(own, given)
        self.replay()
        return self.results


def _copied(fields: Any) -> Any:
    """The same, its tensors copied to where nobody else writes."""
    return dataclasses.replace(
        fields,
        **{
            name: value.clone() if isinstance(value, Tensor) else value and [x.clone() for x in value]
            for name, value in _fields(fields).items()
        },
    )


def _tensors(fields: Any) -> list[Tensor]:
    """All tensors of a batch or of its numbers, in their order."""
    found: list[Tensor] = []
    for value in _fields(fields).values():
        found.extend([value] if isinstance(value, Tensor) else value or ())
    return found


def _fields(fields: Any) -> Mapping[str, Tensor | Sequence[Tensor] | None]:
    return {field.name: getattr(fields, field.name) for field in dataclasses.fields(fields)}
