"""Convolution and pooling over random windows, against onnxruntime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pdq_export.frontend.ops.normalize import local_response_norm

from ..installed import onnxruntime_is
from .models import Array, assert_agree, feeds, one_node

Attributes = dict[str, Any]
SEEDS = range(30)


class Draw:
    """Random windows that onnxruntime accepts."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = int(self.rng.choice([1, 2, 2, 3]))
        self.sizes = [int(v) for v in self.rng.integers(7, 10, self.rank)]
        self.auto_pad = str(self.rng.choice(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))

    def data(self, *shape: int) -> Array:
        return self.rng.normal(size=shape).astype(np.float32)

    def ints(self, low: int, high: int, count: int | None = None) -> list[int]:
        return [int(v) for v in self.rng.integers(low, high + 1, self.rank if count is None else count)]

    def coin(self) -> bool:
        return bool(self.rng.integers(2))

    def window(self, *, dilations: bool = True) -> tuple[list[int], Attributes]:
        """A kernel no smaller than its stride: SAME would need negative pads, on which runtimes disagree."""
        strides = self.ints(1, 3)
        kernel = [max(stride, size) for stride, size in zip(strides, self.ints(1, 4), strict=True)]
        attributes: Attributes = {"strides": strides}
        if self.auto_pad != "NOTSET":
            return kernel, attributes | {"auto_pad": self.auto_pad}
        if dilations and self.coin():
            attributes["dilations"] = self.ints(1, 2)
        if self.coin():  # the same on both sides, by half a window: torch's own padding
            attributes["pads"] = [size // 2 for size in kernel] * 2
        else:
            attributes["pads"] = [int(self.rng.integers(0, size)) for size in kernel * 2]
        return kernel, attributes


def check(op_type: str, inputs: list[Array | None], opset: int, attributes: Attributes, outputs: int = 1) -> None:
    model = one_node(op_type, inputs, opset, attributes, outputs=outputs)
    assert_agree(model, feeds(model, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_conv(seed: int) -> None:
    draw = Draw(seed)
    kernel, attributes = draw.window()
    group = int(draw.rng.choice([1, 2, 4]))
    inputs = [draw.data(2, 4, *draw.sizes), draw.data(8, 4 // group, *kernel), draw.data(8) if draw.coin() else None]
    opset = int(draw.rng.choice([9, 11, 22]))
    check("Conv", [v for v in inputs if v is not None], opset, attributes | {"group": group})


@pytest.mark.parametrize("seed", SEEDS)
def test_conv_transpose(seed: int) -> None:
    draw = Draw(seed)
    kernel, attributes = draw.window()
    group = int(draw.rng.choice([1, 2, 4]))
    attributes["group"] = group
    if draw.auto_pad == "NOTSET" and draw.coin():
        attributes["output_padding"] = [int(draw.rng.integers(0, stride)) for stride in attributes["strides"]]
    inputs = [draw.data(2, 4, *draw.sizes), draw.data(4, 3, *kernel), draw.data(3 * group) if draw.coin() else None]
    check("ConvTranspose", [v for v in inputs if v is not None], int(draw.rng.choice([9, 11, 22])), attributes)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("shrink", [[0, 0], [1, 3], [2, 1]])
def test_conv_transpose_output_shape(auto_pad: str, shrink: list[int]) -> None:
    draw = Draw(0)
    shape = [full - less for full, less in zip([12, 13], shrink, strict=True)]
    attributes = {"strides": [2, 2], "output_shape": shape, "auto_pad": auto_pad}
    check("ConvTranspose", [draw.data(2, 4, 5, 5), draw.data(4, 3, 4, 5), draw.data(3)], 11, attributes)


@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool(seed: int) -> None:
    draw = Draw(seed)
    kernel, attributes = draw.window()
    attributes |= {"kernel_shape": kernel, "ceil_mode": int(draw.auto_pad == "NOTSET" and draw.coin())}
    check("MaxPool", [draw.data(2, 3, *draw.sizes)], int(draw.rng.choice([10, 11, 12, 22])), attributes)


@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool_with_indices(seed: int) -> None:
    draw = Draw(seed)
    kernel, attributes = draw.window(dilations=False)
    attributes |= {"kernel_shape": kernel, "storage_order": int(draw.coin())}
    check("MaxPool", [draw.data(2, 3, *draw.sizes)], int(draw.rng.choice([10, 11, 12])), attributes, outputs=2)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_max_pool_of_integers(dtype: type) -> None:
    x = np.random.default_rng(0).integers(0, 100, (1, 2, 5, 5)).astype(dtype)
    check("MaxPool", [x], 12, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]})


@pytest.mark.parametrize("seed", SEEDS)
def test_average_pool(seed: int) -> None:
    draw = Draw(seed)
    opset = int(draw.rng.choice([10, 11, 19, 22]))
    kernel, attributes = draw.window(dilations=opset >= 19)
    attributes |= {"kernel_shape": kernel, "count_include_pad": int(draw.coin())}
    attributes["ceil_mode"] = int(draw.auto_pad == "NOTSET" and draw.coin())
    if attributes["count_include_pad"] and not onnxruntime_is("1.29" if opset < 19 else "1.25"):
        pytest.skip("this onnxruntime divides by the wrong number (`pdq_export/export/runtimes.py`)")
    check("AveragePool", [draw.data(2, 3, *draw.sizes)], opset, attributes)


@pytest.mark.parametrize("seed", SEEDS)
def test_lp_pool(seed: int) -> None:
    draw = Draw(seed)
    opset = int(draw.rng.choice([9, 11, 18, 22]))
    kernel, attributes = draw.window(dilations=opset >= 18)
    attributes |= {"kernel_shape": kernel, "p": int(draw.rng.integers(1, 4))}
    if opset >= 18:
        attributes["ceil_mode"] = int(draw.auto_pad == "NOTSET" and draw.coin())
    check("LpPool", [draw.data(2, 3, *draw.sizes)], opset, attributes)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_local_response_norm_of_even_sizes(size: int) -> None:
    """onnxruntime takes odd sizes only; the operator's formula holds for all."""
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    expected = np.empty_like(x)
    for channel in range(6):
        first, last = max(0, channel - (size - 1) // 2), min(5, channel + size // 2)
        squares = (x[:, first : last + 1] ** 2).sum(1)
        expected[:, channel] = x[:, channel] / (1.5 + 0.3 / size * squares) ** 0.75
    found = local_response_norm(torch.from_numpy(x), size=size, alpha=0.3, beta=0.75, bias=1.5)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_inputs_of_any_batch_and_size() -> None:
    """One imported model serves every batch and image size: nothing of the first input is remembered."""
    from pdq_export.frontend import import_model

    draw = Draw(0)
    attributes = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    inputs = [draw.data(1, 4, 8, 8), draw.data(6, 4, 3, 3)]
    module = import_model(one_node("Conv", inputs, 11, attributes, constants=(1,)))
    run: Callable[..., Any] = module
    for shape in ((1, 4, 8, 8), (3, 4, 7, 9), (2, 4, 12, 5)):
        assert run(torch.zeros(shape))[0].shape == (shape[0], 6, -(-shape[2] // 2), -(-shape[3] // 2))
