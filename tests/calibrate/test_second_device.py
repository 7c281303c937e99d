"""Calibration on another device than the CPU: nothing is mixed, nothing waits in a step, and the result is the same."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from pdq_export.calibrate import Calibrated, calibrate, correction
from pdq_export.calibrate.correction import correct_distribution
from pdq_export.calibrate.journal import Journal
from pdq_export.calibrate.step import Step
from pdq_export.calibrate.subgraph import extract
from pdq_export.config.method import CalibrationOptions
from pdq_export.frontend import import_model
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from tests.calibrate.networks import Example, calibrate_example, residual
from tests.second_device import DEVICE, Counts, DeviceTensor, second_device

OPTIONS = CalibrationOptions(
    samples=32,
    iters=6,
    correction_iters=3,
    batch_size=16,
    rounding_lr=0.1,
    scale_lr=4e-4,
    prediction_interval=2,
    compensate_rounding=True,
)


def test_what_the_device_refuses() -> None:
    with second_device():
        x, y = torch.ones(3).to(DEVICE), torch.ones(3)
        for mixed in (lambda: x + y, lambda: torch.cat([y, x]), lambda: torch.where(x > 0, x, y)):
            with pytest.raises(AssertionError, match="mixes the CPU"):
                mixed()
        assert (x + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]  # one number may come from anywhere
        with pytest.raises((TypeError, RuntimeError)):
            x.numpy()


def test_what_the_device_counts() -> None:
    with second_device() as counts:
        x = torch.arange(4.0).to(DEVICE)
        reads = (x.sum().item, x.cpu, x.tolist, lambda: bool((x > 0).all()), lambda: x[x > 1], x.nonzero)
        for read in reads:
            counts.clear()
            read()
            assert counts.reads.total() == 1
        for copy in (
            lambda: torch.tensor([1.0], device=DEVICE),
            lambda: torch.ones(2).to(DEVICE),
            lambda: x[torch.arange(2)],
        ):
            counts.clear()
            copy()
            assert (counts.copies.total(), counts.reads.total()) == (1, 0)
        counts.clear()
        x.view(2, 2).t()[1:].mul_(2).add(1)
        assert counts.launches == {"mul_": 1, "add": 1}


def same(first: Calibrated, second: Calibrated) -> bool:
    return first.tensors.keys() == second.tensors.keys() and all(
        np.array_equal(a.scale, b.scale)
        and np.array_equal(a.zero_point, b.zero_point)
        and (a.integers is None or np.array_equal(a.integers, b.integers))
        for a, b in ((first.tensors[name], second.tensors[name]) for name in first.tensors)
    )


def there(example: Example, options: CalibrationOptions) -> Calibrated:
    """Calibrated on the second device, on images that lie on the CPU."""
    return calibrate(
        example.network, example.plan, example.prepared.statistics, [example.images], options, device=DEVICE
    )


@pytest.mark.parametrize("room", [2**40, 40_000], ids=["all fits", "caches on the host"])
@pytest.mark.parametrize("bits", ["4/4", "2/2"])
def test_the_result_is_that_of_the_cpu(bits: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "_AT_ONCE", 1)  # kernels may take more images in another order
    example = residual(bits, images=32)
    expected = calibrate_example(example, OPTIONS)
    images = example.images[:4]
    with second_device(room):
        found = there(residual(bits, images=32), OPTIONS)
        (simulated,) = found.simulation(images.to(DEVICE))
        assert isinstance(simulated, DeviceTensor)
        simulated = simulated.cpu()
    assert same(found, expected)
    assert torch.equal(simulated, expected.simulation(images)[0])


@contextlib.contextmanager
def phases(counts: Counts) -> Iterator[dict[str, tuple[int, int]]]:
    """By phase of calibration, how often the host waits for the device, and copies to it."""
    found: dict[str, tuple[int, int]] = {}
    timed = Journal.timed

    @contextlib.contextmanager
    def counted(self: Journal, phase: str) -> Iterator[None]:
        reads, copies = counts.reads.total(), counts.copies.total()
        with timed(self, phase):
            yield
        before = found.get(phase, (0, 0))
        found[phase] = before[0] + counts.reads.total() - reads, before[1] + counts.copies.total() - copies

    with mock.patch.object(Journal, "timed", counted):
        yield found


ACTIVATIONS = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,4,6,6] image) => (float[N,K] y) <float low = {0.0}, float high = {6.0},
  float[4] scales = {1.0, 1.0, 2.0, 2.0}, float[4] back = {1.0, 1.0, 0.5, 0.5}> {
    c1 = Conv <pads = [1, 1, 1, 1]> (image, w1)
    a1 = Clip(c1, low, high)
    u = Resize <mode = "linear"> (a1, , scales)
    c2 = Conv <pads = [1, 1, 1, 1]> (u, w2)
    h = HardSigmoid <alpha = 0.16666667> (c2)
    a2 = Mul(c2, h)
    d = Resize <mode = "nearest"> (a2, , back)
    s = Shape(d)
    start = Constant <value_ints = [0]> ()
    end = Constant <value_ints = [1]> ()
    count = Slice(s, start, end)
    rest = Constant <value_ints = [-1]> ()
    sizes = Concat <axis = 0> (count, rest)
    f = Reshape(d, sizes)
    y = Gemm <transB = 1> (f, w3)
}"""


