"""What QONNX's own package makes of our files: its executor, its clean-up and its conversions."""

import copy
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import pdq_export
import pdq_export.calib_data as calib_data
from pdq_export.calibrate import Calibrated
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.commands import finishing
from pdq_export.commands.evaluate import Evaluation, evaluate

from .onnx_text import fill, name_nodes, parse

pytest.importorskip("qonnx", reason="needs the package qonnx: pip install --no-deps -r tests/qonnx.txt")

from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.qcdq_to_qonnx import QCDQToQuant
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
from qonnx.util.cleanup import cleanup_model

DEPTHWISE = """c = Conv <pads = [1, 1, 1, 1]> (image, w1, b1) r = Relu(c)
    d = Conv <pads = [1, 1, 1, 1], group = 8> (r, w2, b1) lo = Constant <value_float = 0.0> ()
    hi = Constant <value_float = 6.0> () z = Clip(d, lo, hi) e = Conv (z, w3, b1) s = Add(e, r)
    f = Conv <pads = [1, 1, 1, 1], group = 8> (s, w2, b1) q = Relu(f) p = GlobalAveragePool(q) l = Flatten(p)
    y = Gemm <transB = 1> (l, w4, b4)"""
WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 8), "b4": (5,)}
CALIBRATED, IMAGES = 16, 8
TIE = 1e-6  # of a number, at least of one step: some roundings of float32


@pytest.fixture(autouse=True)
def _models_that_onnxruntime_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor makes models of the newest format of onnx, which may be newer than what onnxruntime takes."""
    monkeypatch.setattr(onnx, "IR_VERSION", 10)


def networks() -> dict[str, tuple[onnx.ModelProto, NDArray[np.float32]]]:
    with np.load(calib_data.path("calib.npz")) as archive:
        images = ((archive["images"][:CALIBRATED] / 255 - archive["mean"]) / archive["std"]).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(CALIBRATED, 3, 8, 8)).astype(np.float32)
    depthwise = name_nodes(fill(parse(DEPTHWISE), WEIGHTS))
    return {"embedded": (onnx.load(calib_data.path("fashion_resnet.onnx")), images), "depthwise": (depthwise, noise)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A calibrated network: its file, what it is to compute, and images."""

    qonnx: onnx.ModelProto
    simulation: torch.nn.Module
    images: NDArray[np.float32]

    @functools.cached_property
    def plain(self) -> ModelWrapper:
        """The file cleaned up, which its readers do not change."""
        return wrapped(self.qonnx)

    def simulated(self) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """The output, and what each activation is quantized to, by tensor."""
        points: dict[str, NDArray[np.float32]] = {}

        def note(quantizer: ActivationQuantizer, given: object, found: torch.Tensor) -> None:
            points[quantizer.point.tensor] = found.numpy()

        quantizers = [module for module in self.simulation.modules() if isinstance(module, ActivationQuantizer)]
        hooks = [quantizer.register_forward_hook(note) for quantizer in quantizers]
        with torch.no_grad():
            (output,) = self.simulation(torch.from_numpy(self.images))
        for hook in hooks:
            hook.remove()
        return output.numpy(), points


class Cases:
    """Calibrated networks by name, bits and kind of weights."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], Case] = {}

    def of(self, name: str, bits: str, weights: str) -> Case:
        """Calibrated once."""
        key = (name, bits, weights)
        if key not in self._known:
            model, images = networks()[name]
            options = {"bits": bits, "weights": weights, "method": "nearest", "device": "cpu", "target": "qonnx"}
            kept: list[Calibrated] = []

            def keep(evaluation: Evaluation, **others: Any) -> Any:
                kept.append(evaluation.calibrated)
                return evaluate(evaluation, **others)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(finishing, "evaluate", keep)
                written = pdq_export.quantize(model, calib=images, **options).model
            self._known[key] = Case(qonnx=written, simulation=kept[0].simulation, images=images[:IMAGES])
        return self._known[key]


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases()


def wrapped(model: onnx.ModelProto, **options: Any) -> ModelWrapper:
    """Cleaned up, for `IMAGES` images."""
    return cleanup_model(ModelWrapper(copy.deepcopy(model)), override_inpsize=IMAGES, **options)


def executed(model: ModelWrapper, images: NDArray[np.float32]) -> NDArray[np.float32]:
    (found,) = execute_onnx(model, {model.graph.input[0].name: images}).values()
    return found


def activations(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The Quant nodes that quantize no constant, in order, which the clean-up keeps, whereas it changes names."""
    constants = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type == "Quant" and node.input[0] not in constants]


