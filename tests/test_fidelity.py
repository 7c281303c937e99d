"""Whatever is done to a model before calibration is held against the user's file in onnxruntime."""

import logging
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pdq_export import fidelity, inspect_model
from pdq_export.commands.quantize import quantize
from pdq_export.errors import ModelError, ValidationError, percent
from pdq_export.fidelity import Fidelity, Probe, UserFile
from pdq_export.frontend import import_model
from pdq_export.frontend.ops import activation
from pdq_export.graph.passes import (
    equalize,
    fold_affine,
    fold_batch_norm,
    fold_reshape,
    free_batch,
    inline,
    raise_opset,
    simplify,
    to_float32,
)
from pdq_export.graph.prepare import prepare
from pdq_export.validate import Comparison, Measurements, Session, validate

from .onnx_text import fill, parse

SHAPES = {"w": (8, 3, 3, 3), "dw": (8, 1, 3, 3), "v": (5, 8), "gamma": (8,), "beta": (8,), "mean": (8,), "bias": (5,)}
IMAGES = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
TINY = {"iters": 4, "correction_iters": 1, "samples": 16, "batch_size": 8, "search_samples": 8}
BODY = """
    c = Conv<pads = [1, 1, 1, 1]>(image, w)
    n = BatchNormalization(c, gamma, beta, mean, variance)
    r = local.slope<slope: float = 0.2>(n)
    d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, dw)
    e = Relu(d)
    p = GlobalAveragePool(e)
    f = Reshape(p, to)
    m = MatMul(f, vt)
    y = Add(m, bias)
"""


def network(batch: str = "N") -> onnx.ModelProto:
    """A model that every step of preparation has something to do in."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 11, "local": 1]>
        g (float[{batch},3,8,8] image) => (float[{batch},5] y) {{ {BODY} }}
        <domain: "local", opset_import: ["": 11]> slope <slope> (x) => (y) {{
            y = LeakyRelu<alpha: float = @slope>(x) }}"""
    )
    fill(model, SHAPES)
    values = {"variance": np.full(8, 2, np.float32), "vt": np.random.default_rng(1).normal(size=(8, 5)) / 3}
    values |= {"to": np.array([int(batch) if batch.isdigit() else -1, 8], np.int64)}
    for name, value in values.items():
        typed = value if value.dtype == np.int64 else value.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(typed, name))
    return model


def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
    """Adds 10 to one element of the first float constant with several."""
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        if value.size > 4 and value.dtype == np.float32:
            value.reshape(-1)[0] += 10
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
            return model
    raise AssertionError("no constant")


