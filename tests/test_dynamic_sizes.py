"""Shape arithmetic that is read in other blocks than it was computed in: networks of any height and width."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pdq_export.calibrate.sizes import batch_sizes, fold_sizes
from pdq_export.calibrate.subgraph import extract
from pdq_export.commands.quantize import Result, quantize
from pdq_export.frontend import import_model
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths, Block

from .dynamic_sizes import FCN, DeepLab, UNet, export
from .onnx_text import fill, parse

pytestmark = pytest.mark.usefixtures("short_search")

TINY = {"samples": 12, "iters": 6, "correction_iters": 2, "batch_size": 4}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "FCN": FCN,
    "DeepLab": DeepLab,
    "U-Net that resizes": lambda: UNet(pad=False),
    "U-Net that pads": lambda: UNet(pad=True),
}


def images(count: int, *size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, *size)).astype(np.float32)


def build(name: str, *, dynamic: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    return export(NETWORKS[name](), size=22, dynamic=dynamic)


def blocks(result: Result) -> list[list[str]]:
    return [[layer.node for layer in block.layers] for block in result.plan.blocks]


@pytest.mark.parametrize("name", NETWORKS)
def test_dynamic_sizes_calibrate_as_fixed_ones_do(name: str) -> None:
    fixed, dynamic = (
        quantize(build(name, dynamic=either), calib=images(12, 22, 22), bits="4/4", options=TINY)
        for either in (False, True)
    )
    assert blocks(dynamic) == blocks(fixed)
    assert len(blocks(fixed)) >= 4
    assert dynamic.tensors.keys() == fixed.tensors.keys()
    for tensor, expected in fixed.tensors.items():
        found = dynamic.tensors[tensor]
        np.testing.assert_array_equal(found.scale, expected.scale)
        np.testing.assert_array_equal(found.zero_point, expected.zero_point)
        if expected.integers is not None:
            np.testing.assert_array_equal(found.integers, expected.integers)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_another_size_are_evaluated_at_theirs(name: str) -> None:
    model = build(name, dynamic=True)
    result = quantize(model, calib=images(12, 22, 22), eval=images(6, 27, 33), bits="8/8", options=TINY)
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 0.02
    assert output.quantized_float.relative_error < 0.2


WEIGHTS = {"a": (4, 3, 3, 3), "b": (4, 4, 3, 3), "c": (4, 4, 3, 3), "d": (5, 64), "token": (1, 5)}
# The batch size of the image is read three layers further on, for one token an image; a scale is made of the height.
BY_IMAGE = """s = Shape(image) zero = Constant <value_ints = [0]> () two = Constant <value_int = 2> ()
    n = Gather(s, zero) h = Gather(s, two) hf = Cast <to = 1> (h) five = Constant <value_ints = [5]> ()
    ca = Conv <pads = [1, 1, 1, 1]> (image, a) ra = Relu(ca) cb = Conv <pads = [1, 1, 1, 1]> (ra, b) rb = Relu(cb)
    m = Mul(rb, hf) cc = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (m, c) rc = Relu(cc)
    f = Flatten(rc) g = Gemm <transB = 1> (f, d) shape = Concat <axis = 0> (n, five) t = Expand(token, shape)
    y = Add(g, t)"""


def by_image() -> onnx.ModelProto:
    model = fill(parse(BY_IMAGE, "float[N,3,H,W] image"), WEIGHTS)
    return prepare(model).model


def test_what_grows_with_the_images_is_counted_in_any_block() -> None:
    network = import_model(by_image())
    folded = fold_sizes(network, [torch.zeros(1, 3, 8, 8)])
    targets = [node.target for node in folded.graph.nodes]
    assert batch_sizes in targets
    assert "shape" not in [getattr(target, "__name__", "") for target in targets]
    assert "shape" in [getattr(node.target, "__name__", "") for node in network.graph.nodes]
    for count in (1, 5):
        x = torch.from_numpy(images(count, 8, 8))
        torch.testing.assert_close(folded(x), network(x), rtol=0, atol=0)
        (inner,) = extract(folded, ["image"], ["rc"])(x)
        torch.testing.assert_close(extract(folded, ["rc"], ["y"])(inner), network(x), rtol=0, atol=0)


def test_sizes_are_no_inputs_of_blocks() -> None:
    plan = make_plan(by_image(), PlanOptions.of(BitWidths(4, 4)))

    def ends(block: Block) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return block.inputs, block.outputs

    assert [ends(block) for block in plan.blocks] == [
        (("image",), ("ra",)),
        (("ra",), ("m",)),
        (("m",), ("rc",)),
        (("rc",), ("y",)),
    ]
    assert "hf" not in plan.points
    result = quantize(by_image(), calib=images(12, 8, 8), eval=images(4, 8, 8), bits="8/8", options=TINY)
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 0.02


def test_a_network_without_shape_arithmetic_stays_as_it_is() -> None:
    network = import_model(prepare(fill(parse("y = Conv(image, a)"), WEIGHTS)).model)
    assert fold_sizes(network, [torch.zeros(1, 3, 8, 8)]) is network
