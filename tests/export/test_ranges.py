import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.errors import ExportError
from pdq_export.export.ranges import Ranges, integer_range
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import BitWidths, Plan, Point, QuantizedTensor, Role


def graph(node: str, **bounds: float) -> GraphIndex:
    constants = ", ".join(f"float {name} = {{{value}}}" for name, value in bounds.items())
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x, float v) => (float[N] y) <{constants}> {{ y = {node} }}"""
    )
    return GraphIndex(model)


def quantized(scale: float, zero_point: int, bits: int) -> QuantizedTensor:
    point = Point(tensor="y", role=Role.ACTIVATION, bits=bits, absorbed="act")
    return QuantizedTensor(point=point, scale=np.array(scale, np.float32), zero_point=np.array(zero_point, np.int32))


def limits(index: GraphIndex, tensor: QuantizedTensor) -> tuple[int, int]:
    return integer_range(index, tensor, index.graph.node[0])


@pytest.mark.parametrize(("bits", "expected"), [(8, (0, 255)), (4, (0, 15)), (2, (0, 3))])
def test_without_activation_the_bits_are_the_range(bits, expected):
    assert integer_range(graph("Relu(x)"), quantized(0.1, 2, bits), None) == expected


@pytest.mark.parametrize(("zero_point", "expected"), [(0, (0, 15)), (3, (3, 15))])
def test_relu_starts_at_the_zero_point(zero_point, expected):
    assert limits(graph("Relu(x)"), quantized(0.1, zero_point, 4)) == expected


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits", "expected"),
    [
        (6 / 255, 0, 8, (0, 255)),
        (0.1, 0, 8, (0, 60)),
        (0.1, 5, 8, (5, 65)),
        (0.4, 0, 4, (0, 15)),
        (1.0, 0, 4, (0, 6)),
        (4.0, 0, 2, (0, 2)),  # 6 / 4 = 1.5 rounds to even
    ],
)
def test_clip_tightens_both_ends(scale, zero_point, bits, expected):
    assert limits(graph("Clip(x, lo, hi)", lo=0, hi=6), quantized(scale, zero_point, bits)) == expected


def test_clip_with_one_bound():
    assert limits(graph("Clip(x, , hi)", hi=6), quantized(1.0, 2, 4)) == (0, 8)
    assert limits(graph("Clip(x, lo)", lo=0), quantized(1.0, 2, 4)) == (2, 15)


@given(
    value=st.floats(-100, 100, width=32),
    scale=st.floats(2.0**-8, 4.0, width=32),
    zero_point=st.integers(0, 15),
    bits=st.integers(2, 8),
    high=st.floats(2.0**-4, 50, width=32),
)
def test_clipping_integers_equals_quantizing_what_the_clip_gives(value, scale, zero_point, bits, high):
    zero_point = min(zero_point, 2**bits - 1)
    low, top = limits(graph("Clip(x, lo, hi)", lo=0, hi=high), quantized(scale, zero_point, bits))

    def quantize(v: float, lo: int, hi: int) -> int:
        return int(np.clip(np.rint(np.float32(v) / np.float32(scale)) + zero_point, lo, hi))

    before = quantize(min(max(value, 0), np.float32(high)), 0, 2**bits - 1)
    assert quantize(value, low, top) == before


def test_other_activations_are_refused_by_name():
    with pytest.raises(ExportError, match=r"tensor 'y'.*Sigmoid.*expected Relu or Clip"):
        limits(graph("Sigmoid(x)"), quantized(0.1, 0, 4))


def test_computed_bounds_are_refused():
    with pytest.raises(ExportError, match=r"tensor 'y'.*'v'.*not constant"):
        limits(graph("Clip(x, , v)"), quantized(0.1, 0, 4))


@pytest.mark.parametrize(("domain", "expected"), [("", (2, 12)), ("custom", (0, 255))])
def test_an_operator_of_another_domain_is_not_bounded_by_its_name(domain, expected):
    index = graph("Sigmoid(x)")
    index.graph.node[0].domain = domain
    ranges = Ranges(index, Plan(bits=BitWidths.parse("4/4"), points={}, passthrough={}, layers=(), blocks=()))
    ranges.visit(index.graph.node[0])
    assert ranges.reachable(quantized(0.1, 2, 8), None, (0, 255)) == expected
