"""Which points the plan has for TensorRT: before layers and on the residual branch, symmetric."""

import onnx
import pytest

from pdq_export.plan import PlanOptions
from pdq_export.spec import Plan, Role
from pdq_export.targets import find_target

from ...export import toy_networks as nets

CONV = "Conv <pads=[1,1,1,1]>"
WEIGHTS = {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3), "u": (4, 4, 3, 3), "t": (4, 4, 1, 1)}


def plan(text: str) -> Plan:
    used = {name: shape for name, shape in WEIGHTS.items() if f" {name})" in text}
    model: onnx.ModelProto = nets.network(f"(float[N,3,6,6] x) => (float[N,4,6,6] y) {{ {text} }}", used)
    return find_target("tensorrt").plan(model, PlanOptions.of("8/8")).plan


def activations(text: str) -> set[str]:
    return {name for name, point in plan(text).points.items() if point.role is not Role.WEIGHT}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"c = {CONV} (x, w) r = Relu(c) y = {CONV} (r, v)", {"x", "r"}),
        (f"c = {CONV} (x, w) r = Relu(c) e = {CONV} (r, v) a = Add(e, r) y = {CONV} (a, u)", {"x", "r", "a"}),
        (
            f"c = {CONV} (x, w) e = {CONV} (c, v) d = Conv (c, t) a = Add(e, d) q = Relu(a) y = {CONV} (q, u)",
            {"x", "c", "d", "q"},
        ),
        (f"c = {CONV} (x, w) s = Sigmoid(c) m = Mul(c, s) y = {CONV} (m, v)", {"x", "m"}),
        (f"c = {CONV} (x, w) m = MaxPool <kernel_shape=[1,1]> (c) y = {CONV} (m, v)", {"x", "c"}),
    ],
)
def test_points(text: str, expected: set[str]) -> None:
    assert activations(text) == expected


def test_everything_is_symmetric_and_biases_stay_float() -> None:
    found = plan(f"c = {CONV} (x, w) r = Relu(c) y = {CONV} (r, v)")
    assert not found.integer_bias
    assert all(point.symmetric for point in found.points.values())
    assert [(p.qmin, p.qmax) for p in found.points.values() if p.role is Role.WEIGHT] == [(-127, 127)] * 2
    assert [(p.qmin, p.qmax) for p in found.points.values() if p.role is not Role.WEIGHT] == [(-128, 127)] * 2
