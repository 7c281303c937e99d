"""Pooling of whole channels in one spelling: GlobalAveragePool, which runtimes run in integers, and ReduceMax.

``x.mean([2, 3])`` of published MNASNet and MobileNetV2 code is exported as ReduceMean, ``AvgPool2d(7)`` of older
ResNets as AveragePool. Without keepdims a Flatten (one spatial axis or more lie behind [N, C]) drops axes of size 1.
GlobalMaxPool has no kernel for integers; ReduceMax over the same axes has one.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input
from pdq_export.graph.passes import tidy

_AXES_INPUT = 18  # the opset from which ReduceMax reads its axes


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite every pool or mean over all axes but the first two of a float tensor [N, C, ...].

    That it is over all of them has to be known.
    """
    index = GraphIndex(model)
    found = [node for node in model.graph.node if not node.domain and _is_spatial(index, node)]
    for node in found:
        edit.replace_node(model.graph, node, _pool(index, node))
    return tidy.infer_shapes(model) if found else model


def _pool(index: GraphIndex, node: NodeProto) -> list[NodeProto]:
    if node.op_type == "GlobalMaxPool":
        return [_reduce_max(index, node)]
    pool = onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)
    if node.op_type == "AveragePool" or int(attribute(node, "keepdims", 1)):
        return [pool]
    pool.output[0] = edit.fresh_name(index, f"{node.output[0]}.pooled")
    index.producer[pool.output[0]] = pool  # the next fresh name is another one
    flatten = f"{node.name}.flatten" if node.name else ""
    return [pool, onnx.helper.make_node("Flatten", [pool.output[0]], [node.output[0]], flatten, axis=1)]


def _reduce_max(index: GraphIndex, node: NodeProto) -> NodeProto:
    axes = list(range(2, index.rank(node.input[0]) or 0))
    if index.opset < _AXES_INPUT:
        return onnx.helper.make_node("ReduceMax", [node.input[0]], node.output, node.name, axes=axes, keepdims=1)
    name = edit.add_constant(index, f"{node.output[0]}.axes", np.array(axes, np.int64))
    return onnx.helper.make_node("ReduceMax", [node.input[0], name], node.output, node.name, keepdims=1)


def _is_spatial(index: GraphIndex, node: NodeProto) -> bool:
    if node.op_type not in ("ReduceMean", "AveragePool", "GlobalMaxPool"):
        return False
    shape, dtype = index.shape(node.input[0]), index.dtype(node.input[0])
    if shape is None or len(shape) < 3 or dtype != np.float32:
        return False
    if node.op_type == "ReduceMean":
        axes = _axes(index, node)
        return bool(axes) and sorted(axis % len(shape) for axis in axes or ()) == list(range(2, len(shape)))
    return node.op_type == "GlobalMaxPool" or _is_whole(node, shape[2:])


def _is_whole(node: NodeProto, sizes: Sequence[object]) -> bool:
    """Whether the one window of an AveragePool is the whole map, without padding or gaps."""
    gaps = [*attribute(node, "pads", []), *(step - 1 for step in attribute(node, "dilations", []))]
    if any(gaps) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    return bool(attribute(node, "kernel_shape") == list(sizes))


def _axes(index: GraphIndex, node: NodeProto) -> list[int] | None:
    """An attribute before opset 18, an input since; None where they are left out (all axes) or computed."""
    value = index.constant(optional_input(node, 1))
    return attribute(node, "axes") if value is None else [int(axis) for axis in value.reshape(-1)]
