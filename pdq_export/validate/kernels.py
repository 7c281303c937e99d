"""Which kernels onnxruntime chose for the layers of a graph that it has optimized."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Set

import onnx
from onnx import NodeProto

from pdq_export import operators

_LAID_OUT = re.compile(r"^fused |_nchwc$|/MatMulAddFusion$")  # what onnxruntime adds to a name


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelCount:
    """How many layers run in integers and in float, by operator: nodes with a weight, those of If and Loop too.

    ``floating_nodes``: the float ones, as the file names them; what is not found there, as inside a Loop, has the name
    that onnxruntime's optimization gives it. ``between_pairs``: other nodes without an integer kernel, which run in
    float between a DequantizeLinear and a QuantizeLinear.
    """

    integer: Mapping[str, int]
    floating: Mapping[str, int]
    floating_nodes: tuple[str, ...]
    between_pairs: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def all_integer(self) -> bool:
        """Whether no weighted node is left in float."""
        return not self.floating

    def as_integers(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """Those of the weighted ``nodes`` that do not run in float."""
        return tuple(node for node in nodes if node not in self.floating_nodes)


def count_layers(graph: onnx.GraphProto, file: onnx.GraphProto) -> KernelCount:
    """Of a graph that onnxruntime has optimized; ``file``: as it was before."""
    names = _Names(file)
    layers = list(_layers(graph, frozenset()))
    integer = collections.Counter(node.op_type for node in layers if operators.get(node.op_type).kernel == "integer")
    floating = [node for node in layers if operators.get(node.op_type).kernel == "float"]
    outputs = {node.output[0] for node in floating}
    return KernelCount(
        integer=dict(sorted(integer.items())),
        floating=dict(sorted(collections.Counter(node.op_type for node in floating).items())),
        floating_nodes=tuple(map(names.of, floating)),
        between_pairs=dict(sorted(collections.Counter(_between_pairs(graph, outputs)).items())),
    )


class _Names:
    """What a file calls the layers that onnxruntime has fused, renamed or laid out in another way."""

    def __init__(self, file: onnx.GraphProto) -> None:
        self._layers = {node.output[0] for node in _layers(file, frozenset())}
        self._made = {name: node for node in file.node for name in node.output}
        self._nodes = {node.name: node for node in file.node if node.name}

    def of(self, node: NodeProto) -> str:
        """The name of the layer that became a node, which is named after it or after the tensor that it ends in."""
        name = _LAID_OUT.sub("", node.name)
        for start in (self._nodes.get(name), self._made.get(name), *(self._made.get(one) for one in node.output)):
            layer = start
            while layer is not None and layer.output[0] not in self._layers:
                layer = next((self._made[one] for one in layer.input if one in self._made), None)
            if layer is not None:
                return str(layer.name or layer.output[0])
        return str(node.name or node.output[0])


def _layers(graph: onnx.GraphProto, constants: Set[str]) -> Iterator[NodeProto]:
    """The layers of a graph and those inside it; ``constants``: what it sees of the graphs around."""
    known = {*constants, *(tensor.name for tensor in graph.initializer)}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _layers(inner, known)
        if all(name in known for name in node.input if name):  # as a DequantizeLinear of weights
            known.update(node.output)
        operator = operators.get(node.op_type)
        # A product of two activations, as of attention, has no weight.
        operands = [node.input[i] for i in operator.operands if i < len(node.input)]
        if operator.kernel is not None and (not operands or known.intersection(operands)):
            yield node


def _between_pairs(graph: onnx.GraphProto, layers: Set[str]) -> Iterator[str]:
    """The operators that depend on a DequantizeLinear of no constant and lead to a pair, but ``layers``, by output."""
    constants = {tensor.name for tensor in graph.initializer}
    floats: set[str] = set()  # what was dequantized, and what float nodes made of it
    for node in graph.node:
        starts = node.op_type == "DequantizeLinear" and node.input[0] not in constants
        if starts or (node.op_type != "QuantizeLinear" and floats.intersection(node.input)):
            floats.update(node.output)
    leading: set[str] = set()
    for node in reversed(graph.node):
        inside = bool(leading.intersection(node.output)) and node.op_type != "DequantizeLinear"
        if node.op_type == "QuantizeLinear" or inside:
            leading.update(node.input)
        is_layer = node.output[0] in layers
        reorders = node.op_type.startswith("Reorder")  # of its memory
        if inside and not is_layer and not reorders and floats.intersection(node.output):
            yield node.op_type
