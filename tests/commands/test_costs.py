"""What weights cost at every width, held against files that are written with them."""

import dataclasses
import random
from collections.abc import Mapping

import pytest

from pdq_export import calib_data
from pdq_export.commands.costs import WeightCosts, weight_costs
from pdq_export.commands.estimates import estimate_tensors
from pdq_export.errors import OptionError
from pdq_export.export import Packing
from pdq_export.graph.prepare import PreparedModel
from pdq_export.plan import PlanOptions
from pdq_export.spec import ALL_BITS, Plan, Role
from pdq_export.targets import find_target
from pdq_export.work import open_model, prepare_and_plan

TABLES = 1500  # bytes of what weights of one width share


def planned(target: str, bits: str, **options: str) -> tuple[PreparedModel, Plan]:
    file, _ = open_model(calib_data.path("fashion_resnet.onnx"))
    opset = {"target": target, "opset": None}
    prepared, plan, _ = prepare_and_plan(file.parse(), PlanOptions.of(bits, **options), **opset)
    return prepared, plan


def written(prepared: PreparedModel, plan: Plan, target: str, bits: Mapping[str, int], packing: Packing) -> int:
    """Bytes of the file where weights have these bits."""
    points = {
        name: point if point.role is not Role.WEIGHT else point.with_bits(bits[name])
        for name, point in plan.points.items()
    }
    changed = dataclasses.replace(plan, points=points)
    tensors = estimate_tensors(prepared, changed)
    return find_target(target).export(prepared.model, changed, tensors, metadata={}, packing=packing).ByteSize()


@pytest.fixture(scope="module")
def costs() -> tuple[PreparedModel, Plan, WeightCosts]:
    prepared, plan = planned("ort", "3/4")
    return prepared, plan, weight_costs(prepared, plan, find_target("ort"))


def test_every_weight_has_a_cost_at_every_width_and_as_planned_the_sum_is_the_file(
    costs: tuple[PreparedModel, Plan, WeightCosts],
) -> None:
    prepared, plan, found = costs
    names = [name for name, point in plan.points.items() if point.role is Role.WEIGHT]
    assert {name: tuple(by_width) for name, by_width in found.weights.items()} == dict.fromkeys(names, ALL_BITS)
    own = {name: plan.points[name].bits for name in names}
    assert found.predict({}) == written(prepared, plan, "ort", own, Packing.BYTES)
    largest = max(names, key=lambda name: found.weights[name][8])
    weights = prepared.index.constant(largest)
    assert weights is not None
    for width in range(3, 8):  # what one bit a weight takes, and zero points
        more = found.weights[largest][width] - found.weights[largest][width - 1]
        assert more == pytest.approx(weights.size / 8, rel=0.1)


@pytest.mark.parametrize("width", [2, 4, 5, 8])
def test_uniform_widths_are_predicted_but_for_what_a_table_takes_more_or_less(
    costs: tuple[PreparedModel, Plan, WeightCosts], width: int
) -> None:
    prepared, plan, found = costs
    bits = dict.fromkeys(found.weights, width)
    size = written(prepared, plan, "ort", bits, Packing.BYTES)
    assert found.predict(bits) == pytest.approx(size, abs=TABLES / 10)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_widths_are_predicted_but_for_their_tables(
    costs: tuple[PreparedModel, Plan, WeightCosts], seed: int
) -> None:
    prepared, plan, found = costs
    draw = random.Random(seed)
    bits = {name: draw.choice((2, 4, 8)) for name in found.weights}
    size = written(prepared, plan, "ort", bits, Packing.BYTES)
    assert -TABLES / 4 < found.predict(bits) - size < 2 * TABLES


@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("target", ["native", "qcdq"])
def test_layouts_without_tables_are_exact_for_mixed_widths(target: str) -> None:
    prepared, plan = planned(target, "2/2")
    found = weight_costs(prepared, plan, find_target(target), widths=(2, 4))
    names = [name for name, width in found.planned.items() if width == 2]
    bits = {**found.planned, **dict.fromkeys(names[::2], 4)}
    size = written(prepared, plan, target, bits, Packing.BYTES)
    assert found.predict(bits) == pytest.approx(size, rel=1e-3)
    assert set(found.rest) == {2, 4, *found.planned.values()}


def test_a_weight_or_bits_without_costs_is_refused(costs: tuple[PreparedModel, Plan, WeightCosts]) -> None:
    with pytest.raises(OptionError, match=r"weight 'fc\.weight', 9 bits: has no costs; expected a planned weight with"):
        costs[2].predict({"fc.weight": 9})
    with pytest.raises(OptionError, match="weight 'nowhere', 4 bits"):
        costs[2].predict({"nowhere": 4})


def test_what_is_known_is_taken_as_it_is() -> None:
    """Scales of calibration decide how many bytes biases take."""
    prepared, plan = planned("ort", "8/8")
    tensors = {
        name: dataclasses.replace(tensor, scale=tensor.scale * 300) if tensor.integers is None else tensor
        for name, tensor in estimate_tensors(prepared, plan).items()
    }
    target = find_target("ort")
    found = weight_costs(prepared, plan, target, known=tensors, widths=())
    assert found.size == target.export(prepared.model, plan, tensors, metadata={}).ByteSize()
    assert found.size < weight_costs(prepared, plan, target, widths=()).size
