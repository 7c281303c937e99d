"""A newer opset, by onnx's version converter and fixes for where it changes results without a word."""

import numpy as np
import onnx
from onnx import NodeProto

from pdq_export.errors import ModelError
from pdq_export.graph.interface import interface_difference, restore_interface
from pdq_export.graph.lookup import GraphIndex, all_nodes, attribute, describe, opset_version, optional_input
from pdq_export.graph.messages import essential_line
from pdq_export.graph.passes import constants


def run(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Raise the default domain's opset to ``opset``; return a model that has it or a newer one as it is.

    The model needs its ``value_info``, because some conversions depend on shapes. Raises ModelError if onnx cannot
    convert an operator or if its result is not valid.
    """
    current = opset_version(model)
    if opset <= current:
        return model
    if current < 13 <= opset:
        _refuse_hardmax(model, opset)
    try:
        converted = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # RuntimeError or its own ConvertError
        raise _failure(model, opset, error) from error
    converted = constants.run(converted)
    if current < 11 <= opset:
        _keep_resize_coordinates(converted)
    difference = interface_difference(model, converted, opsets=False)
    if difference is not None:
        raise _failure(model, opset, ValueError(f"the result differs in {difference}"))
    restore_interface(model, converted)
    needed = onnx.helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
    converted.ir_version = max(converted.ir_version, needed)
    try:
        onnx.checker.check_model(converted)
    except Exception as error:  # ValidationError, RuntimeError, ValueError, ...
        raise _failure(model, opset, error) from error
    return converted


def _keep_resize_coordinates(model: onnx.ModelProto) -> None:
    """Resize before opset 11 read pixel x / scale, rounded down (up when shrinking); the converter leaves that out."""
    index = GraphIndex(model)
    for node in all_nodes(model.graph.node):
        if node.op_type == "Resize" and not node.domain and attribute(node, "coordinate_transformation_mode") is None:
            scales = index.constant(optional_input(node, 2))
            shrinks = scales is not None and bool(np.all(scales <= 1))
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
            if attribute(node, "mode", "nearest") != "nearest":
                del modes["nearest_mode"]
            node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in modes.items())


def _refuse_hardmax(model: onnx.ModelProto, opset: int) -> None:
    """Hardmax worked on a flattened matrix before opset 13; the converter leaves it as it is."""
    for node in all_nodes(model.graph.node):
        if node.op_type == "Hardmax" and not node.domain:
            raise _failure(model, opset, ValueError("Hardmax has another meaning since opset 13"))


def _failure(model: onnx.ModelProto, opset: int, error: Exception) -> ModelError:
    culprit = _named_in(str(error), model)
    where = "model" if culprit is None else describe(culprit)
    return ModelError(
        f"{where}: opset {opset_version(model)} cannot be converted to {opset} ({essential_line(error)}); "
        f"expected operators that onnx's version converter knows; export the model with opset {opset}"
    )


def _named_in(message: str, model: onnx.ModelProto) -> NodeProto | None:
    """The first node whose operator the converter's message names."""
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in message).split())
    return next((node for node in model.graph.node if node.op_type in words), None)
