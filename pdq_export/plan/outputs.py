"""The network's outputs are not quantized: who computes for them alone reads tensors as they are before quantization.

A node is *inner* where a layer depends on it, *outer* where only outputs of the network do. An outer node that moves
values on to an output reads the float value of a quantized tensor; what computes with them does so where the integers
are few or the float value is there anyway. Else it takes the 8-bit integers, which spare the layer before it a float
kernel.
"""

import itertools
from collections.abc import Container, Iterable, Mapping

import onnx
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph import origins
from pdq_export.graph.edit import fresh_name
from pdq_export.graph.lookup import GraphIndex, is_layer
from pdq_export.graph.passes import tidy
from pdq_export.plan.expectations import without_expectations
from pdq_export.plan.nodes import data_inputs, is_passthrough
from pdq_export.plan.readers import tensors_before_layers
from pdq_export.spec import CARRIER_BITS, Point, Role


def moves_values(index: GraphIndex, node: NodeProto) -> bool:
    """Whether every element of a node's outputs is an element of its inputs."""
    return is_passthrough(index, node) or node.op_type == "Concat"


def separate_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no node moves values both to layers and to outputs; the model itself if none does.

    A node that does both is there twice. The first keeps its name and its outputs for the outer readers, the copy
    behind it is for the inner ones.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    index = GraphIndex(work)
    weighted = [node for node in work.graph.node if is_layer(index, node)]
    layers = {node.name for node in without_expectations(index, weighted)}
    before = tensors_before_layers(index, layers)
    inner = {node.name for node in work.graph.node if node.name in layers or before.intersection(node.output)}
    readers = {name: list(index.consumers(name)) for name in index.read}
    copies: dict[str, NodeProto] = {}
    for node in reversed(work.graph.node):
        if node.name in layers or node.name not in inner or not moves_values(index, node):
            continue
        outer = (_is_read_outside(index, name, readers.get(name, []), inner) for name in node.output if name)
        if not _is_float(index, node) or not any(outer):
            continue
        copies[node.name] = copy = _inner_copy(index, node, readers, inner)
        inner.remove(node.name)
        inner.add(copy.name)
        for name in copy.input:
            readers.setdefault(name, []).append(copy)
    if not copies:
        return model
    nodes = [[node, *([copies[node.name]] if node.name in copies else [])] for node in work.graph.node]
    del work.graph.node[:]
    work.graph.node.extend(itertools.chain.from_iterable(nodes))
    return tidy.infer_shapes(work)


def _is_float(index: GraphIndex, node: NodeProto) -> bool:
    dtype = index.dtype(node.output[0])
    return dtype is None or dtype.kind == "f"


def _is_read_outside(index: GraphIndex, tensor: str, readers: Iterable[NodeProto], inner: Container[str]) -> bool:
    outer = (reader for reader in readers if reader.name not in inner)
    return tensor in index.outputs or any(not operators.get(reader.op_type).reads_shape for reader in outer)


def _inner_copy(
    index: GraphIndex, node: NodeProto, readers: Mapping[str, list[NodeProto]], inner: Container[str]
) -> NodeProto:
    """A copy of ``node`` under new names, which its inner readers read from now on."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.name}/inner"
    while copy.name in index.nodes:
        copy.name += "_"
    origins.write_at(copy, origins.origin(node))
    index.nodes[copy.name] = copy
    for position, name in enumerate(node.output):
        if not name:
            continue
        copy.output[position] = fresh = fresh_name(index, f"{name}_inner")
        index.producer[fresh] = copy
        for reader in readers.get(name, []):
            if reader.name in inner:
                reader.input[:] = [fresh if read == name else read for read in reader.input]
    return copy


class Outer:
    """The nodes that lead to outputs alone.

    ``before``: the tensors that a layer depends on. ``layers``: all layers, by node name. ``moved``: the tensors that
    are outputs, and those that outer nodes move to an output as they are.
    """

    def __init__(self, index: GraphIndex, layers: Container[str], before: Container[str]) -> None:
        self._index, self._layers, self._before = index, layers, before
        self.moved = set(index.outputs)
        for node in reversed(index.graph.node):
            if self.moved.intersection(node.output) and self.has(node) and moves_values(index, node):
                self.moved.update(data_inputs(index, node))

    def has(self, node: NodeProto) -> bool:
        """Whether a node is an outer one."""
        return node.name not in self._layers and not any(name in self._before for name in node.output)

    def leaves_float(self, tensor: str) -> bool:
        """Whether a tensor is to be no point, because outputs alone are made of it."""
        return tensor in self.moved and tensor not in self._before


def read_unquantized(
    index: GraphIndex, outer: Outer, points: Mapping[str, Point], passthrough: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """What is left of ``passthrough``, and what outer nodes read before it is quantized.

    The second is by node name: the tensors that the node reads in float.
    """
    plain = {
        name
        for name, point in points.items()
        if point.role is not Role.WEIGHT and (name in outer.moved or name in index.inputs or point.bits < CARRIER_BITS)
    }
    kept, found = dict(passthrough), dict[str, tuple[str, ...]]()
    for node in index.graph.node:
        if not outer.has(node):
            continue
        if read := tuple(name for name in dict.fromkeys(data_inputs(index, node)) if name in plain):
            found[node.name] = read
        source = node.input[0] if node.input else ""
        if source in read or (source not in points and source not in kept):
            for name in node.output:
                kept.pop(name, None)
    return kept, found
