"""The exported graph in onnxruntime against a simulation in numpy that knows only the plan."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from pdq_export.export import Packing, export_model, required_opset
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths
from pdq_export.validate import count_kernels

from . import toy_networks as nets
from .toy_quantizer import calibrate, simulate

NETS = {"chain": (nets.chain, (4, 3, 12, 12)), "residual": (nets.residual, (4, 4, 12, 12))}


def run(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def quantize(name: str, bits: str, opset: int | None = None, packing: Packing = Packing.BYTES):
    make, shape = NETS[name]
    x = nets.images(shape)
    widths = BitWidths.parse(bits)
    model = make(opset or required_opset(make_plan(make(), PlanOptions.of(widths)), packing=packing))
    plan = make_plan(model, PlanOptions.of(widths))
    tensors = calibrate(model, plan, {"x": x})
    return model, plan, tensors, export_model(model, plan, tensors, metadata={}, packing=packing), x


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("bits", ["8/8", "7/6", "6/8", "5/4", "4/4", "3/5", "2/4", "4/2", "2/2"])
def test_onnxruntime_computes_what_the_plan_says(name, bits, packing, small_weights_are_packed):
    model, plan, tensors, exported, x = quantize(name, bits, packing=packing)
    simulated = simulate(model, plan, tensors, {"x": x})["logits"]
    plain, optimized = run(exported, x, optimize=False), run(exported, x)
    np.testing.assert_allclose(plain, simulated, rtol=0, atol=1e-5)
    np.testing.assert_allclose(optimized, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("bits", ["8/8", "7/7", "4/4", "3/3", "2/2"])
def test_every_layer_runs_in_integers(name, bits, packing, small_weights_are_packed):
    _, plan, _, exported, _ = quantize(name, bits, packing=packing)
    kernels = count_kernels(exported.SerializeToString())
    assert kernels.all_integer
    assert kernels.integer == {"QLinearConv": len(plan.layers) - 1, "QGemm": 1}


@pytest.mark.parametrize("bits", ["8/8", "7/6", "6/6", "4/4"])
@pytest.mark.parametrize("channels", [4, 256])  # zero points are stored, or made by a node
def test_it_loads_with_kernels_that_do_not_saturate(monkeypatch: pytest.MonkeyPatch, bits: str, channels: int) -> None:
    """onnxruntime then replaces zero points of weights, and does not load a file in which two weights share one."""
    monkeypatch.undo()  # of the plan with a reduced range
    body = "{ c1 = Conv(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) r2 = Relu(c2) c3 = Conv(r2, w3) y = Relu(c3) }"
    shape = (channels, channels, 1, 1)
    model = nets.network(
        f"(float[N,3,6,6] x) => (float[N,{channels},6,6] y) {body}",
        {"w1": (channels, 3, 1, 1), "w2": shape, "w3": shape},
    )
    x = nets.images((2, 3, 6, 6))
    plan = make_plan(model, PlanOptions.of(BitWidths.parse(bits)))
    exported = export_model(model, plan, calibrate(model, plan, {"x": x}), metadata={})
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(exported.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], run(exported, x, optimize=False), rtol=0, atol=1e-5)


def test_inner_tensors_are_equal_bit_for_bit_with_and_without_optimization():
    """All but the last layer compute integers, so a network cut there has nothing left to differ in."""
    *_, exported, x = quantize("residual", "4/4")
    exported.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("r3_dequantized", onnx.TensorProto.FLOAT, None)
    )
    assert (run(exported, x) == run(exported, x, optimize=False)).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_every_form_gives_the_same_result(bits, request):
    widths, opset = f"{bits}/{bits}", 25 if bits == 2 else 21
    *_, plain, x = quantize("residual", widths, opset)
    *_, typed, _ = quantize("residual", widths, opset, Packing.TYPES)
    request.getfixturevalue("small_weights_are_packed")
    *_, packed, _ = quantize("residual", widths, opset)
    types = [{tensor.data_type for tensor in file.graph.initializer} for file in (plain, typed, packed)]
    narrow = getattr(onnx.TensorProto, f"UINT{bits}")
    assert [narrow in found for found in types] == [False, True, False]
    assert ["Gather" in {node.op_type for node in file.graph.node} for file in (plain, packed)] == [False, True]
    assert (run(packed, x) == run(plain, x)).all()
    assert (run(typed, x) == run(plain, x)).all()


def test_any_batch_size_runs():
    *_, exported, _ = quantize("residual", "4/4")
    x = nets.images((3, 4, 12, 12))
    together = run(exported, x)
    assert together.shape == (3, 10)
    np.testing.assert_allclose(run(exported, x[1:2]), together[1:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("style", OptimizationStyle)
@pytest.mark.parametrize("bits", ["2/2", "3/3", "6/6"])
def test_the_tool_for_onnxruntimes_own_format(bits, style, tmp_path, small_weights_are_packed):
    """Which folds what unpacks weights in both styles."""
    *_, exported, x = quantize("residual", bits)
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.SerializeToString())
    convert_onnx_models_to_ort(path, optimization_styles=[style])
    (stored,) = tmp_path.glob("*.ort")
    session = onnxruntime.InferenceSession(str(stored), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], run(exported, x), rtol=0, atol=1e-5)
