"""Steps that are recorded and played: on the CPU by a tape of operators, which knows nothing of the step."""

import contextlib
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdq_export.calibrate import Calibrated, calibrate, captured
from pdq_export.calibrate.captured import CapturedStep, CudaRecorder, check_capture
from pdq_export.calibrate.schedule import Schedule
from pdq_export.calibrate.step import Batch, Sizes, StepNumbers
from pdq_export.config.method import choose_options
from pdq_export.errors import OptionError
from pdq_export.frontend.ops import interpolate
from pdq_export.process import tune_process
from pdq_export.ranks import ALONE
from tests.calibrate.networks import calibrate_example, residual
from tests.calibrate.test_second_device import OPTIONS, same
from tests.calibrate.test_step import HOST_READS, RATE, example, schedule, step_of
from tests.calibrate.test_step import OPTIONS as STEPS
from tests.tape import Tape
from tests.thread_ranks import on_ranks

CPU = torch.device("cpu")
CAPTURED = dataclasses.replace(OPTIONS, iters=14, correction_iters=1, batch_size=8, capture_step=True)
LAUNCHED = dataclasses.replace(CAPTURED, capture_step=False)


@functools.cache
def launched() -> Calibrated:
    """Made once, but by a test: what plans and scales are depends on fixtures."""
    return calibrate_example(residual(images=16), LAUNCHED)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """The recorders of all blocks, on the CPU."""
    made: list[Tape] = []

    def make(device: torch.device, generator: torch.Generator) -> Tape:
        made.append(Tape(device, generator))
        return made[-1]

    monkeypatch.setitem(captured.RECORDERS, "cpu", make)
    return made


@pytest.mark.usefixtures("short_search")
def test_played_steps_give_the_bytes_of_launched_ones(tapes: list[Tape]) -> None:
    found = calibrate_example(residual(images=16), CAPTURED)
    # Of the four kinds, those of the warm-up, which are over before there would be a recording, are launched alone.
    assert [len(tape.recorded) for tape in tapes] == [2] * 3
    assert all(tape.launched + tape.played == CAPTURED.iters for tape in tapes)
    assert all(tape.played == 5 for tape in tapes)
    assert same(found, launched())


def test_what_is_played_is_what_would_be_launched() -> None:
    """Weights, scale, error and loss, to the bit, with other images in every step."""
    ours, theirs = example(), example()
    tape = Tape(CPU, ours.model.masks)
    step, other = CapturedStep(step_of(ours), tape, pytest.fail), step_of(theirs)
    generator = torch.Generator().manual_seed(3)
    for number in range(25):
        order, numbers = torch.randperm(8, generator=generator), schedule().numbers(number)
        rows = {name: [x[order] for x in values] for name, values in vars(ours.batch).items()}
        batch = dataclasses.replace(ours.batch, **rows)
        found = [x.clone() for x in step(batch, numbers)]
        assert all(map(torch.equal, found, other(batch, numbers)))
        assert torch.equal(ours.weight.alpha, theirs.weight.alpha)
        assert torch.equal(ours.quantizer.scale, theirs.quantizer.scale)
    assert torch.equal(ours.model.masks.get_state(), theirs.model.masks.get_state())
    assert (tape.launched, tape.played, len(tape.recorded)) == (11, 14, 2)


def test_steps_of_a_kind_differ_in_nothing_but_what_tensors_hold() -> None:
    """Operators, numbers of Python and addresses: as they are recorded at one step, so at any other."""
    one = example()
    step, tape = step_of(one), Tape(CPU, one.model.masks)
    kinds: dict[tuple[bool, bool], list[Any]] = {}
    for number in range(25):
        numbers = schedule().numbers(number)
        kind = numbers.prediction_weight is not None, numbers.rounding_weight is not None
        own, own_numbers = captured._copied(one.batch), captured._copied(numbers)
        _, play = tape.record(lambda: step.once(own, own_numbers))  # noqa: B023  (run at once)
        buffers = {x.untyped_storage().data_ptr() for x in (*captured._tensors(own), *captured._tensors(own_numbers))}
        state = tape.read[-1].keys() - buffers
        kinds.setdefault(kind, []).append(([operator.told() for operator in tape.recorded[-1]], state))
        play()  # on to the next step
    assert len(kinds) == 4
    for (first, addresses), *others in kinds.values():
        assert not [func for func, *_ in first if func in HOST_READS]
        for told, read in others:
            assert told == first
            assert read == addresses


