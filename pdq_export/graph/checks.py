"""What a model must and must not contain to be quantized. Every check raises ModelError."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from pdq_export import operators
from pdq_export.errors import ModelError, UnsupportedOperatorError, first_few
from pdq_export.graph.lookup import (
    GraphIndex,
    all_nodes,
    attribute,
    attributes,
    describe,
    inner_layers,
    is_layer,
    opset_version,
    optional_input,
    quantized_nodes,
)

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
OLDEST_OPSET = 9


def check_opset(model: onnx.ModelProto) -> None:
    """Raise ModelError unless the opset is 9 or newer and known to the onnx package."""
    found, newest = opset_version(model), onnx.defs.onnx_opset_version()
    if found < OLDEST_OPSET:
        raise ModelError(f"model: has opset {found}; expected {OLDEST_OPSET} to {newest}; export it with a newer opset")
    if found > newest:
        raise ModelError(
            f"model: has opset {found}; expected {OLDEST_OPSET} to {newest}; "
            "export it with an older opset or install a newer onnx package"
        )


def check_not_quantized(model: onnx.ModelProto) -> None:
    """Raise ModelError if a node belongs to a quantized model, such as QuantizeLinear or QLinearConv."""
    node = next(quantized_nodes(model), None)
    if node is not None:
        raise ModelError(
            f"{describe(node)}: the model is already quantized; expected a float32 model; "
            "give the model it was made from"
        )


def check_inference(model: onnx.ModelProto) -> None:
    """Raise ModelError if a node is in training mode, whose results change from run to run.

    The model's constants have to be initializers already.
    """
    index = GraphIndex(model)
    for node in model.graph.node:
        if node.domain:
            continue
        if node.op_type == "BatchNormalization":
            check_normalizes(node)
        mode = optional_input(node, 2) if node.op_type == "Dropout" else None
        if mode is not None and ((value := index.constant(mode)) is None or value.any()):
            raise ModelError(
                f"{describe(node)}: its training_mode, {mode!r}, is {'computed' if value is None else 'set'}; expected "
                "inference; export after model.eval(), or leave the node's third input out of the file"
            )


def check_normalizes(node: NodeProto) -> None:
    """Raise ModelError if a BatchNormalization normalizes by the batch instead of by its parameters."""
    if attribute(node, "training_mode", 0) or any(node.output[1:]):
        raise ModelError(
            f"{describe(node)}: is in training mode; expected inference; export after model.eval(), or set the node's "
            "training_mode to 0 in the file and leave out its outputs but the first"
        )


def check_domains(model: onnx.ModelProto) -> None:
    """Raise ModelError if an operator is neither of the ONNX standard nor of onnxruntime."""
    for node in all_nodes(model.graph.node):
        if node.domain not in _DOMAINS:
            found = f"is an operator of the domain {node.domain!r}"
            raise UnsupportedOperatorError(
                f"{describe(node)}: {found}; expected operators of the ONNX standard or of onnxruntime; export the "
                "model without custom operators",
                found=found,
            )


def check_layers(model: onnx.ModelProto) -> None:
    """Raise ModelError unless there is a layer with a constant weight and all such weights are float32."""
    index = GraphIndex(model)
    layers = list(_layers(index))
    if not layers:
        _refuse_inner_layers(index)
        raise ModelError(
            "model: nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul multiplies data by a constant matrix "
            "or kernel; expected at least one; export the model with its weights in it, as initializers"
        )
    for node, weight in layers:
        if weight.data_type != TensorProto.FLOAT:
            name = TensorProto.DataType.Name(weight.data_type).lower()
            raise ModelError(
                f"{describe(node)}: weight {weight.name!r} is {name} ({name} model); expected float32; "
                "convert the model to float32 first"
            )


def _refuse_inner_layers(index: GraphIndex) -> None:
    """Raise ModelError where layers are there, but run or not as the input has it, or several times."""
    for node in index.graph.node:
        for branch, layers in inner_layers(attributes(node), index.initializers.keys()).items():
            if node.op_type == "If":
                remedy = (
                    f"make its condition {node.input[0]!r} a constant (an initializer of this name in place of the "
                    "node or input that gives it), or export the model with the branch that is wanted"
                )
            else:
                remedy = "export the model with the loop written out, as torch.export or torch.jit.trace do"
            raise ModelError(
                f"{describe(node)}: holds the model's layers in its {branch} "
                f"({first_few(list(map(repr, layers)))}), where they are not "
                f"quantized; expected a layer in the graph itself; {remedy}"
            )


def check_finite(model: onnx.ModelProto) -> None:
    """Raise ModelError if a constant of a layer or of a BatchNormalization is NaN or infinite."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and attribute(node, "value") is not None:
            constants[node.output[0]] = attribute(node, "value")
    for node in model.graph.node:
        has_weights = operators.get(node.op_type).weighted or node.op_type == "BatchNormalization"
        if node.domain not in ("", "ai.onnx") or not has_weights:
            continue
        for name in node.input:
            if name in constants:
                _check_finite(node, name, constants[name])


def _check_finite(node: NodeProto, name: str, tensor: TensorProto) -> None:
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        return
    value = onnx.numpy_helper.to_array(tensor)
    bad = ~np.isfinite(value)
    if bad.any():
        first = np.unravel_index(int(np.argmax(bad)), value.shape) if value.ndim else ()
        raise ModelError(
            f"{describe(node)}: constant {name!r} holds {int(bad.sum())} NaN or infinite values, first at "
            f"{[int(i) for i in first]}; expected finite weights; check the training and export again"
        )


def _layers(index: GraphIndex) -> Iterator[tuple[NodeProto, TensorProto]]:
    for node in index.graph.node:
        if is_layer(index, node):
            yield node, index.initializers[node.input[1]]
