"""Ranges of channels and what follows from them, up to the file."""

import numpy as np
import onnx
import pytest
import torch

from pdq_export.calibrate.equalization import channel_factors
from pdq_export.frontend import import_model
from pdq_export.pipeline import Result, quantize

from .onnx_text import fill, parse

PAD = "pads = [1, 1, 1, 1]"
NETWORK = f"""c = Conv <{PAD}> (image, w, b) r = Relu(c) d = Conv <{PAD}, group = 8> (r, depth) e = Relu(d)
    f = Conv(e, point) g = Relu(f) p = GlobalAveragePool(g) v = Flatten(p) y = Gemm <transB = 1> (v, classes)"""
SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "depth": (8, 1, 3, 3), "point": (8, 8, 1, 1), "classes": (5, 8)}
APART = 4.0 ** np.arange(8).astype(np.float32).reshape(-1, 1, 1, 1)  # what channels of one importance differ by


def network() -> onnx.ModelProto:
    """Channels between the first two layers have ranges from 1 to 4^7, which the second layer makes up for."""
    model = fill(parse(NETWORK), SHAPES)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        by = {"w": APART, "b": APART.reshape(-1), "depth": 1 / APART}.get(tensor.name)
        if by is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array((value * by).astype(np.float32), tensor.name))
    return model


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)


def run(method: str, **options: object) -> Result:
    budget = {} if method == "nearest" else {"iters": 4, "correction_iters": 1, "batch_size": 8}
    settings = {"samples": 16, "search_samples": 16, **budget, **options}
    return quantize(network(), bits="4/4", calib=images(), method=method, options=settings, device="cpu")


def error(result: Result) -> float:
    (output,) = result.report.outputs
    return output.quantized_float.relative_error


def test_factors_bring_channels_to_the_largest_range() -> None:
    model = parse("a = Relu(image) y = Mul(a, k)", outputs="float[N,3,8,8] y")
    values = np.array([1, 0.1, 0.001], np.float32).reshape(1, 3, 1, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "k"))
    x = torch.tensor([1.0, 3.0, 2.0, 0.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    module = import_model(model)
    np.testing.assert_allclose(channel_factors(module, ["y"], [x])["y"], [1, 10, 64], rtol=1e-5)
    np.testing.assert_array_equal(channel_factors(module, ["y"], [-x])["y"], [1, 1, 1])  # nothing passes Relu
    whole = channel_factors(module, ["a"], [torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    assert whole["a"].min() == 1 < whole["a"].max() < 2


def test_a_channel_that_never_speaks_keeps_its_weights() -> None:
    model = parse("a = Relu(image) y = Mul(a, k)", outputs="float[N,3,8,8] y")
    values = np.array([1, 0, 0.5], np.float32).reshape(1, 3, 1, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "k"))
    np.testing.assert_allclose(channel_factors(import_model(model), ["y"], [torch.ones(2, 3, 8, 8)])["y"], [1, 1, 2])


def test_unequal_channels_lose_less() -> None:
    on, off = (run("nearest", equalize_channels=value) for value in (True, False))
    assert error(on) < error(off) / 2
    (output,) = on.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3


@pytest.mark.parametrize("method", ["pd-quant", "adaround"])
def test_it_is_part_of_the_short_presets(method: str) -> None:
    on, off = run(method), run(method, equalize_channels=False)
    assert on.report.settings["equalize_channels"] is True
    assert error(on) < error(off) / 2
    assert on.model == run(method).model


def test_rounding_to_nearest_does_without() -> None:
    assert run("nearest").model == run("nearest", equalize_channels=False).model