class Resizing(nn.Module):
    """A rest of the network that reads a table, which others keep."""

    def forward(self, x: Tensor, beside: Tensor) -> tuple[Tensor]:
        axis = interpolate.Axis(size=3, out=6, scale=2.0)
        return (interpolate.interpolate_axis(x + beside, 1, axis, interpolate.Method(mode="linear"))[:, 1:4],)


def test_tables_of_interpolation_are_part_of_a_recording() -> None:
    """One that is kept may be given up before it is played, and one that is made there is not for others."""
    ours, theirs = ((one, dataclasses.replace(one.model, rest=Resizing())) for one in (example(), example()))
    steps = [step_of(dataclasses.replace(one, model=model)) for one, model in (ours, theirs)]

    class Forgetful(Tape):
        def record(self, run: Callable[[], Any]) -> Any:
            interpolate.forget_tables()
            result = super().record(run)
            assert not interpolate._table.cache_info().currsize
            return result

    step = CapturedStep(steps[0], Forgetful(CPU, ours[0].model.masks), pytest.fail)
    for number in range(13):
        found = step(ours[0].batch, schedule().numbers(number))
        assert all(map(torch.equal, found, steps[1](theirs[0].batch, schedule().numbers(number))))


def test_what_the_tape_finds() -> None:
    """A number of Python that changes, and memory that is carried from one step to the next."""
    x, count = torch.zeros(2), iter(range(9))
    kept: list[Tensor] = [torch.zeros(2)]

    def adds_number() -> Tensor:
        return x.add_(next(count))

    def keeps() -> Tensor:
        kept[0] = kept[0] + 1
        return x.copy_(kept[0])

    tape = Tape(CPU, torch.Generator())
    _, play = tape.record(adds_number)
    assert x.tolist() == [0.0, 0.0]  # recording does nothing
    tape.record(adds_number)
    assert [operator.told() for operator in tape.recorded[0]] != [operator.told() for operator in tape.recorded[1]]
    _, play = tape.record(keeps)
    play()
    play()
    assert x.tolist() == [1.0, 1.0]  # launched twice it were 2


