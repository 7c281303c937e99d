"""ReduceMean over exactly the spatial axes becomes GlobalAveragePool, which runtimes have an integer kernel for.

``x.mean([2, 3])`` of published MNASNet and MobileNetV2 code is exported so. Without keepdims a Flatten (one spatial
axis or more lie behind [N, C]) drops the axes of size 1.
"""

import numpy as np
import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input
from pdq_export.graph.passes import tidy


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite every ReduceMean of a float tensor [N, C, ...] whose axes are constant and all but the first two."""
    index = GraphIndex(model)
    found = [node for node in model.graph.node if _is_spatial(index, node)]
    for node in found:
        pool = onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)
        replacements = [pool]
        if not attribute(node, "keepdims", 1):
            pool.output[0] = edit.fresh_name(index, f"{node.output[0]}.pooled")
            index.producer[pool.output[0]] = pool  # the next fresh name is another one
            flatten = f"{node.name}.flatten" if node.name else ""
            replacements.append(onnx.helper.make_node("Flatten", [pool.output[0]], [node.output[0]], flatten, axis=1))
        edit.replace_node(model.graph, node, replacements)
    return tidy.infer_shapes(model) if found else model


def _is_spatial(index: GraphIndex, node: NodeProto) -> bool:
    if node.op_type != "ReduceMean" or node.domain:
        return False
    rank, dtype = index.rank(node.input[0]), index.dtype(node.input[0])
    axes = _axes(index, node)
    if rank is None or rank < 3 or not axes or dtype != np.float32:
        return False
    return sorted(axis % rank for axis in axes) == list(range(2, rank))


def _axes(index: GraphIndex, node: NodeProto) -> list[int] | None:
    """An attribute before opset 18, an input since; None where they are left out (all axes) or computed."""
    value = index.constant(optional_input(node, 1))
    return attribute(node, "axes") if value is None else [int(axis) for axis in value.reshape(-1)]
