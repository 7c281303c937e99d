"""Interrupted and resumed, a calibration ends with the same bits; a block can be repeated alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pdq_export.calibrate import BlockRecord, BlockState, Calibrated, calibrate
from pdq_export.config.method import CalibrationOptions
from pdq_export.errors import CalibrationError
from pdq_export.frontend import import_model
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import Block, Plan, Role

from .networks import CLASSES, WIDTH, Example, residual
from .test_engine import CPU, TINY, same
from .test_memory import stores  # noqa: F401

# Two graph inputs, weights that two blocks share, carriers within a gate, biases that rounding can shift, and no
# BatchNormalization.
MIXED = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image, float[N,3,8,8] depth) => (float[N,K] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
    a1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (depth, w1, b2)
    a2 = Relu(c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (a1, w3, b3)
    s = Add(c3, a2)
    a3 = Relu(s)
    g = GlobalAveragePool(a3)
    h = Conv(g, w4, b4)
    t = Sigmoid(h)
    r = Mul(a3, t)
    c5 = Conv <pads = [1, 1, 1, 1]> (r, w3, b5)
    a5 = Relu(c5)
    p = GlobalAveragePool(a5)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w6, b6)
}"""
SHORT = dataclasses.replace(TINY, iters=6, correction_iters=2, compensate_rounding=True, prediction_interval=2)


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the test run."""


class Shelf:
    """A checkpoint in memory, which interrupts after so many new blocks."""

    def __init__(self, states: Mapping[int, BlockState] | None = None, interrupt_after: int | None = None) -> None:
        self.states = dict(states or {})
        self.records: dict[int, BlockRecord] = {}
        self.interrupt_after = interrupt_after

    def load(self, position: int, block: Block) -> BlockState | None:
        return self.states.get(position)

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        assert position not in self.states, block.name
        self.states[position], self.records[position] = state, record
        if self.interrupt_after is not None and len(self.records) >= self.interrupt_after:
            raise Interrupted


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its inputs, calibrated from where a checkpoint is."""

    example: Example
    inputs: list[torch.Tensor]
    statistics: Mapping[str, Any]

    def run(
        self, shelf: Shelf | None, options: CalibrationOptions = SHORT, max_memory: int | None = None
    ) -> Calibrated:
        example = self.example
        arguments = (example.network, example.plan, self.statistics, self.inputs, options)
        return calibrate(*arguments, device=CPU, max_memory=max_memory, checkpoint=shelf)

    def bits(self, result: Calibrated) -> tuple[dict[str, bytes], list[bytes]]:
        with torch.no_grad():
            outputs = [y.numpy().tobytes() for y in result.simulation(*self.inputs)]
        return {name: bias.tobytes() for name, bias in sorted(result.biases.items())}, outputs


def mixed(*, per_layer: bool) -> Case:
    model = onnx.parser.parse_model(MIXED)
    generator = np.random.default_rng(0)
    shapes = {"w1": (WIDTH, 3, 3, 3), "w3": (WIDTH, WIDTH, 3, 3), "w4": (WIDTH, WIDTH, 1, 1), "w6": (CLASSES, WIDTH)}
    shapes |= {f"b{k}": (CLASSES if k == 6 else WIDTH,) for k in range(1, 7)}
    for name, shape in shapes.items():
        value = generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    prepared = prepare(model)
    plan = make_plan(prepared.model, PlanOptions.of("2/4", per_layer=per_layer))
    image, depth = (torch.from_numpy(generator.normal(size=(40, 3, 8, 8)).astype(np.float32)) for _ in range(2))
    return Case(Example(prepared, plan, import_model(prepared.model), image), [image, depth], prepared.statistics)


def of_residual(statistics: Callable[[Example], Mapping[str, Any]]) -> Case:
    example = residual("2/2", images=40)
    return Case(example, [example.images], statistics(example))


CASES: dict[str, Callable[[], Case]] = {
    "several inputs, gate, shared weights": lambda: mixed(per_layer=False),
    "block of two inputs": lambda: mixed(per_layer=True),
    "residual": lambda: of_residual(lambda example: example.prepared.statistics),
    "residual, estimated statistics": lambda: of_residual(lambda _: {}),
}


def same_state(first: BlockState, second: BlockState) -> bool:
    assert first.biases.keys() == second.biases.keys()
    assert first.statistics.keys() == second.statistics.keys()
    pairs = [(first.biases[name], second.biases[name]) for name in first.biases]
    for name, one in first.statistics.items():
        pairs += [(getattr(one, field), getattr(second.statistics[name], field)) for field in ("mean", "std", "gain")]
    return same(first.tensors, second.tensors) and all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module", params=CASES)
def uninterrupted(request: pytest.FixtureRequest) -> tuple[Case, Calibrated, Shelf]:
    case, shelf = CASES[request.param](), Shelf()
    return case, case.run(shelf), shelf


@pytest.mark.usefixtures("stores", "small_tensors_count")
@pytest.mark.parametrize("max_memory", [None, 1, 400_000])
def test_interrupted_after_every_block(uninterrupted: tuple[Case, Calibrated, Shelf], max_memory: int | None) -> None:
    case, whole, shelf = uninterrupted
    kept: dict[int, BlockState] = {}
    for _ in case.example.plan.blocks:
        interrupted = Shelf(kept, interrupt_after=1)
        with pytest.raises(Interrupted):
            case.run(interrupted, max_memory=max_memory)
        kept = interrupted.states
    assert kept.keys() == shelf.states.keys()
    assert all(same_state(kept[position], shelf.states[position]) for position in kept)
    last = Shelf(kept)
    resumed = case.run(last, max_memory=max_memory)
    assert not last.records
    assert same(whole.tensors, resumed.tensors)
    assert case.bits(whole) == case.bits(resumed)
    assert list(whole.tensors) == list(resumed.tensors)


