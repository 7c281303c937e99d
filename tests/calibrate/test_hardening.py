"""Soft weights become integers layer by layer, with errors that make up for each other."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from pdq_export.calibrate import hardening
from pdq_export.calibrate.hardening import _Product
from pdq_export.calibrate.quantizers import SoftRounding, weight_qparams
from pdq_export.calibrate.subgraph import tensor_nodes
from pdq_export.config.method import CalibrationOptions
from pdq_export.frontend import import_model
from pdq_export.spec import Point, Role
from tests.calibrate.networks import Example, calibrate_example, calibrate_there, residual

pytestmark = pytest.mark.usefixtures("calibrates_on")
OPTIONS = CalibrationOptions(
    samples=64, iters=20, batch_size=16, correction_iters=2, rounding_lr=0.1, compensate_rounding=True
)
PRODUCTS = {
    "conv": ("Conv <strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]>", [2, 6, 9, 8], [5, 6, 3, 2], 0),
    "grouped": ("Conv <group = 3>", [2, 6, 5, 5], [9, 2, 3, 3], 0),
    "depthwise": ('Conv <group = 6, auto_pad = "SAME_UPPER">', [2, 6, 5, 5], [6, 1, 3, 3], 0),
    "1-D": ("Conv <pads = [1, 1]>", [2, 4, 7], [5, 4, 3], 0),
    "3-D": ("Conv", [1, 2, 4, 4, 4], [3, 2, 2, 2, 2], 0),
    "transposed": ("ConvTranspose <strides = [2, 2], output_padding = [1, 0]>", [2, 4, 4, 4], [4, 3, 3, 3], 1),
    "gemm": ("Gemm <transB = 1, alpha = 0.5>", [7, 4], [3, 4], 0),
    "matmul": ("MatMul", [2, 7, 4], [4, 3], 1),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_layer_is_the_product_of_its_rows(case: str) -> None:
    operator, x_shape, w_shape, axis = PRODUCTS[case]
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in (x_shape, w_shape))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        f"m (float[{','.join(map(str, x_shape))}] x) => (float[{','.join('abcde'[: len(x_shape)])}] y) "
        f"{{ y = {operator} (x, w) }}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.numpy(), "w"))
    network = import_model(model)
    point = Point(tensor="w", role=Role.WEIGHT, bits=4, axis=axis)
    product = _Product(tensor_nodes(network)["y"], SoftRounding(point, weight, weight_qparams(weight, point)))
    assert torch.equal(product.weight(product.rows(weight)), weight)

    (y,) = network(x)
    channels = 1 if len(w_shape) > 2 else -1
    outputs = y.movedim(channels, 0).flatten(1).double()
    second, first, rows = product.moments([x])
    assert rows == outputs.shape[1]
    by_rows = product.rows(weight)
    torch.testing.assert_close((by_rows @ first[:, :, None]).flatten(), outputs.mean(1), rtol=1e-4, atol=1e-5)
    squares = ((by_rows @ second) * by_rows).sum(2).flatten()
    torch.testing.assert_close(squares, outputs.square().mean(1), rtol=1e-4, atol=1e-5)


def test_large_inputs_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    example = residual("2/4")
    layer = example.plan.layers[1]
    weight = getattr(example.network, str(tensor_nodes(example.network)[layer.weight].target))
    point = example.plan.points[layer.weight]
    product = _Product(
        tensor_nodes(example.network)[layer.output], SoftRounding(point, weight, weight_qparams(weight, point))
    )
    x = torch.randn(4, *weight.shape[1:2], 6, 6, generator=torch.Generator().manual_seed(0))
    whole = product.moments([x])
    monkeypatch.setattr(hardening, "_ELEMENTS", 1)
    torch.testing.assert_close(product.moments([x]), whole, rtol=1e-5, atol=1e-6)  # float32 sums


def _calibrated(example: Example, options: CalibrationOptions) -> torch.Tensor:
    result = calibrate_example(example, options)
    with torch.no_grad():
        return (result.simulation(example.images)[0] - example.network(example.images)[0]).square().mean()


def test_compensation_brings_the_quantized_network_nearer() -> None:
    errors = torch.tensor(
        [
            [
                _calibrated(residual("2/8", seed=seed), dataclasses.replace(OPTIONS, compensate_rounding=on))
                for on in (False, True)
            ]
            for seed in range(4)
        ]
    )
    assert errors[:, 1].sum() < errors[:, 0].sum()


def test_biases_take_up_the_mean_error() -> None:
    example = residual("2/8")
    errors = {}
    for on in (True, False):
        options = dataclasses.replace(OPTIONS, compensate_rounding=on)
        result = calibrate_there(example.network, example.plan, {}, [example.images], options)
        assert set(result.biases) == ({layer.bias for layer in example.plan.layers} if on else set())
        assert all(bias.dtype == np.float32 and np.isfinite(bias).all() for bias in result.biases.values())
        (found,), (expected,) = result.simulation(example.images), example.network(example.images)
        errors[on] = (found - expected).mean(0).square().sum()
    assert errors[True] < 0.1 * errors[False]


def test_a_transposed_convolution_is_picked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output has stride² times the positions of its input: no pass may put out all K of them at once."""
    weight = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> m (float[N,4,6,6] x) => (float[N,2,H,W] y) '
        "{ y = ConvTranspose <strides = [8, 8]> (x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.numpy(), "w"))
    point = Point(tensor="w", role=Role.WEIGHT, bits=4, axis=1)
    product = _Product(
        tensor_nodes(import_model(model))["y"], SoftRounding(point, weight, weight_qparams(weight, point))
    )
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = product.moments([x])
    monkeypatch.setattr(hardening, "_ELEMENTS", 4 * 48 * 48 * 8)
    largest = 0
    pick = _Product._pick

    def observed(self: _Product, x: torch.Tensor, chosen: slice) -> torch.Tensor:
        nonlocal largest
        picked = pick(self, x, chosen)
        largest = max(largest, picked.numel())
        return picked

    monkeypatch.setattr(_Product, "_pick", observed)
    in_pieces = product.moments([x])
    assert largest <= hardening._ELEMENTS
    for one, other in zip(whole, in_pieces, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
