"""Ranges of channels and what follows from them, up to the file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import fx

from pdq_export.calibrate.equalization import channel_factors, channel_factors_of_scales
from pdq_export.calibrate.subgraph import extract
from pdq_export.commands.quantize import Result, quantize
from pdq_export.frontend import import_model
from pdq_export.spec import ChannelStatistics, Plan

from .onnx_text import fill, name_nodes, parse

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


def clipped_network() -> onnx.ModelProto:
    """The same with a ReLU6, which ends the first channels; the others have half the range of the one before."""
    model = fill(parse(NETWORK.replace("r = Relu(c)", "r = Clip(c, zero, six)")), SHAPES)
    less = 0.5 ** np.arange(8, dtype=np.float32).reshape(-1, 1, 1, 1)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        by = {"w": 8 * less, "b": 8 * less.reshape(-1), "depth": 1 / less}.get(tensor.name)
        if by is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array((value * by).astype(np.float32), tensor.name))
    for name, value in (("zero", 0.0), ("six", 6.0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    return model


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)


def run(method: str, model: onnx.ModelProto | None = None, bits: str = "4/4", **options: object) -> Result:
    budget = {} if method == "nearest" else {"iters": 4, "correction_iters": 1, "batch_size": 8}
    settings = {"samples": 16, "search_samples": 16, **budget, **options}
    model = network() if model is None else model
    return quantize(model, bits=bits, calib=images(), method=method, options=settings, device="cpu")


def error(result: Result) -> float:
    (output,) = result.report.outputs
    return output.quantized_float.relative_error


def ranges(x: torch.Tensor, factors: list[float]) -> np.ndarray:
    """The factors for Relu(x) times these per-channel factors."""
    model = parse("a = Relu(image) y = Mul(a, k)", outputs="float[N,3,8,8] y")
    values = np.array(factors, np.float32).reshape(1, 3, 1, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "k"))
    return channel_factors(import_model(model), ["y"], [x])["y"]


def test_factors_bring_channels_to_the_largest_range() -> None:
    x = torch.tensor([1.0, 3.0, 2.0, 0.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    np.testing.assert_allclose(ranges(x, [1, 0.1, 0.001]), [1, 10, 16], rtol=1e-5)
    np.testing.assert_array_equal(ranges(-x, [1, 1, 1]), [1, 1, 1])  # nothing passes Relu
    np.testing.assert_allclose(ranges(x, [1, 0, 0.5]), [1, 1, 2])  # one channel never speaks


def test_images_are_taken_from_all_over_the_set() -> None:
    x = torch.ones(200, 3, 8, 8)
    x[:100, 1] = 0.0  # sorted by class: the second channel is quiet in the first
    np.testing.assert_allclose(ranges(x, [1, 1, 1]), [1, 2, 1])


def test_unequal_channels_lose_less() -> None:
    on, off = (run("nearest", equalize_channels=value) for value in (True, False))
    assert error(on) < error(off) / 2
    (output,) = on.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3


def test_integers_end_at_the_bound_of_relu6_or_before_whatever_is_learned() -> None:
    """At a rate that would carry the scale beyond."""
    result = run("qdrop", clipped_network(), "8/4", scale_lr=1.0, iters=20)
    assert result.report.settings["equalized_tensors"] == ["r"]
    learned = result.tensors["r"]
    assert np.rint(6 / learned.scale) >= learned.point.qmax
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3


def test_factors_of_scales_are_what_channels_alone_would_take() -> None:
    rng = np.random.default_rng(0)
    x = (
        torch.from_numpy(rng.uniform(size=(8, 3, 8, 8)).astype(np.float32))
        * torch.tensor([6.0, 3.0, 0.0])[:, None, None]
    )
    module = import_model(parse("y = Relu(image)", outputs="float[N,3,8,8] y"))
    found = channel_factors_of_scales(module, {"y": 15}, [x])["y"]
    np.testing.assert_allclose(found, [1, 2, 1], rtol=0.1)

    def error(factor: float) -> float:
        """Of the second channel, at the scale that the first one takes."""
        scaled = x[:, 1] * factor * 15 / 6
        return float((scaled.round().clamp(0, 15) - scaled).square().mean()) / factor**2

    assert error(float(found[1])) < error(1.0) / 3
    x[:, 1] /= 100
    assert channel_factors_of_scales(module, {"y": 15}, [x])["y"][1] == 4


@pytest.mark.parametrize("method", ["pdq", "adaround"])
def test_methods_that_learn_have_it(method: str) -> None:
    on, off = run(method), run(method, equalize_channels=False)
    assert on.report.settings["equalize_channels"] is True
    assert error(on) < error(off) / 2
    assert on.model == run(method).model


def test_rounding_to_nearest_does_without() -> None:
    assert run("nearest").model.graph == run("nearest", equalize_channels=False).model.graph


def test_the_report_names_the_tensors() -> None:
    assert run("nearest", equalize_channels=True).report.settings["equalized_tensors"] == ["r"]
    assert run("nearest").report.settings["equalized_tensors"] == []


def test_layers_left_in_float_keep_their_weights() -> None:
    settings = {"samples": 16, "search_samples": 16, "equalize_channels": True}
    model = name_nodes(network())
    result = quantize(model, calib=images(), method="nearest", options=settings, exclude=["^d$"], device="cpu")
    assert result.report.settings["equalized_tensors"] == []


@pytest.mark.parametrize("batch", ["N", "4"])
@pytest.mark.parametrize("tail", [False, True])
def test_statistics_and_the_rest_of_the_graph_go_along(monkeypatch: pytest.MonkeyPatch, batch: str, tail: bool) -> None:
    """What calibration is handed: a network whose layer outputs have the statistics that come with it."""
    text = NETWORK.replace("d = Conv", "o = BatchNormalization(c, gamma, beta, mean, var) q = Relu(o) d = Conv")
    text = text.replace("(r, depth)", "(q, depth)").replace("r = Relu(c)", "")
    end = " k = Constant <value_ints = [2]> () top, at = TopK <axis = 1> (y, k)" if tail else ""
    outputs = f"float[{batch},2] top, int64[{batch},2] at" if tail else f"float[{batch},5] y"
    model = fill(parse(text + end, inputs=f"float[{batch},3,8,8] image", outputs=outputs), SHAPES)
    x = images(64)
    weight, bias = (onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ("w", "b"))
    z = torch.conv2d(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), padding=1)
    moments = {"mean": z.mean((0, 2, 3)), "var": z.var((0, 2, 3)), "gamma": torch.from_numpy(APART.reshape(-1))}
    moments["beta"] = torch.zeros(8)
    for name, value in moments.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    handed: list[tuple[Any, ...]] = []

    def stop(network: fx.GraphModule, plan: Plan, statistics: Mapping[str, ChannelStatistics], *_: Any, **__: Any):
        handed.append((network, statistics))
        raise KeyboardInterrupt

    monkeypatch.setattr("pdq_export.commands.calibrating.calibrate", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, calib=x, options={"samples": 64}, device="cpu")
    ((module, statistics),) = handed
    ((name, known),) = statistics.items()
    with torch.no_grad():
        (y,) = extract(module, ["image"], [name])(torch.from_numpy(x))
    np.testing.assert_allclose(y.mean((0, 2, 3)), known.mean, atol=1e-2 * float(known.std.max()))
    np.testing.assert_allclose(y.std((0, 2, 3)), known.std, rtol=1e-2)
    assert known.std.max() / known.std.min() < 4.0**7 / 10
