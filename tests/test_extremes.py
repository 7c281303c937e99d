"""Networks and data at the ends of what float32 holds: as good as ordinary ones, or it is said why not."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest

from pdq_export.commands.quantize import Result, quantize
from pdq_export.errors import ModelError

CHAIN = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,10,10] image) => (float[N,5] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
    r1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w3)
}"""
OPTIONS = {"samples": 48, "iters": 20, "correction_iters": 5, "batch_size": 16, "search_samples": 48}


def network(k: float = 1.0, back: float | None = None) -> onnx.ModelProto:
    """The first layer times ``k``, the second one over it: the same function in float."""
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(CHAIN)
    back = 1 / k if back is None else back
    for name, shape, factor in (
        ("w1", (8, 3, 3, 3), 0.27 * k),
        ("b1", (8,), 0.1 * k),
        ("w2", (8, 8, 3, 3), 0.17 * back),
        ("b2", (8,), 0.1),
        ("w3", (5, 8), 0.6),
    ):
        value = (generator.normal(size=shape) * factor).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def pictures(count: int, seed: int) -> np.ndarray:
    """Noise about a brightness of each picture's own."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 3, 10, 10)) * 0.5 + generator.normal(size=(count, 3, 1, 1))
    return x.astype(np.float32)


def signal_to_noise(original: onnx.ModelProto, result: Result) -> float:
    """In dB, of what differs between images that calibration has not seen."""
    held = pictures(48, 1)
    a, b = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"image": held}
        )[0]
        for m in (original, result.model)
    )
    return float(10 * np.log10(np.square(a - a.mean(0)).sum() / np.square(a - b).sum()))


@pytest.mark.parametrize("preset", ["fast", "nearest"])
@pytest.mark.parametrize("k", [1.0, 1e-36, 1e-20, 1e-12, 1e-8, 1e11, 1e15, 1e30])
def test_a_network_whose_layers_are_far_apart(k: float, preset: str, caplog: pytest.LogCaptureFixture) -> None:
    model = network(k)
    method = {"method": "nearest", "options": {"samples": 48}} if preset == "nearest" else {"options": OPTIONS}
    result = quantize(model, bits="8/8", calib=pictures(48, 0), preset="fast", device="cpu", **method)
    assert signal_to_noise(model, result) > 25
    assert not caplog.records


def test_weights_without_a_normal_scale_are_refused_with_a_remedy() -> None:
    model, x = network(1e-38, back=2.0**100), pictures(48, 0)
    with pytest.raises(
        ModelError, match=r"the largest value of its weight 'w1' is 6\.48e-39; .* by a power of two"
    ) as refused:
        quantize(model, bits="8/8", calib=x, method="nearest", device="cpu")
    assert "--exclude" not in str(refused.value)  # its output would have no scale either
    for name, factor in (("w1", 2.0**100), ("b1", 2.0**100), ("w2", 2.0**-100)):
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        value = onnx.numpy_helper.to_array(tensor).astype(np.float64) * factor
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    result = quantize(model, bits="8/8", calib=x, method="nearest", device="cpu")
    assert result.report.outputs[0].quantized_float.median_relative_error < 0.05


@pytest.mark.parametrize("dead", [0.0, 1e-30])
def test_channels_next_to_nothing_beside_ordinary_ones(dead: float) -> None:
    """Weights of a channel, or of a whole layer whose biases are all it has."""
    for chosen in (slice(2, 3), slice(None)):
        model = network()
        (tensor,) = (t for t in model.graph.initializer if t.name == "w2")
        weight = onnx.numpy_helper.to_array(tensor).copy()
        weight[chosen] = dead
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "w2"))
        result = quantize(model, bits="8/8", calib=pictures(48, 0), options=OPTIONS, device="cpu")
        assert result.report.outputs[0].quantized_float.median_relative_error < 0.03


def test_outputs_and_inputs_far_from_1() -> None:
    """The whole network is small: inputs of 1e-12, outputs of 1e-20."""
    model = network(1.0, back=1e-8)
    for tensor, factor in (("w1", 1e12), ("b2", 1e-8), ("w3", 1e-12)):
        (found,) = (t for t in model.graph.initializer if t.name == tensor)
        found.CopyFrom(onnx.numpy_helper.from_array((onnx.numpy_helper.to_array(found) * np.float32(factor)), tensor))
    x = pictures(48, 0) * np.float32(1e-12)
    result = quantize(model, bits="8/8", calib=x, options=OPTIONS, device="cpu")
    agreement = result.report.outputs[0].quantized_float
    assert agreement.median_sqnr_db is not None
    assert agreement.median_sqnr_db > 28


def spoilt(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[3, 0, 0, 0], x[40, 1, 5, 5] = 3e4, -1e5
    return x


def test_two_damaged_images_do_not_set_the_scales(caplog: pytest.LogCaptureFixture) -> None:
    x, model = pictures(48, 0), network()
    clean = quantize(model, bits="8/8", calib=np.delete(x, [3, 40], axis=0), options=OPTIONS, device="cpu")
    assert not caplog.records
    result = quantize(model, bits="8/8", calib=spoilt(x), options=OPTIONS, device="cpu")
    assert all(np.array_equal(q.scale, result.tensors[name].scale) for name, q in clean.tensors.items())
    assert result.report.settings["calibration_outliers"] == [3, 40]
    (record,) = caplog.records
    assert "calibration leaves out 2 of the 48 images" in record.getMessage()
    assert "number 3, 40, counted from 0" in record.getMessage()


def test_what_single_images_rule_is_judged_by_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Calibrated on the two, though nobody would: hardly a word about the sum over all images, which looks well."""
    x, model = spoilt(pictures(48, 0)), network()
    large = np.concatenate([x[[3, 40]] * np.float32(k) for k in np.geomspace(0.2, 1, 8)])
    with caplog.at_level(logging.WARNING):
        result = quantize(model, bits="8/8", calib=large, eval=x, method="nearest", device="cpu")
    agreement = result.report.outputs[0].quantized_float
    assert agreement.sqnr_db is not None
    assert agreement.sqnr_db > 20
    assert agreement.median_relative_error > 0.9
    assert "of FP32's output, or more, on half of the images" in caplog.text
