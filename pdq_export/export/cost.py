"""What the constants of each weight take of a written file, in bytes.

It is read off a graph, whichever layout wrote it: a file is a list of entries, nodes and initializers, so that its size
is the sum of theirs and of the rest. An entry belongs to a weight where nothing but the weight's layers needs it:
packed integers, zero points, scales, biases, and the nodes that unpack them. What a Split deals out to several weights
belongs to them in proportion.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import GraphProto, NodeProto

from pdq_export.spec import Layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantBytes:
    """Bytes of a graph's constants.

    ``weights``: by name of the weight, what is there for its layers alone. ``shared``: by name of a tensor, what layers
    of several weights need and nothing else does.
    """

    weights: Mapping[str, int]
    shared: Mapping[str, int]


def constant_bytes(graph: GraphProto, layers: Iterable[Layer]) -> ConstantBytes:
    """The bytes of the constants that weighted nodes read, quantized or not; ``layers`` are named as in the plan."""
    weight_of = {layer.node: layer.weight for layer in layers}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    constant = _constant_tensors(graph)
    needs = {value.name: _Need(others=True) for value in graph.output}
    weights, shared = dict.fromkeys(weight_of.values(), 0), dict[str, int]()
    for node in reversed(graph.node):
        need = _Need(others=True)
        if constant.issuperset(node.output):
            need = _need_of(node, needs, initializers)
            _count(weights, shared, need, node.output[0], entry_bytes(node))
        path = _PATH.get(node.op_type, 0)
        for place, name in enumerate(node.input):
            reader = need if place == path else need.undivided()
            if node.name in weight_of and place:
                reader = _Need(parts={weight_of[node.name]: 0})
            needs.setdefault(name, _Need()).add(reader)
    for tensor in graph.initializer:
        _count(weights, shared, needs.get(tensor.name, _Need()), tensor.name, entry_bytes(tensor))
    return ConstantBytes(weights=weights, shared=shared)


def entry_bytes(entry: Message) -> int:
    """Bytes of a node, initializer or property in what contains it: with its tag and its length."""
    size = int(entry.ByteSize())
    return 1 + -(-max(size.bit_length(), 1) // 7) + size


_PATH = {"Gather": 1}  # the input whose numbers go through a node one by one, where it is not the first


@dataclasses.dataclass(kw_only=True)
class _Need:
    """Who needs a tensor: weights, with the number of elements that each gets, 0 for all, and ``others``."""

    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    others: bool = False

    def add(self, other: "_Need") -> None:
        """Take in another reader of the tensor."""
        divided = all([*self.parts.values(), *other.parts.values()])
        for name, size in other.parts.items():
            self.parts[name] = self.parts.get(name, 0) + size if divided else 0
        if not divided:
            self.parts = dict.fromkeys(self.parts, 0)
        self.others |= other.others

    def undivided(self) -> "_Need":
        """The same weights, each of which needs all of it."""
        return _Need(parts=dict.fromkeys(self.parts, 0), others=self.others)


def _need_of(node: NodeProto, needs: Mapping[str, _Need], initializers: Mapping[str, onnx.TensorProto]) -> _Need:
    """Who needs what a node of constants computes."""
    found = _Need()
    sizes = initializers.get(node.input[1]) if node.op_type == "Split" and len(node.input) > 1 else None
    parts = [0] * len(node.output) if sizes is None else onnx.numpy_helper.to_array(sizes).tolist()
    for name, size in zip(node.output, parts, strict=True):
        need = needs.get(name, _Need())
        alone = len(need.parts) == 1 and sizes is not None
        found.add(_Need(parts=dict.fromkeys(need.parts, size), others=need.others) if alone else need)
    return found


def _count(weights: dict[str, int], shared: dict[str, int], need: _Need, name: str, size: int) -> None:
    """Count an entry of ``size`` bytes for the weights that need it; what others need is no constant of a weight."""
    if need.others or not need.parts:
        return
    if len(need.parts) == 1:
        weights[next(iter(need.parts))] += size
    elif all(need.parts.values()):
        ends = np.cumsum(list(need.parts.values()))
        ends = ends * size // ends[-1]
        for weight, part in zip(need.parts, np.diff(ends, prepend=0).tolist(), strict=True):
            weights[weight] += part
    else:
        shared[name] = size


def _constant_tensors(graph: GraphProto) -> set[str]:
    """Initializers, and what nodes compute from nothing else."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        inner = any(item.HasField("g") or item.graphs for item in node.attribute)
        if not inner and known.issuperset(name for name in node.input if name):
            known.update(node.output)
    return known
