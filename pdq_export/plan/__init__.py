"""Which tensors are quantized to what, and which nodes are reconstructed together: the plan, from the graph alone."""

from collections.abc import Container, Iterable, Mapping

import onnx

from pdq_export.errors import OptionError
from pdq_export.graph import origins
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.scopes import module_path
from pdq_export.plan.blocks import find_blocks
from pdq_export.plan.family import network_family
from pdq_export.plan.parts import find_parts
from pdq_export.plan.points import find_layers, find_points
from pdq_export.plan.ramps import find_ramps
from pdq_export.plan.rules import LayerRules, PlanOptions
from pdq_export.plan.tail import find_tail, without_tail
from pdq_export.spec import Layer, Plan

__all__ = ["PlanOptions", "float_tail", "make_plan", "network_family", "without_tail"]


def make_plan(
    model: onnx.ModelProto | GraphIndex,
    options: PlanOptions,
    unsupported: Mapping[str, str] | None = None,
    *,
    integer_bias: bool = True,
) -> Plan:
    """Plan the quantization of a prepared model, given with or without its index.

    First and last weighted layers get 8-bit weights and the last layers' input 8 bits where ``options`` do not say
    otherwise, the network's input 8 bits; the network's outputs are not quantized (PD-Quant, section 4), which
    `plan.outputs.separate_outputs` prepares for.
    ``unsupported``: the nodes that calibration cannot compute, with the reason; those that no layer depends on become
    the plan's tail. ``integer_bias``: as `Plan` has it. What a target or an option changes afterwards is a pass over
    the plan (`plan.passes`). Raises ModelError where there is nothing to quantize, and OptionError for a pattern that
    matches no layer.
    """
    index = GraphIndex.of(model)
    found = find_layers(index)
    rules = _resolve(index.model, found, options)
    layers = tuple(layer for layer in found if layer.node not in rules.excluded)
    excluded = tuple(layer for layer in found if layer.node in rules.excluded)
    _check_shared(layers, excluded)
    tail = find_tail(index, unsupported or {}, layers)
    if tail:
        index = GraphIndex(without_tail(index.model, tail))
        found = tuple(layer for layer in found if layer.node not in tail)
    points, passthrough, unquantized = find_points(index, found, options, rules)
    return Plan(
        bits=options.bits,
        points=points,
        passthrough=passthrough,
        layers=layers,
        blocks=find_blocks(index, layers, points, per_layer=options.per_layer),
        excluded=excluded,
        ramps=find_ramps(index, points, rules.excluded),
        tail=tail,
        excluded_nodes=_other_nodes(index, rules.excluded, excluded),
        unquantized=unquantized,
        integer_bias=integer_bias,
        parts=find_parts(index),
    )


def float_tail(
    model: onnx.ModelProto | GraphIndex, options: PlanOptions, unsupported: Mapping[str, str]
) -> dict[str, str]:
    """The tail that the plan of a prepared model gets, by node with the reason, as `make_plan` has it. Raises the same.

    ``unsupported``: the nodes that calibration cannot compute, with the reason.
    """
    index = GraphIndex.of(model)
    found = find_layers(index)
    excluded = _resolve(index.model, found, options).excluded
    return find_tail(index, unsupported, [layer for layer in found if layer.node not in excluded])


def _resolve(model: onnx.ModelProto, layers: Iterable[Layer], options: PlanOptions) -> LayerRules:
    nodes = model.graph.node
    return options.resolve(
        [layer.node for layer in layers],
        {node.name: node.op_type for node in nodes},
        {node.name: (*origins.names(node), module_path(node)) for node in nodes},
    )


def _other_nodes(index: GraphIndex, names: Container[str], layers: Iterable[Layer]) -> tuple[str, ...]:
    """The excluded nodes that are no layers and compute with floats, in graph order."""
    known = {layer.node for layer in layers}
    nodes = (node for node in index.graph.node if node.name in names and node.name not in known)
    return tuple(node.name for node in nodes if (dtype := index.dtype(node.output[0])) is None or dtype.kind == "f")


def _check_shared(layers: Iterable[Layer], excluded: Iterable[Layer]) -> None:
    """A weight is one tensor: it cannot be quantized for one layer and float for another."""
    readers = {layer.weight: layer.node for layer in layers}
    for layer in excluded:
        if layer.weight in readers:
            raise OptionError(
                f"--exclude: node {layer.node!r} shares its weight {layer.weight!r} with {readers[layer.weight]!r}, "
                "which is quantized; exclude both or neither"
            )
