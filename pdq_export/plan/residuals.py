"""Wide residuals: 8 bits for what residual connections add up, A bits for what layers read of it.

In the paper a unit's output has A bits, and the next unit adds its own to that. Here the sum keeps 8 bits, and layers
read it through an Identity, which the exporter writes as a QuantizeLinear to A bits: every product is one of W and A
bits as before. It is what most of the literature on quantization-aware training means by W/A, and what pre-activation
networks have anyway.
"""

import dataclasses
from collections.abc import Container, Iterable

import onnx
from onnx import NodeProto

from pdq_export.graph.edit import fresh_name
from pdq_export.graph.lookup import GraphIndex, is_layer
from pdq_export.plan.operators import data_inputs, is_passthrough


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residuals:
    """``splits``: names of the Identity nodes through which quantized layers read; ``tensors``: what keeps 8 bits.

    Those are the tensors that an Identity splits, and on the way to these what pass-through nodes read.
    """

    splits: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()


def split_residuals(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which layers read what an Add reads as well through an Identity of their own.

    What lies between, on either side, may only move values about (MaxPool, Pad, Slice).
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    index = GraphIndex(work)
    layers = {node.name for node in work.graph.node if is_layer(index, node)}
    added, read = _added(index), _read_by(index, layers)
    nodes: list[NodeProto] = []
    for node in list(work.graph.node):
        nodes.append(node)
        paths = ((tensor, _layer_paths(index, tensor, layers, added, read)) for tensor in node.output)
        nodes.extend(_split(index, tensor, readers) for tensor, readers in paths if tensor in added and readers)
    del work.graph.node[:]
    work.graph.node.extend(nodes)
    return work


def find_residuals(index: GraphIndex, quantized: Container[str]) -> Residuals:
    """The splits of a model that `split_residuals` has been through; ``quantized``: names of layers."""
    added, read = _added(index), _read_by(index, quantized)
    identities = [
        node
        for node in index.graph.node
        if node.op_type == "Identity" and node.input[0] in added and node.output[0] not in added
    ]
    tensors: set[str] = set()
    for node in identities:
        tensor: str | None = node.input[0]
        while tensor is not None:
            tensors.add(tensor)
            producer = index.producer.get(tensor)
            passes = producer is not None and is_passthrough(index, producer)
            tensor = data_inputs(index, producer)[0] if passes and producer is not None else None
    splits = (node.name for node in identities if node.output[0] in read)
    return Residuals(splits=frozenset(splits), tensors=frozenset(tensors))


def _added(index: GraphIndex) -> set[str]:
    """The tensors that an Add of two computed tensors reads, itself or behind nodes that move values about."""
    return _reaching(
        index, (node for node in index.graph.node if node.op_type == "Add" and len(data_inputs(index, node)) == 2)
    )


def _read_by(index: GraphIndex, layers: Container[str]) -> set[str]:
    return _reaching(index, (node for node in index.graph.node if node.name in layers))


def _reaching(index: GraphIndex, ends: Iterable[NodeProto]) -> set[str]:
    """The tensors that arrive at one of the nodes with their values."""
    final = {node.name for node in ends}
    found: set[str] = set()
    for node in reversed(index.graph.node):
        if node.name in final:
            found.update(data_inputs(index, node))
        elif is_passthrough(index, node) and found.intersection(node.output):
            found.update(data_inputs(index, node)[:1])
    return found


def _layer_paths(
    index: GraphIndex, tensor: str, layers: Container[str], added: set[str], read: set[str]
) -> list[NodeProto]:
    """The readers of ``tensor`` that lead to a layer and to no Add."""

    def leads(reader: NodeProto) -> bool:
        if reader.name in layers:
            return True
        reached = set(reader.output)
        return is_passthrough(index, reader) and not reached & added and bool(reached & read)

    return [reader for reader in index.consumers(tensor) if leads(reader)]


def _split(index: GraphIndex, tensor: str, readers: Iterable[NodeProto]) -> NodeProto:
    """The Identity, whose output ``readers`` read from now on."""
    narrow, name = fresh_name(index, f"{tensor}_narrow"), f"{tensor}/Identity"
    while name in index.nodes:
        name += "_"
    for reader in readers:
        inputs = [narrow if given == tensor else given for given in reader.input]
        del reader.input[:]
        reader.input.extend(inputs)
    for value in [value for value in index.graph.value_info if value.name == tensor]:
        described = index.graph.value_info.add()
        described.CopyFrom(value)
        described.name = narrow
    return onnx.helper.make_node("Identity", [tensor], [narrow], name=name)
