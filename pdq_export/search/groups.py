"""Which tensors have to share a width, so that bits are allotted to all of them at once.

In every layout each point has a pair of its own, with scale, zero_point and limits of its own, and no operator that
reads several of them asks that these be equal: QLinearAdd, QLinearMul and QLinearConcat take each operand with its own,
and the textbook pairs of the other layouts are dequantized first. So the operands of an Add or a Concat are free of
each other, and what shares a width is one point already: a weight that several layers read, a sum that several layers
lead to, and tensors whose integers are passed on (`Plan.passthrough`). Carriers have 8 bits and are in no group.
"""

from collections.abc import Iterable

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.summary import ending
from pdq_export.spec import Block, Plan, Point, Role
from pdq_export.spec.sensitivity import Group


def find_groups(index: GraphIndex, plan: Plan) -> tuple[Group, ...]:
    """Every weight and learned activation of a plan, in its order; ``index``: of what calibration sees."""
    ends: dict[str, list[str]] = {}
    for layer in plan.layers:
        if (point := ending(index, plan, layer.output)) is not None:
            ends.setdefault(point.tensor, []).append(layer.node)
    groups = []
    for point in plan.points.values():
        if point.role is Role.WEIGHT:
            layers = [layer.node for layer in plan.layers if layer.weight == point.tensor]
        elif point.role is Role.ACTIVATION:
            layers = ends.get(point.tensor, [])
        else:
            continue
        block = _block(index, plan.blocks, point, layers)
        groups.append(Group(role=point.role, tensors=(point.tensor,), layers=tuple(layers), block=block.name))
    return tuple(groups)


def _block(index: GraphIndex, blocks: Iterable[Block], point: Point, layers: Iterable[str]) -> Block:
    """The block that settles the point: the first that reads a weight, or the one that writes an activation."""
    producer = index.producer.get(point.tensor)
    nodes = set(layers) if point.role is Role.WEIGHT else {"" if producer is None else producer.name}
    for block in blocks:
        if nodes.intersection(block.nodes) or (producer is None and point.tensor in block.inputs):
            return block
    raise ValueError(f"point {point.tensor!r} is in no block")