@pytest.mark.usefixtures("short_search")
def test_a_step_that_cannot_be_recorded_is_launched(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning a run, and the same bytes."""

    def record(self: Tape, run: Callable[[], Any]) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when\nstream is capturing")

    monkeypatch.setattr(Tape, "record", record)
    found = calibrate_example(residual(images=16), CAPTURED)
    (told,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "capture_step" in r.getMessage())
    assert "(RuntimeError: CUDA error: operation not permitted when stream is capturing); operators" in told
    assert len(tapes) == 1  # the blocks after it do not try
    assert same(found, launched())


def test_a_step_that_was_cut_is_launched() -> None:
    one, told = example(), list[str]()
    step, tape = step_of(one), Tape(CPU, one.model.masks)
    step._images = 8
    assert step.cut_rest()
    taken = CapturedStep(step, tape, told.append)
    for number in range(25):
        taken(one.batch, schedule().numbers(number))
    assert told == ["the GPU's memory does not hold one at once"]
    assert not tape.recorded


def test_recordings_are_the_first_to_go_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a kind that is not recorded yet are launched beside them; what they give is the same."""
    one, other, told, failed = example(), example(), list[str](), list[int]()
    step, plain, tape = step_of(one), step_of(other), Tape(CPU, one.model.masks)
    step._seeks_relief = True  # as on a GPU
    taken = CapturedStep(step, tape, told.append)
    launch = step._computed

    def runs_out(batch: Batch, numbers: StepNumbers, sizes: Sizes) -> Any:
        if taken._recorded and numbers.prediction_weight is not None:
            failed.append(number)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return launch(batch, numbers, sizes)

    monkeypatch.setattr(step, "_computed", runs_out)
    # The others are recorded after three steps, when the second with predictions is still to come.
    every_third = dataclasses.replace(STEPS, prediction_interval=3)
    planned = Schedule.of(every_third, [RATE], predicts=True, device=CPU)
    for number in range(STEPS.iters):
        numbers = planned.numbers(number)
        found = [x.clone() for x in taken(one.batch, numbers)]
        assert all(map(torch.equal, found, plain(other.batch, numbers)))
    assert failed == [12]
    assert told == ["the GPU's memory does not hold recordings beside a step that is launched"]
    assert not taken._recorded
    assert not step.is_cut
    assert torch.equal(one.weight.alpha, other.weight.alpha)


def test_recordings_go_with_their_block() -> None:
    """At once, not when garbage is collected: the next block needs their memory."""
    one = example()
    step = step_of(one)
    taken = weakref.ref(CapturedStep(step, Tape(CPU, one.model.masks), pytest.fail))
    assert taken() is None


def test_a_cpu_and_ranks_capture_nothing() -> None:
    with pytest.raises(OptionError, match=r"runs on cpu.*--set capture_step=false\), or give --device cuda"):
        check_capture(CPU, ALONE)
    with pytest.raises(OptionError, match=r"2 ranks exchange gradients.*without torchrun"):
        on_ranks(2, lambda ranks: check_capture(torch.device("cuda"), ranks))
    check_capture(torch.device("cuda"), ALONE)


def test_it_needs_steps() -> None:
    with pytest.raises(OptionError, match="capture_step is given, but it has no effect"):
        choose_options(method="nearest", overrides={"capture_step": "true"})
    assert choose_options(overrides={"capture_step": "true"}).capture_step


class Cuda:
    """What the recorder asks torch.cuda for, in order; ``fails``: of a capture."""

    def __init__(self, fails: bool = False) -> None:
        self.asked: list[str] = []
        self.fails, self.stream = fails, "main"

    def Stream(self, device: torch.device) -> "Cuda.Side":  # noqa: N802  (torch's name)
        return Cuda.Side(self)

    class Side:
        def __init__(self, cuda: "Cuda") -> None:
            self.cuda = cuda

        def wait_stream(self, other: Any) -> None:
            self.cuda.asked.append("side waits")

    def current_stream(self, device: torch.device) -> Any:
        waits = type("Main", (), {"wait_stream": lambda _, other: self.asked.append(f"{self.stream} waits")})
        return waits()

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, "side" if isinstance(stream, Cuda.Side) else "main"
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: Any) -> Iterator[None]:
        assert (pool, type(stream)) == ("pool", Cuda.Side)
        self.stream = "side"
        try:
            yield
        finally:
            self.asked.append("end of capture")
            if self.fails:  # as torch does, which leaves its stream the current one then
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.stream = "main"

    def CUDAGraph(self) -> Any:  # noqa: N802
        def register(_: Any, generator: torch.Generator) -> None:
            self.asked.append("generator")

        def replay(_: Any) -> None:
            self.asked.append("replay")

        return type("Graph", (), {"register_generator_state": register, "replay": replay})()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    for name in ("Stream", "current_stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "stream", fake.on)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    return fake


def test_graphs_know_the_generator_and_have_a_stream_of_their_own(cuda: Cuda) -> None:
    recorder = CudaRecorder(CPU, torch.Generator())
    assert recorder.launch(lambda: cuda.asked.append(cuda.stream) or 1) == 1  # type: ignore[func-returns-value]
    assert cuda.asked == ["side waits", "side", "main waits"]
    cuda.asked.clear()
    result, replay = recorder.record(lambda: cuda.asked.append(cuda.stream) or 2)  # type: ignore[func-returns-value]
    replay()
    assert result == 2
    assert cuda.asked == ["generator", "side", "end of capture", "replay"]


def test_a_capture_that_fails_leaves_stream_and_generator_as_they_were(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.fails = True
    generator, renewed = torch.Generator().manual_seed(5), list[Tensor]()
    monkeypatch.setattr(CudaRecorder, "_renew_generator", lambda self, state: renewed.append(state))
    drawn = generator.get_state()
    with pytest.raises(RuntimeError, match="previous error"):
        CudaRecorder(CPU, generator).record(lambda: torch.rand(3, generator=generator))
    assert cuda.stream == "main"
    assert torch.equal(renewed[0], drawn)


def test_torch_has_what_the_recorder_asks_for() -> None:
    """By name: nothing of it runs without a GPU."""
    assert {"pool", "stream"} <= inspect.signature(torch.cuda.graph).parameters.keys()
    assert callable(torch.cuda.graph_pool_handle)
    for name in ("graphsafe_get_state", "graphsafe_set_state", "set_state"):
        assert callable(getattr(torch.Generator, name))


@pytest.mark.gpu
@pytest.mark.usefixtures("short_search")
def test_graphs_of_a_gpu_give_the_bytes_of_launched_steps(caplog: pytest.LogCaptureFixture) -> None:
    """What the option waits for, with kernels that give the same bits each time."""
    tune_process(deterministic=True)
    found = []
    for options in (CAPTURED, LAUNCHED):
        one = residual(images=16)
        there = {"device": torch.device("cuda"), "deterministic": True}
        found.append(calibrate(one.network, one.plan, one.prepared.statistics, [one.images], options, **there))
    assert not [record for record in caplog.records if "capture_step" in record.getMessage()]
    assert same(*found)
