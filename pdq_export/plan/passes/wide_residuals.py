"""Wide residuals: 8 bits for what residual connections add up, A bits for what layers read of it.

In the paper a unit's output has A bits, and the next unit adds its own to that. Here the sum keeps 8 bits, and layers
read it through an Identity, which the exporter writes as a QuantizeLinear to A bits: every product is one of W and A
bits as before. It is what most of the literature on quantization-aware training means by W/A, and what pre-activation
networks have anyway.
"""

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence

import onnx
from onnx import NodeProto

from pdq_export.graph.edit import fresh_name
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import tidy
from pdq_export.plan.nodes import additions, is_passthrough
from pdq_export.plan.planned import Planned
from pdq_export.plan.points import in_graph_order
from pdq_export.plan.readers import tensors_passed_to
from pdq_export.spec import CARRIER_BITS, Plan, Point, Role


def run(planned: Planned) -> Planned:
    """Widen residual connections where that was asked for; where no Add reads a learned point below 8 bits, say so."""
    if not planned.options.section.wide_residuals:
        return planned
    widened = widen(planned)
    if widened is planned:
        text = "--wide-residuals changes nothing: no Add reads a tensor that has fewer than 8 bits"
        return planned.told(logging.WARNING, text)
    points = planned.plan.points
    carried = [name for name, point in points.items() if point.bits < widened.plan.points[name].bits]
    return widened.told(logging.INFO, f"residual connections that keep 8 bits: {', '.join(carried)}")


def widen(planned: Planned) -> Planned:
    """A model and its plan with wide residuals; the same where no Add reads a learned point below 8 bits.

    Such a point becomes a carrier, also where pass-through nodes (MaxPool, Slice) lie between it and the Add. The
    layers that read its integers get an Identity in front of them, or of the pass-through nodes that lead to them
    alone, and its output is the learned point.
    """
    index, plan = planned.core, planned.plan
    added = tensors_passed_to(index, itertools.chain.from_iterable(operands for _, operands in additions(index)))
    learned = {n for n, point in plan.points.items() if point.role is Role.ACTIVATION and point.bits < CARRIER_BITS}
    wide = learned.intersection(plan.source(tensor) or "" for tensor in added)
    if not wide:
        return planned
    splits, behind = _find_splits(index, plan, wide, added)
    model, identities = _with_identities(planned.model, splits)
    points: dict[str, Point] = dict(plan.points)
    for name in wide:
        points[name] = dataclasses.replace(points[name], role=Role.CARRIER, bits=CARRIER_BITS)
    for tensor, identity in identities.items():
        was = plan.points[plan.source(tensor) or ""]
        narrow = identity.output[0]
        points[narrow] = dataclasses.replace(was, tensor=narrow, absorbed=identity.name)
    passthrough = {**plan.passthrough, **{name: identities[tensor].output[0] for name, tensor in behind.items()}}
    split = dataclasses.replace(Planned.of(model, plan, planned.options), notes=planned.notes)
    layers, excluded = (
        tuple(dataclasses.replace(layer, input=split.index.nodes[layer.node].input[0]) for layer in group)
        for group in (plan.layers, plan.excluded)
    )
    ordered = in_graph_order(split.core, points)
    return split.replanned(ordered, passthrough, layers=layers, wide=wide, excluded=excluded)


def _find_splits(
    index: GraphIndex, plan: Plan, wide: set[str], added: set[str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """By tensor, the nodes that are to read it through an Identity; and what lies behind these, by the tensor split."""
    layers = {layer.node: layer.input for layer in plan.layers}
    read = tensors_passed_to(index, layers.values())
    splits: dict[str, list[str]] = {}
    behind: dict[str, str] = {}
    for node in index.graph.node:
        if is_passthrough(index, node) and (origin := behind.get(node.input[0])):
            behind |= dict.fromkeys(plan.passthrough.keys() & set(node.output), origin)
        for tensor in node.output:
            if plan.source(tensor) not in wide or tensor in behind:
                continue
            for reader in index.consumers(tensor):
                passed = plan.passthrough.keys() & set(reader.output) if reader.input[0] == tensor else set()
                if layers.get(reader.name) == tensor or (passed & read and not passed & added):
                    splits.setdefault(tensor, []).append(reader.name)
                    behind |= dict.fromkeys(passed, tensor)
    return splits, behind


def _with_identities(
    model: onnx.ModelProto, splits: Mapping[str, Sequence[str]]
) -> tuple[onnx.ModelProto, dict[str, NodeProto]]:
    """A copy in which the named nodes read the tensors through an Identity; the Identities by tensor."""
    work = onnx.ModelProto()
    work.CopyFrom(model)
    index = GraphIndex(work)
    identities: dict[str, NodeProto] = {}
    for tensor, readers in splits.items():
        narrow, name = fresh_name(index, f"{tensor}_narrow"), f"{tensor}/Identity"
        while name in index.nodes:
            name += "_"
        identities[tensor] = onnx.helper.make_node("Identity", [tensor], [narrow], name=name)
        for reader in readers:
            index.nodes[reader].input[0] = narrow
    nodes = [[node, *(identities[name] for name in node.output if name in identities)] for node in work.graph.node]
    del work.graph.node[:]
    work.graph.node.extend(itertools.chain.from_iterable(nodes))
    return tidy.infer_shapes(work), identities
