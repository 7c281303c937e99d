"""What TensorRT's explicit quantization wants of a plan: fewer points, and symmetric ones.

TensorRT fuses what lies between a DequantizeLinear and the next QuantizeLinear. A pair inside such a region splits it,
so that pairs belong before layers and, where a convolution is fused with the Add after it, on the other operand alone
("Working with Quantized Types", recommended placement of Q/DQ layers).
"""

import dataclasses

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.nodes import additions
from pdq_export.plan.planned import Planned
from pdq_export.spec import Plan, Role


def run(planned: Planned) -> Planned:
    """Keep the points before layers and on the residual branch of an Add, and make them symmetric."""
    plan = planned.plan
    read = {layer.input for layer in plan.layers} | set(_residual_branches(planned.core, plan))
    wanted = {source for tensor in read if (source := plan.source(tensor)) is not None}
    points = {
        name: dataclasses.replace(point, symmetric=True)
        for name, point in plan.points.items()
        if point.role is Role.WEIGHT or name in wanted
    }
    unquantized = {node: tuple(name for name in names if name in points) for node, names in plan.unquantized.items()}
    return planned.replanned(
        points,
        {name: origin for name, origin in plan.passthrough.items() if origin in wanted},
        unquantized={node: names for node, names in unquantized.items() if names},
    )


def _residual_branches(index: GraphIndex, plan: Plan) -> list[str]:
    """Of every Add that a layer's output goes into alone, the other operand."""
    outputs = {layer.output for layer in plan.layers}
    branches = []
    for node, operands in additions(index):
        fused = [tensor for tensor in operands if tensor in outputs and index.sole_consumer(tensor) is node]
        if fused and node.name not in plan.excluded_nodes:
            branches.append(operands[1] if operands[0] == fused[0] else operands[0])
    return branches
