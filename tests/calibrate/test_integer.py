"""The torch stand-ins compute what the written-down arithmetic of onnxruntime's kernels says."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from pdq_export.arithmetic.integer import add_integers, average_integers, requantize
from pdq_export.calibrate.integer import IntegerAdd, IntegerAverage, IntegerIdentity, IntegerLayer, integer_nodes
from pdq_export.calibrate.quantizers import ActivationQuantizer, BiasQuantizer, WeightQuantizer
from pdq_export.frontend import import_model
from pdq_export.numerics.search import QParams
from pdq_export.spec import BitWidths, Plan, Point, Role


def activation(scale: float, zero_point: int, bits: int = 8) -> ActivationQuantizer:
    qparams = QParams(scale=torch.tensor(scale), zero_point=torch.tensor(float(zero_point)))
    return ActivationQuantizer(Point(tensor="t", role=Role.ACTIVATION, bits=bits), qparams)


def test_addition() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, output = activation(0.037, 12), activation(0.0213, 131), activation(0.0519, 40)
    q_a, q_b = (torch.randint(0, 256, (50_000,), generator=generator) for _ in range(2))
    result = IntegerAdd(a, b, output)(*((q - z.zero_point) * z.scale for q, z in ((q_a, a), (q_b, b))))
    scales = [np.float32(z.scale.item()) for z in (a, b, output)]
    expected = add_integers(q_a.numpy(), scales[0], 12, q_b.numpy(), scales[1], 131, scales[2], 40)
    np.testing.assert_array_equal(torch.round(result / output.scale).long().numpy() + 40, expected)


@pytest.mark.parametrize("zero_point", [0, 119])
def test_identity_is_the_addition_of_0(zero_point: int) -> None:
    source, output = activation(0.0213, zero_point), activation(0.27, 7)
    q = torch.arange(256)
    result = IntegerIdentity(source, output)((q - zero_point) * source.scale)
    scales = [np.float32(z.scale.item()) for z in (source, output)]
    zeros = np.zeros_like(q.numpy())
    expected = add_integers(q.numpy(), scales[0], zero_point, zeros, np.float32(1), 0, scales[1], 7)
    np.testing.assert_array_equal(torch.round(result / output.scale).long().numpy() + 7, expected)


def test_layer() -> None:
    generator = torch.Generator().manual_seed(1)
    source, output = activation(0.0123, 3), activation(0.0811, 0)
    point = Point(tensor="w", role=Role.WEIGHT, bits=4, axis=0)
    q = torch.randint(0, 16, (7, 5, 3, 3), generator=generator).float()
    qparams = QParams(scale=torch.rand(7, generator=generator) + 0.01, zero_point=torch.arange(7.0))
    weight = WeightQuantizer(point, q, qparams)
    layer = IntegerLayer(F.conv2d, source, weight, None, output, channels_last=False)
    q_x = torch.randint(0, 256, (4, 5, 9, 9), generator=generator).float() - 3
    result = torch.round(layer(q_x * source.scale) / output.scale).long().numpy()
    accumulator = F.conv2d(q_x.double(), (q - torch.arange(7.0).view(-1, 1, 1, 1)).double()).numpy().astype(np.int64)
    scales = [np.float32(quantizer.scale.item()) for quantizer in (source, output)]
    expected = requantize(accumulator, scales[0], qparams.scale.numpy()[:, None, None], scales[1])
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("y_scale", [0.0623, 0.0623 * 0.6, 0.0519])
def test_average(y_scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    source, output = activation(0.0623, 9), activation(y_scale, 40)
    q = torch.randint(0, 256, (8, 500, 2, 2), generator=generator)
    result = IntegerAverage(source, output)((q - 9) * source.scale)
    scales = [np.float32(quantizer.scale.item()) for quantizer in (source, output)]
    expected = average_integers(q.numpy(), scales[0], 9, scales[1], 40)
    np.testing.assert_array_equal(torch.round(result / output.scale).long().numpy() + 40, expected)


@pytest.mark.parametrize("terms", [519, 700, 5000])
def test_a_layer_whose_sums_float32_does_not_hold(terms: int) -> None:
    """Odd sums beyond 2^24 do not exist in float32, and halfway between two of its numbers is easily hit."""
    source, point = activation(1.0, 0), Point(tensor="w", role=Role.WEIGHT, bits=8, axis=0, symmetric=True)
    generator = torch.Generator().manual_seed(terms)
    q = torch.randint(100, 128, (3, terms), generator=generator).float()
    q_x = torch.randint(200, 256, (64, terms), generator=generator).float()
    weight = WeightQuantizer(point, q, QParams(scale=torch.ones(3), zero_point=torch.zeros(3)))
    bias = BiasQuantizer(torch.tensor([0.0, 2.0**25 + 4, -(2.0**29) - 64]), torch.tensor(1.0), torch.ones(3))
    layer = IntegerLayer(F.linear, source, weight, bias, None, channels_last=True)
    assert bias.exact is not None
    exact = (q_x.double() @ q.double().T + bias.exact).numpy().astype(np.int64).astype(np.float32)
    np.testing.assert_array_equal(layer(q_x).numpy(), exact)


def test_stand_ins_are_found_by_the_operator_whatever_function_computes_it() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> m (float[N,4,2,2] x, float[N,4,2,2] y) => (float[N,4,1,1] end) {
            [first] a = Add (x, y)  [second] b = Sub (a, y)  [third] c = GlobalAveragePool (b)
            [fourth] d = Identity (c)  [fifth] end = Sigmoid (d) }"""
    )
    network = import_model(model)
    for node in network.graph.nodes:
        if node.op == "call_function":
            node.target = lambda *tensors: tensors[0]
    points = {name: activation(0.1, 0).point for name in "xyabcd"}
    plan = Plan(bits=BitWidths(weight=8, activation=8), points=points, passthrough={}, layers=(), blocks=())
    found = integer_nodes(network, plan, {name: activation(0.1, 0) for name in points}, {}, {})
    kinds = {node: type(stand_in) for node, stand_in in found.items()}
    assert kinds == {"first": IntegerAdd, "third": IntegerAverage, "fourth": IntegerIdentity}