def spoil(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.run

    def run(*args, **options):
        result = right(*args, **options)
        return (wrong(result[0]), *result[1:]) if isinstance(result, tuple) else wrong(result)

    monkeypatch.setattr(module, "run", run)


def forbid_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    def calibrate(*_: object, **__: object) -> None:
        raise AssertionError("calibration began")

    monkeypatch.setattr("pdq_export.commands.calibrating.calibrate", calibrate)


STEPS = [
    (inline, "after inlining its functions"),
    (simplify, r"after simplifying it \(constants, HardSwish, onnxsim\)"),
    (fold_reshape, "after making shapes constant"),
    (fold_batch_norm, "after folding BatchNormalization"),
    (fold_affine, "after folding BatchNormalization and factors into layers"),
    (raise_opset, "after raising its opset"),
    (equalize, "after equalizing channels.*--set equalize_channels=false"),
]


@pytest.mark.parametrize(("module", "message"), STEPS, ids=[module.__name__.split(".")[-1] for module, _ in STEPS])
def test_a_step_that_goes_wrong_is_named_before_calibration(
    module: ModuleType, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(module, monkeypatch)
    forbid_calibration(monkeypatch)
    with pytest.raises(ModelError, match=rf"output 'y': it is [\d.e+]+ % off the file's {message}"):
        quantize(network(), calib=IMAGES, options=TINY)


def test_freeing_the_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(free_batch, monkeypatch)
    forbid_calibration(monkeypatch)
    monkeypatch.setattr("pdq_export.work.check_batch", lambda *_: None)
    with pytest.raises(ModelError, match=r"after freeing its batch size.*; export it with a dynamic batch axis"):
        quantize(network("2"), calib=IMAGES, options=TINY)


def test_an_operator_that_the_network_computes_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation.F, "leaky_relu", lambda x, *_, **__: torch.relu(x))
    forbid_calibration(monkeypatch)
    with pytest.raises(ModelError, match=r"after importing node '.*' \(LeakyRelu\).*; replace this node"):
        quantize(network(), calib=IMAGES, options=TINY)
    (problem,) = [text for text in inspect_model(network()).problems if "LeakyRelu" in text]
    assert "on random inputs" in problem


def test_inspection_holds_the_model_against_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect_model(network()).problems == ()
    spoil(inline, monkeypatch)
    (problem,) = inspect_model(network()).problems
    assert "after inlining its functions, on random inputs" in problem


@pytest.mark.parametrize("shape", ["N,T,8", "N,T,T,8", "2,T,8"])
def test_inspection_guesses_the_sizes_of_open_axes(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "m = MatMul(x, v) r = LeakyRelu<alpha = 0.2>(m) p = ReduceMean<axes = [1], keepdims = 0>(r) y = Relu(p)"
    outputs = f"float[{shape[0]}{',T' * (shape.count(',') - 2)},5] y"
    model = fill(parse(body, f"float[{shape}] x", outputs), {"v": (8, 5)})
    assert inspect_model(model).problems == ()
    monkeypatch.setattr(activation.F, "leaky_relu", lambda x, *_, **__: torch.relu(x))
    assert any("on random inputs" in text for text in inspect_model(model).problems)


def test_the_fp32_column_is_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes themselves: neither inlined nor widened."""
    seen: list[Comparison] = []

    def validated(comparison: Comparison, **options: Any) -> Measurements:
        seen.append(comparison)
        return validate(comparison, **options)

    monkeypatch.setattr("pdq_export.commands.evaluate.validate", validated)
    model = network()
    report = quantize(model, calib=IMAGES, options=TINY).report
    assert seen[0].original == model.SerializeToString(deterministic=True)
    assert seen[0].optimize
    assert report.model.size == len(model.SerializeToString())


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16 throughout."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float16), tensor.name))
    return model


def probes(images: np.ndarray, batch: int | None = None) -> list[Probe]:
    return [Probe.of([images], batch, "images")]


def test_a_float16_file_is_held_to_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    file = UserFile.of(half(network()))
    assert file.precision == fidelity.FLOAT16
    assert onnx.load_model_from_string(file.content).graph.input[0].type.tensor_type.elem_type == 10
    assert Fidelity(file, probes(IMAGES), ["y"])
    spoil(to_float32, monkeypatch)
    with pytest.raises(ModelError, match=r"after computing in float32.*; export it in float32"):
        Fidelity(file, probes(IMAGES), ["y"])


def test_float16_numbers_that_overflow_are_told() -> None:
    model = half(network())
    scaled = Fidelity(UserFile.of(model), probes(IMAGES), ["y"])
    scaled.check_finite()
    broken = Fidelity(UserFile.of(model), probes(np.full_like(IMAGES, 1e6)), ["y"])
    with pytest.raises(ModelError, match="output 'y': the model computes NaN or infinity on images"):
        broken.check_finite()


def test_a_file_that_onnxruntime_does_not_load_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = parse("a = Conv(image, w) b = Relu(a) p = GlobalAveragePool(b) y = Flatten(p)", "double[N,3,8,8] image")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    value = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, "w"))
    file = UserFile.of(model)
    assert "is compared in float32 and with distinct names" in caplog.text
    Fidelity(file, probes(IMAGES), ["y"])


def transposed_vector() -> onnx.ModelProto:
    """Onnxruntime fuses Transpose and MatMul with a vector to what multiplies along another axis."""
    body = "c = Conv(image, w) t = Transpose<perm = [0, 1, 3, 2]>(c) m = MatMul(t, v) y = Relu(m)"
    return fill(parse(body, outputs="float[N,4,6] y"), {"w": (4, 3, 3, 3), "v": (6,)})


def optimized(model: onnx.ModelProto, level: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(
        None, {"image": IMAGES[:2]}
    )[0]


def test_a_file_that_onnxruntime_optimizes_wrongly(caplog: pytest.LogCaptureFixture) -> None:
    model = transposed_vector()
    plain, other = (optimized(model, level) for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"))
    if np.allclose(plain, other, 1e-4, 1e-4):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} does not have this fault")
    held = Fidelity(UserFile.of(model), probes(IMAGES), ["y"])
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    size = np.linalg.norm(plain - other) / np.linalg.norm(plain)
    assert record.args == ("y", onnxruntime.__version__, percent(size))
    held.check_model(model)
    assert held.reference().content(model) == model.SerializeToString(deterministic=True)
    assert not held.reference().optimize


def test_the_quantized_file_of_one_that_onnxruntime_optimizes_wrongly() -> None:
    """It is compared with the file as it is written, and does not have the operator that goes wrong."""
    options = {**TINY, "learn_rounding": False}
    report = quantize(transposed_vector(), bits="8/8", calib=IMAGES, options=options, reduce_range=True).report
    (output,) = report.outputs
    assert output.quantized_float.relative_error < 0.05
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3


def test_a_file_that_needs_optimizations_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(content: bytes, *, optimize: bool) -> Session:
        if not optimize:
            raise ValidationError("no kernel")
        return Session(content)

    monkeypatch.setattr(fidelity, "Session", session)
    held = Fidelity(UserFile.of(network()), probes(IMAGES), ["y"])
    held.check_model(prepare(network()).model)
    with pytest.raises(ModelError, match=r"output 'y': it is .* % off the file's"):
        held.check_model(wrong(prepare(network()).model))


def test_a_file_that_onnxruntime_optimizes_rightly(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    held = Fidelity(UserFile.of(model), probes(IMAGES), ["y"])
    assert held.reference().content(model) == model.SerializeToString(deterministic=True)
    assert held.reference().optimize
    assert not caplog.records


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("q = Softmax(y0) y = ArgMax<axis = 1>(q)", "int64[N,1] y"),
        ("m = ReduceMean<axes = [1], keepdims = 1>(y0) z = Sub(y0, y0) g = Greater(z, m) y = Cast<to = 1>(g)", ""),
        ("y, i = TopK<axis = 1, largest = 1>(y0, k)", "float[N,2] y, int64[N,2] i"),
    ],
)
def test_thresholds_and_sorts_are_not_refused(body: str, outputs: str) -> None:
    """Images on which rounding decides: all classes have the same score but for it."""
    head = "c = Conv(image, w) n = Mul(c, s) p = GlobalAveragePool(n) y0 = Flatten(p) "
    model = fill(parse(head + body, outputs=outputs or "float[N,K] y"), {"w": (8, 3, 3, 3)})
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[1:] = weights[:1]
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    scale = np.random.default_rng(0).choice([1 / 3, 1 / 7], (8, 1, 1)).astype(np.float32)
    scale[1:] = scale[:1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(scale, "s"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "k"))
    held = Fidelity(UserFile.of(model), probes(IMAGES), [value.name for value in model.graph.output])
    prepared = prepare(model)
    held.check_model(prepared.model)
    held.check_network(import_model(prepared.model), prepared, prepared.model)


def beside_chaos() -> onnx.ModelProto:
    """Its output z is another with every rounding; y is not."""
    body = "c = Conv(image, w) p = GlobalAveragePool(c) y = Flatten(p) m = Mul(y, large) z = Sin(m)"
    model = fill(parse(body, outputs="float[N,8] y, float[N,8] z"), {"w": (8, 3, 3, 3)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e7), "large"))
    return model


def too_large(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = onnx.numpy_helper.to_array(changed.graph.initializer[0]) * np.float32(1.3)
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    return changed


def test_a_wrong_output_beside_one_that_rounding_explains_is_told() -> None:
    """In the prepared model, in the network, and in a step."""
    model = beside_chaos()
    held = Fidelity(UserFile.of(model), probes(IMAGES), ["y", "z"])
    with pytest.raises(ModelError, match="output 'y': it is 30 % off"):
        held.check_model(too_large(model))
    held.check_model(model)
    prepared = prepare(model)
    held.check_network(import_model(model), prepared, model)
    with pytest.raises(ModelError, match="output 'y': it is 30 % off"):
        held.check_network(import_model(too_large(model)), prepared, model)


@pytest.mark.parametrize("faulty", [True, False])
def test_a_wrong_output_of_the_freed_batch_beside_chaos_is_told(faulty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = beside_chaos()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    held = Fidelity(UserFile.of(model), [Probe.of([IMAGES], 1, "images")], ["y", "z"])
    prepared = prepare(model)
    held.check_model(prepared.model)
    freed = import_model(prepared.model)
    right = fidelity.compute_outputs

    def compute(network: object, inputs: tuple[np.ndarray, ...], *others: object) -> dict[str, np.ndarray]:
        outputs = dict(right(network, inputs, *others))  # type: ignore[arg-type]
        if network is freed and len(inputs[0]) > 1:
            outputs |= {"z": -outputs["z"], "y": outputs["y"] * np.float32(1.3 if faulty else 1)}
        return outputs

    monkeypatch.setattr(fidelity, "compute_outputs", compute)
    if not faulty:
        held.check_network(freed, prepared, model)
        return
    with pytest.raises(ModelError, match=r"output 'y': it is 30 % off.* after freeing its batch size"):
        held.check_network(freed, prepared, model)


@pytest.mark.parametrize("batch", [None, 1, 3, 64])
def test_probes_have_whole_batches(batch: int | None) -> None:
    probe = Probe.of([IMAGES], batch, "images")
    assert [len(part) for (part,) in probe.batches] == {None: [2], 1: [1, 1], 3: [3, 3], 64: [64]}[batch]


def test_what_the_tail_reads_is_compared_in_the_file(caplog: pytest.LogCaptureFixture) -> None:
    """The file's own tensor, where it has one of this name; a tensor that only preparation makes is the prepared's."""
    body = "c = Conv(image, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = NonZero(f)"
    model = fill(parse(body, outputs="int64[2,K] y"), {"w": (4, 3, 3, 3)})
    held = Fidelity(UserFile.of(model), probes(IMAGES), ["f"])
    assert held.reference().content(model) == model.SerializeToString(deterministic=True)
    held.check_model(model)
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    renamed.graph.node[-1].input[0] = renamed.graph.node[-2].output[0] = "other"
    held = Fidelity(UserFile.of(model), probes(IMAGES), ["other"])
    held.check_model(renamed)  # its other outputs
    assert held.reference().content(renamed) == renamed.SerializeToString(deterministic=True)
    assert not held.reference().optimize
