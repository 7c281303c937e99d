"""QONNX's Quant in numpy, as its specification says, for ONNX's reference evaluator: what layouts are held against."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from .export.toy_quantizer import run_node


def quant(
    x: NDArray[np.float32], scale: Any, zeropt: Any, bitwidth: Any, *, signed: int, narrow: int
) -> NDArray[np.float32]:
    """Scale, shift, clip to the integers, round half to even, and back; all in float32."""
    low = -(2 ** (int(bitwidth) - 1)) + narrow if signed else 0
    high = 2 ** (int(bitwidth) - 1) - 1 if signed else 2 ** int(bitwidth) - 1 - narrow
    shifted = np.asarray(x, np.float32) / np.float32(scale) + np.float32(zeropt)
    integers = np.rint(np.clip(shifted, np.float32(low), np.float32(high)))
    return np.asarray((integers - np.float32(zeropt)) * np.float32(scale), np.float32)


class Quant(OpRun):
    """The operator."""

    op_domain = "qonnx.custom_op.general"

    def _run(
        self, x: Any, scale: Any, zeropt: Any, bitwidth: Any, signed: int, narrow: int, rounding_mode: str
    ) -> tuple[Any]:
        assert rounding_mode == "ROUND"
        assert np.ndim(bitwidth) == 0
        return (quant(x, scale, zeropt, bitwidth, signed=signed, narrow=narrow),)


def run_qonnx(model: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[Any]]:
    """The outputs of a QONNX model, node by node."""
    values: dict[str, Any] = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | feeds
    for node in model.graph.node:
        inputs = {name: values[name] for name in node.input if name}
        step = onnx.helper.make_model(
            onnx.helper.make_graph(
                [node],
                "node",
                [onnx.ValueInfoProto(name=name) for name in inputs],
                [onnx.ValueInfoProto(name=name) for name in node.output],
            ),
            opset_imports=model.opset_import,
            ir_version=10,
        )
        if node.domain == Quant.op_domain:
            found = ReferenceEvaluator(step, new_ops=[Quant]).run(None, inputs)
        else:
            found = run_node(step, inputs)
        values.update(zip(node.output, found, strict=True))
    return [values[output.name] for output in model.graph.output]