def activations() -> Example:
    """What computes with constants of its own: Clip, Resize, HardSwish, and shapes."""
    model = onnx.parser.parse_model(ACTIVATIONS)
    generator = np.random.default_rng(0)
    for name, shape in (("w1", (4, 4, 3, 3)), ("w2", (4, 4, 3, 3)), ("w3", (3, 144))):
        value = generator.normal(size=shape).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    prepared = prepare(model)
    x = torch.from_numpy(generator.normal(size=(32, 4, 6, 6)).astype(np.float32))
    return Example(prepared, make_plan(prepared.model, PlanOptions.of("4/4")), import_model(prepared.model), x)


@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("make", [lambda: residual(images=32), activations], ids=["residual", "activations"])
@pytest.mark.parametrize("room", [2**40, 40_000], ids=["all fits", "caches on the host"])
def test_neither_a_step_nor_a_correction_waits_or_copies(make: Any, room: int) -> None:
    """More of them make no more reads and copies, whatever comes before and after; rows of the host are copied."""
    found = []
    for more in (0, 7):
        options = dataclasses.replace(OPTIONS, iters=4 + more, correction_iters=3 + more, compensate_rounding=False)
        with second_device(room) as counts, phases(counts) as of:
            there(make(), options)
        found.append(dict(of))
    for phase in ("correction", "steps"):
        (reads, copies), (more_reads, more_copies) = (one[phase] for one in found)
        assert more_reads == reads
        assert more_copies == copies or (phase == "steps" and room < 2**40)


@pytest.mark.usefixtures("short_search")
def test_a_step_itself_asks_for_nothing() -> None:
    """Inside of a step there is neither a read nor a copy, and what it launches is the same each time."""
    call, seen = Step.__call__, []

    def watched(self: Step, batch: Any, numbers: Any) -> tuple[Tensor, Tensor]:
        counts.clear()
        result = call(self, batch, numbers)
        assert not counts.reads
        assert not counts.copies
        kind = numbers.prediction_weight is not None, numbers.exponent is not None
        seen.append((id(self), kind, counts.launches.total()))
        return result

    with second_device() as counts, mock.patch.object(Step, "__call__", watched):
        there(residual(images=32), OPTIONS)
    assert len({(step, kind) for step, kind, _ in seen}) == len(set(seen)) > 6


def test_a_watched_rate_waits_for_no_loss() -> None:
    """So many steps that the rate can fall wait no more often, and copy no more, than a few."""
    example, options = residual(images=2), dataclasses.replace(OPTIONS, batch_size=2)
    statistics = [example.prepared.statistics["n1"]]
    asked = []
    for steps in (2, 104):
        more = dataclasses.replace(options, correction_iters=steps)
        with second_device() as counts:
            piece = extract(example.network.to(DEVICE), ["image"], ["n1"])
            images = example.images.to(DEVICE)
            counts.clear()
            correct_distribution(piece, statistics, images, more)
        asked.append((counts.reads.total(), counts.copies.total()))
    assert asked[0] == asked[1]
