import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pdq_export.arithmetic.bias import LARGEST_INTEGER, smallest_weight_scale
from pdq_export.export import bias_integers, bias_scale, channel_bias, has_integer_bias, round_bias
from pdq_export.spec import BitWidths, Layer, Plan, Point, Role

numbers = st.floats(-1e3, 1e3, width=32)
scales = st.floats(2.0**-20, 8.0, width=32)


@given(bias=arrays(np.float32, 5, elements=numbers), x=scales, w=arrays(np.float32, 5, elements=scales))
def test_error_is_at_most_half_a_step(bias, x, w):
    step = bias_scale(bias, np.float32(x), w)
    rounded = round_bias(bias, np.float32(x), w)
    slack = 2.0**-22 * np.abs(bias)  # of the float32 product itself
    assert (np.abs(rounded - bias) <= step / 2 + slack).all()


def test_rounds_half_to_even():
    bias = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    integers = bias_integers(bias, np.float32(1), np.ones(5, np.float32))
    assert integers.dtype == np.int32
    assert integers.tolist() == [0, 2, 2, 0, -2]


def test_scale_is_the_product():
    scale = bias_scale(np.ones(2, np.float32), np.float32(0.5), np.array([0.25, 2], np.float32))
    assert scale.tolist() == [0.125, 1.0]


@given(bias=arrays(np.float32, 3, elements=st.floats(2.0**-10, 1e3, width=32)))
def test_a_bias_beyond_int32_gets_a_coarser_scale(bias):
    dead = np.full(3, 1e-20, np.float32)
    integers = bias_integers(bias, np.float32(0.1), dead)
    assert np.abs(integers.astype(np.int64)).max() <= LARGEST_INTEGER
    np.testing.assert_allclose(round_bias(bias, np.float32(0.1), dead), bias, rtol=1e-6)
    enlarged = np.maximum(dead, smallest_weight_scale(bias, np.float32(0.1), dead))
    np.testing.assert_allclose(np.float32(0.1) * enlarged, bias_scale(bias, np.float32(0.1), dead), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_bias_per_channel_keeps_its_shape(shape):
    bias = np.linspace(-1, 1, 4, dtype=np.float32).reshape(shape)
    flat = channel_bias(bias, np.ones(4, np.float32))
    assert flat is not None
    assert flat.shape == (4,)
    assert round_bias(bias, np.float32(0.1), np.full(4, 0.1, np.float32)).shape == shape


def test_one_number_becomes_one_per_channel():
    flat = channel_bias(np.array(2, np.float32), np.ones(3, np.float32))
    assert flat is not None
    assert flat.tolist() == [2, 2, 2]


@pytest.mark.parametrize("shape", [(4, 1), (2, 4), (3,)])
def test_other_biases_stay_float(shape):
    bias = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert channel_bias(bias, np.ones(4, np.float32)) is None
    assert round_bias(bias, np.float32(1), np.ones(4, np.float32)) is bias


def test_scales_repeat_over_the_groups_of_a_transposed_convolution():
    scale = bias_scale(np.zeros(6, np.float32), np.float32(1), np.array([1, 2, 3], np.float32))
    assert scale.tolist() == [1, 2, 3, 1, 2, 3]
    grouped = smallest_weight_scale(np.arange(6, dtype=np.float32), np.float32(1), np.ones(3, np.float32))
    assert (grouped * LARGEST_INTEGER).tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("points", "bias", "expected"),
    [("xw", "b", True), ("x", "b", False), ("w", "b", False), ("xw", None, False)],
)
def test_integer_bias_needs_a_quantized_input_and_weight(points, bias, expected):
    layer = Layer(node="n", op_type="Conv", input="moved", weight="w", bias=bias, output="y")
    known = {
        "x": Point(tensor="x", role=Role.ACTIVATION, bits=4),
        "w": Point(tensor="w", role=Role.WEIGHT, bits=4, axis=0),
    }
    plan = Plan(
        bits=BitWidths(4, 4),
        points={name: known[name] for name in points},
        passthrough={"moved": "x"} if "x" in points else {},
        layers=(layer,),
        blocks=(),
    )
    assert has_integer_bias(plan, layer) is expected