def test_a_checkpoint_changes_nothing(uninterrupted: tuple[Case, Calibrated, Shelf]) -> None:
    case, whole, _ = uninterrupted
    without = case.run(None)
    assert same(whole.tensors, without.tensors)
    assert case.bits(whole) == case.bits(without)


def test_a_block_can_be_repeated_alone(uninterrupted: tuple[Case, Calibrated, Shelf]) -> None:
    case, whole, shelf = uninterrupted
    for position, state in shelf.states.items():
        others = Shelf({other: kept for other, kept in shelf.states.items() if other != position})
        result = case.run(others)
        assert list(others.records) == [position]
        assert same_state(others.states[position], state)
        assert same(whole.tensors, result.tensors)
        np.testing.assert_array_equal(others.records[position].losses, shelf.records[position].losses)


def test_what_a_block_leaves(uninterrupted: tuple[Case, Calibrated, Shelf]) -> None:
    """Every point but those of graph inputs is in one state; states hold arrays and nothing of torch."""
    case, whole, shelf = uninterrupted
    plan = case.example.plan
    names = [name for position in range(len(plan.blocks)) for name in shelf.states[position].tensors]
    inputs = {name for name in plan.points if not any(name in block.outputs for block in plan.blocks)}
    assert len(names) == len(set(names))
    assert set(plan.points) - set(names) <= inputs & {"image", "depth"}
    states = shelf.states.values()
    assert {name: bias.tobytes() for state in states for name, bias in state.biases.items()} == {
        name: bias.tobytes() for name, bias in whole.biases.items()
    }
    for state in states:
        assert all(bias.dtype == np.float32 for bias in state.biases.values())
        for tensor in state.tensors.values():
            integers = tensor.integers is not None
            assert integers == (tensor.point.role is Role.WEIGHT)
            assert all(isinstance(x, np.ndarray) for x in (tensor.scale, tensor.zero_point))


def test_the_cases_have_what_they_are_for() -> None:
    """Else the tests above would say nothing about it."""

    def plan_of(name: str) -> Plan:
        return CASES[name]().example.plan

    assert all(len(plan_of(name).blocks) >= 3 for name in CASES)
    assert any(len(block.inputs) == 2 for block in plan_of("block of two inputs").blocks[1:])
    blocks = plan_of("several inputs, gate, shared weights").blocks
    assert {layer.weight for layer in blocks[0].layers} & {layer.weight for layer in blocks[1].layers}
    shelf = Shelf()
    mixed(per_layer=False).run(shelf)
    assert any(state.biases for state in shelf.states.values())
    assert any(state.statistics for state in shelf.states.values())
    inside = [tensor.point for state in shelf.states.values() for tensor in state.tensors.values()]
    assert any(point.role is Role.CARRIER for point in inside)


def test_the_record_of_a_block() -> None:
    case, shelf = of_residual(lambda _: {}), Shelf()
    case.run(shelf)
    for record in shelf.records.values():
        assert record.losses.shape == (SHORT.iters,)
        assert record.losses.dtype == np.float32
        assert list(record.seconds) == ["scales", "correction", "teacher", "steps", "rounding", "carriers"]
        assert all(seconds >= 0.0 for seconds in record.seconds.values())
        assert record.seconds["steps"] > 0.0
    nearest = Shelf()
    case.run(nearest, dataclasses.replace(SHORT, iters=0))
    for record in nearest.records.values():
        assert record.losses.shape == (0,)
        assert list(record.seconds) == ["scales", "rounding", "carriers"]


def broken(state: BlockState, what: str) -> BlockState:
    """Another network's state in one respect."""
    tensors = dict(state.tensors)
    name = next(name for name, tensor in tensors.items() if tensor.integers is not None)
    weight = tensors[name]
    if what == "missing":
        del tensors[name]
    elif what == "unknown":
        tensors["somebody"] = weight
    elif what == "bits":
        tensors[name] = dataclasses.replace(weight, point=dataclasses.replace(weight.point, bits=7))
    elif what == "integers":
        tensors[name] = dataclasses.replace(weight, integers=weight.integers[..., :1])
    elif what == "scale":
        tensors[name] = dataclasses.replace(weight, scale=weight.scale[:1])
    elif what == "range":
        tensors[name] = dataclasses.replace(weight, integers=weight.integers + weight.point.qmax + 1)
    elif what == "nan":
        tensors[name] = dataclasses.replace(weight, scale=weight.scale * np.float32(np.nan))
    elif what == "bias":
        return dataclasses.replace(state, biases={"somebody": np.zeros(3, np.float32)})
    return dataclasses.replace(state, tensors=tensors)


@pytest.mark.parametrize("what", ["missing", "unknown", "bits", "integers", "scale", "range", "nan", "bias"])
def test_the_state_of_another_network_is_refused(what: str) -> None:
    case, shelf = of_residual(lambda _: {}), Shelf()
    options = dataclasses.replace(SHORT, iters=0)
    case.run(shelf, options)
    with pytest.raises(CalibrationError, match=r"block .*: the state of an earlier run .*; expected"):
        case.run(Shelf({1: broken(shelf.states[1], what)}), options)
