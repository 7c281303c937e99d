"""Questions about an ONNX graph: who writes a tensor, who reads it, is it constant, what is its shape."""

import functools
import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from typing import Any, TypeVar, overload

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from pdq_export import operators
from pdq_export.errors import ModelError

Default = TypeVar("Default")
Dimension = int | str | None  # known size, named dynamic axis, anonymous dynamic axis

_KEPT = 2**16  # bytes of a constant that an index keeps as an array: it lives as long as its model, weights are large


def attributes(node: NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values: int, float, str, bytes for raw strings, lists, protos."""
    return {attribute.name: _attribute_value(attribute) for attribute in node.attribute}


@overload
def attribute(node: NodeProto, name: str) -> Any: ...


@overload
def attribute(node: NodeProto, name: str, default: Default) -> Any | Default: ...


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of one attribute, or ``default`` if the node does not set it."""
    for candidate in node.attribute:
        if candidate.name == name:
            return _attribute_value(candidate)
    return default


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="surrogateescape")
    if not isinstance(value, (list, tuple)):
        return value
    return [item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else item for item in value]


def optional_input(node: NodeProto, position: int) -> str | None:
    """The tensor at an input position, or None if the node leaves that input out."""
    return node.input[position] or None if position < len(node.input) else None


def opset_version(model: onnx.ModelProto) -> int:
    """Version of the default operator domain. Raises ModelError if the model does not import it."""
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError("model: no opset of the default domain is imported; expected one; re-export the model")
    return versions[0]


def describe(node: NodeProto) -> str:
    """How messages name a node: ``node '/layer1/conv' (Conv)``.

    A node without a name is named by its output.
    """
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"unnamed {node.op_type} node writing {node.output[0] if node.output else '?'!r}"


def subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: the branches of If, the body of Loop or Scan."""
    for candidate in node.attribute:
        if candidate.HasField("g"):
            yield candidate.g
        yield from candidate.graphs


def captured(node: NodeProto) -> Iterator[str]:
    """Every tensor name that the node's subgraphs read, their own and those of the graph around them."""
    for subgraph in subgraphs(node):
        yield from (value.name for value in subgraph.output)
        for inner in subgraph.node:
            yield from reads(inner)