# Everything with everything on the small network; on the other, which the package takes seconds for, each of them.
BITS, WEIGHTS_ARE = ("2/2", "3/4", "4/4", "7/8"), ("asymmetric", "symmetric")
EXECUTED = [
    *(("depthwise", *each) for each in itertools.product(BITS, WEIGHTS_ARE)),
    *(("embedded", *each) for each in zip(BITS, 2 * WEIGHTS_ARE, strict=True)),
    ("embedded", "4/4", "symmetric"),
]
CONVERTED = [("depthwise", "2/2"), ("depthwise", "4/4"), ("embedded", "4/4")]


@pytest.mark.parametrize(("name", "bits", "weights"), EXECUTED)
def test_the_executor_gives_what_is_simulated_but_for_ties(cases: Cases, name: str, bits: str, weights: str) -> None:
    """Up to the first integer that differs from the simulation's; and that one lies in the middle between two.

    There floats and integer sums may be rounded to either. Everything in front of it is equal, and so is the output of
    an image without one.
    """
    case = cases.of(name, bits, weights)
    expected, points = case.simulated()
    plain = case.plain
    values = execute_onnx(plain, {plain.graph.input[0].name: case.images}, return_full_exec_context=True)
    apart = np.zeros(IMAGES, bool)
    pairs = list(zip(activations(case.qonnx.graph), activations(plain.graph), strict=True))
    assert len(pairs) == len(points)
    for written, node in pairs:
        scale, zero_point = (values[each] for each in node.input[1:3])
        steps = values[node.input[0]] / scale + zero_point
        found, known = (np.rint(x / scale) for x in (values[node.output[0]], points[written.input[0]]))
        differs = (found != known) & ~apart.reshape(-1, *[1] * (known.ndim - 1))
        assert (np.abs(found - known)[differs] == 1).all()
        assert (np.abs(np.abs(steps - np.floor(steps)) - 0.5)[differs] <= TIE * np.abs(steps[differs]).clip(1)).all()
        apart |= differs.reshape(IMAGES, -1).any(1)
    assert apart.sum() <= IMAGES // 4
    output = values[plain.graph.output[0].name]
    assert np.abs(output - expected)[~apart].max() <= TIE * np.abs(expected).max()
    assert (output.argmax(1) == expected.argmax(1))[~apart].all()


@pytest.mark.parametrize(("name", "bits"), CONVERTED)
def test_clean_up_and_conversions_change_nothing(cases: Cases, name: str, bits: str) -> None:
    case = cases.of(name, bits, "asymmetric")
    qonnx, plain, images = case.qonnx, case.plain, case.images
    expected = executed(plain, images)
    others = {
        "channels last": copy.deepcopy(plain).transform(ConvertToChannelsLastAndClean()),
        "biases extracted": wrapped(qonnx, extract_conv_bias=True),
        "MatMul": copy.deepcopy(plain).transform(GemmToMatMul()),
    }
    for what, changed in others.items():
        found = executed(changed, images)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), what
    kinds = {node.op_type for node in others["channels last"].graph.node if node.domain.endswith("channels_last")}
    assert "Conv" in kinds


@pytest.mark.parametrize(("name", "bits"), CONVERTED)
def test_symmetric_weights_become_qcdq_and_quant_again(cases: Cases, name: str, bits: str) -> None:
    """Activations with zero points keep their Quant, as the conversion says."""
    case = cases.of(name, bits, "symmetric")
    plain, images = case.plain, case.images
    expected = executed(plain, images)
    qcdq = cleanup_model(copy.deepcopy(plain).transform(QuantToQCDQ()))
    assert np.abs(executed(qcdq, images) - expected).max() <= 1e-5 * np.abs(expected).max()
    weights = [qcdq.find_producer(node.input[1]) for node in qcdq.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {node.op_type for node in weights} == {"DequantizeLinear"}
    left = [node for node in qcdq.graph.node if node.op_type == "Quant"]
    assert all(qcdq.get_initializer(node.input[2]) != 0 for node in left)
    again = cleanup_model(qcdq.transform(QCDQToQuant()))
    assert "DequantizeLinear" not in {node.op_type for node in again.graph.node}
    assert np.abs(executed(again, images) - expected).max() <= 1e-5 * np.abs(expected).max()
