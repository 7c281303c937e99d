"""What TensorRT's explicit quantization wants of a plan: fewer points, symmetric ones, float biases.

TensorRT fuses what lies between a DequantizeLinear and the next QuantizeLinear. A pair inside such a region splits it,
so that pairs belong before layers and, where a convolution is fused with the Add after it, on the other operand alone
("Working with Quantized Types", recommended placement of Q/DQ layers).
"""

import dataclasses
from collections.abc import Container, Mapping

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.operators import additions
from pdq_export.spec import Layer, Point, Role


def points_for_tensorrt(
    index: GraphIndex,
    layers: tuple[Layer, ...],
    points: Mapping[str, Point],
    passthrough: Mapping[str, str],
    excluded: Container[str] = (),
) -> tuple[dict[str, Point], dict[str, str]]:
    """The points and pass-through tensors that TensorRT wants: before layers and on the residual branch of an Add.

    ``excluded``: names of nodes that stay in float.
    """
    source = {**passthrough, **{name: name for name in points}}
    read = {layer.input for layer in layers} | set(_residual_branches(index, layers, excluded))
    wanted = {source[tensor] for tensor in read if tensor in source}
    kept = {
        name: dataclasses.replace(point, symmetric=True)
        for name, point in points.items()
        if point.role is Role.WEIGHT or name in wanted
    }
    return kept, {name: origin for name, origin in passthrough.items() if origin in wanted}


def _residual_branches(index: GraphIndex, layers: tuple[Layer, ...], excluded: Container[str]) -> list[str]:
    """Of every Add that a layer's output goes into alone, the other operand."""
    outputs = {layer.output for layer in layers}
    branches = []
    for node, operands in additions(index):
        fused = [tensor for tensor in operands if tensor in outputs and index.sole_consumer(tensor) is node]
        if fused and node.name not in excluded:
            branches.append(operands[1] if operands[0] == fused[0] else operands[0])
    return branches
