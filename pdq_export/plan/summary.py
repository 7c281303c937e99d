"""A plan in words and plain types: what every layer gets."""

import dataclasses

from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import Layer, Plan, Point, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """Bits of a layer; None stands for float.

    ``input_bits``: as the layer reads it. ``activation_bits``: those of the learned activation that the layer ends in,
    behind its activation function or behind the Add that it leads to. Behind the last layers they are those of the
    layer's output.
    """

    node: str
    op_type: str
    weight_shape: tuple[int, ...]
    weight_bits: int | None
    input_bits: int | None
    activation_bits: int | None
    excluded: bool
    scope: str = ""  # the module's path, where the file tells it apart from the node's name


def summarize_layers(index: GraphIndex, plan: Plan) -> tuple[LayerSummary, ...]:
    """One entry for every weighted layer, excluded ones among them, in graph order."""
    quantized = {layer.node: layer for layer in plan.layers}
    excluded = {layer.node: layer for layer in plan.excluded}
    known = {**quantized, **excluded}
    return tuple(_summary(index, plan, known[n.name], n.name in excluded) for n in index.graph.node if n.name in known)


def _summary(index: GraphIndex, plan: Plan, layer: Layer, excluded: bool) -> LayerSummary:
    source = plan.source(layer.input)
    return LayerSummary(
        node=layer.node,
        op_type=layer.op_type,
        weight_shape=tuple(index.initializers[layer.weight].dims),
        weight_bits=None if excluded else plan.points[layer.weight].bits,
        input_bits=None if source is None else plan.points[source].bits,
        activation_bits=_activation_bits(index, plan, layer.output),
        excluded=excluded,
        scope=layer.scope,
    )


def _activation_bits(index: GraphIndex, plan: Plan, tensor: str) -> int | None:
    point = ending(index, plan, tensor)
    return None if point is None else point.bits


def ending(index: GraphIndex, plan: Plan, tensor: str) -> Point | None:
    """The first learned point behind a layer's output ``tensor`` and before the next layers, else the first carrier.

    None where neither is there.
    """
    carrier = None
    layers = {layer.node for layer in (*plan.layers, *plan.excluded)}
    pending, seen = [tensor], {tensor}
    while pending:
        current = pending.pop(0)
        point = plan.points.get(current)
        if point is not None and point.role is Role.ACTIVATION:
            return point
        carrier = carrier or point
        readers = (reader for reader in index.consumers(current) if reader.name not in layers)
        found = [name for reader in readers for name in reader.output if name not in seen]
        seen.update(found)
        pending.extend(found)
    return carrier