def reads(node: NodeProto) -> Iterator[str]:
    """The tensors that a node and its subgraphs read, without inputs that are left out."""
    yield from filter(None, node.input)
    yield from captured(node)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs, at any depth."""
    for node in nodes:
        yield node
        for subgraph in subgraphs(node):
            yield from all_nodes(subgraph.node)


def quantized_nodes(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """The nodes that only a quantized model has, such as QuantizeLinear or QLinearConv, at any depth."""
    for node in all_nodes(itertools.chain(model.graph.node, *(function.node for function in model.functions))):
        if operators.get(node.op_type).quantized or node.op_type.startswith("QLinear"):
            yield node


def inner_layers(values: Mapping[str, Any], constants: Set[str]) -> dict[str, list[str]]:
    """The layers with a constant weight in a node's subgraphs, at any depth, by attribute.

    Layers are given by the name of the node, or of its output. ``constants``: those of the graph around it.
    """
    graphs = {name: value for name, value in values.items() if isinstance(value, onnx.GraphProto)}
    found = {name: [n.name or n.output[0] for n in _weighted(graph, constants)] for name, graph in graphs.items()}
    return {name: layers for name, layers in found.items() if layers}


def _weighted(graph: onnx.GraphProto, outer: Set[str]) -> Iterator[NodeProto]:
    own = {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node if node.op_type == "Constant" for name in node.output)
    for node in graph.node:
        weight = node.input[1] if operators.get(node.op_type).weighted and len(node.input) > 1 else ""
        if weight and weight in own | outer:
            yield node
        for inner in subgraphs(node):
            yield from _weighted(inner, own | outer)


def float_tensors_behind(index: "GraphIndex", tensor: str) -> list[str]:
    """The first float tensors that are computed from a tensor of integers or booleans, in graph order."""
    reached, found = {tensor}, []
    for node in index.graph.node:
        if reached.isdisjoint(node.input):
            continue
        for name in filter(None, node.output):
            dtype = index.dtype(name)
            if dtype is not None and dtype.kind == "f":
                found.append(name)
            else:
                reached.add(name)
    return found


def is_layer(index: "GraphIndex", node: NodeProto) -> bool:
    """Whether a node is a weighted layer: Conv, ConvTranspose, Gemm or MatMul of data with a constant matrix or kernel.

    The constant has to be an initializer already. A MatMul of a constant with data, with a vector, or with a stack of
    matrices is none.
    """
    if not operators.get(node.op_type).weighted or node.domain not in ("", "ai.onnx"):
        return False
    weight = index.initializers.get(node.input[1])
    if weight is None or index.is_fixed(node.input[0]):
        return False
    return len(weight.dims) == 2 if node.op_type == "MatMul" else len(weight.dims) >= 2


class GraphIndex:
    """An index of one graph as it is now; build a new one after changing the graph.

    ``producer``: node by the tensor it writes. ``consumers``: nodes by the tensor they read, an empty list if there are
    none. A node that reads a tensor twice, or through a subgraph, is listed twice. ``initializers``: constant tensors
    by name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = opset_version(model)
        self.inputs = tuple(value.name for value in self.graph.input)
        self.outputs = tuple(value.name for value in self.graph.output)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in self.graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            self.producer.update((tensor, node) for tensor in node.output if tensor)
            for tensor in reads(node):
                self._consumers.setdefault(tensor, []).append(node)
        self._constants: dict[str, NDArray[Any]] = {}

    @classmethod
    def of(cls, model: "onnx.ModelProto | GraphIndex") -> "GraphIndex":
        """A model's index; itself where there is one already, so that nobody builds another."""
        return model if isinstance(model, GraphIndex) else cls(model)

    @functools.cached_property
    def nodes(self) -> dict[str, NodeProto]:
        """Node by name, for prepared models, whose names are unique."""
        return {node.name: node for node in self.graph.node}

    @functools.cached_property
    def _values(self) -> dict[str, onnx.ValueInfoProto]:
        values = [*self.graph.value_info, *self.graph.input, *self.graph.output]
        return {value.name: value for value in values}

    @functools.cached_property
    def sized(self) -> frozenset[str]:
        """The tensors that are computed from sizes and constants alone.

        They are the same for all images of one size.
        """
        found: set[str] = set()
        for node in self.graph.node:
            fixed = all(name in found or self.is_constant(name) for name in node.input if name)
            if operators.get(node.op_type).reads_shape or (fixed and not any(subgraphs(node))):
                found.update(filter(None, node.output))
        return frozenset(found)

    def is_fixed(self, tensor: str | None) -> bool:
        """Whether ``tensor`` is an initializer or is computed from sizes and constants alone."""
        return self.is_constant(tensor) or tensor in self.sized

    def consumers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read ``tensor``, in graph order."""
        return self._consumers.get(tensor, [])

    @property
    def read(self) -> Iterable[str]:
        """Every tensor name that a node or a subgraph reads."""
        return self._consumers.keys()

    def visible(self, untouched: Container[str]) -> set[str]:
        """The tensors that have to be there in float under their names.

        These are the outputs, and what subgraphs and ``untouched`` nodes read.
        """
        nodes = ((reads if node.name in untouched else captured)(node) for node in self.graph.node)
        return {*self.outputs, *itertools.chain.from_iterable(nodes)}

    def sole_consumer(self, tensor: str) -> NodeProto | None:
        """The only node that reads ``tensor``, once; else None.

        A graph output has no sole consumer.
        """
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def predecessors(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that write the inputs of ``node``, in input order, each once."""
        return _unique(self.producer[name] for name in node.input if name in self.producer)

    def successors(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that read the outputs of ``node``, each once."""
        return _unique(reader for name in node.output for reader in self.consumers(name))

    def is_constant(self, tensor: str | None) -> bool:
        """Whether ``tensor`` is an initializer."""
        return tensor in self.initializers

    def constant(self, tensor: str | None) -> NDArray[Any] | None:
        """The value of an initializer as a read-only array, or None for anything else."""
        if tensor is None or tensor not in self.initializers:
            return None
        if tensor not in self._constants:
            value = onnx.numpy_helper.to_array(self.initializers[tensor])
            value.setflags(write=False)
            if value.nbytes > _KEPT:
                return value
            self._constants[tensor] = value
        return self._constants[tensor]

    def elements(self, initializer: str) -> int:
        """How many numbers a constant tensor has."""
        return math.prod(self.initializers[initializer].dims)

    def shape(self, tensor: str) -> tuple[Dimension, ...] | None:
        """For each axis an int, the name of a dynamic axis or None; None if the rank is unknown."""
        if tensor in self.initializers:
            return tuple(self.initializers[tensor].dims)
        value = self._values.get(tensor)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(_dimension(dim) for dim in value.type.tensor_type.shape.dim)

    def static_shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape if every axis is known, else None."""
        shape = self.shape(tensor)
        if shape is None:
            return None
        known = tuple(axis for axis in shape if isinstance(axis, int))
        return known if len(known) == len(shape) else None

    def rank(self, tensor: str) -> int | None:
        """Number of axes, or None if that is unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def dtype(self, tensor: str) -> "np.dtype[Any] | None":
        """Element type, or None if that is unknown."""
        if tensor in self.initializers:
            return onnx.helper.tensor_dtype_to_np_dtype(self.initializers[tensor].data_type)
        value = self._values.get(tensor)
        if value is None or not value.type.tensor_type.elem_type:
            return None
        return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> Dimension:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _unique(nodes: Any) -> list[NodeProto]:
    seen: dict[int, NodeProto] = {}
    for node in nodes:
        seen.setdefault(id(node), node)
    return list(seen.values())
