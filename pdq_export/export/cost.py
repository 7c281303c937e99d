"""What the constants of each weight take of a written file, in bytes.

It is read off a graph, whichever layout wrote it: a file is a list of entries, nodes and initializers, so that its size
is the sum of theirs and of the rest. An entry belongs to a weight where nothing but the weight's layers needs it:
packed integers, zero points, scales, biases, and the nodes that unpack them. What a Split deals out to several weights
belongs to them in proportion.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import GraphProto, NodeProto

from pdq_export.spec import Layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A node or initializer that weights need and nothing else does.

    ``content``: equal of equal ones, also of other files. ``size``: its bytes, of which ``data`` are numbers.
    ``parts``: by weight, how many of the numbers it needs, 0 where that is all of them.
    """

    content: bytes
    size: int
    data: int
    parts: Mapping[str, int]

    @property
    def is_divided(self) -> bool:
        """Whether each of several weights has a part of its own."""
        return len(self.parts) > 1 and all(self.parts.values())

    def divide(self, size: int) -> dict[str, int]:
        """So many bytes by weight, in proportion."""
        ends = np.cumsum(list(self.parts.values()))
        ends = ends * size // ends[-1]
        return dict(zip(self.parts, np.diff(ends, prepend=0).tolist(), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantBytes:
    """Bytes of a graph's constants: ``entries`` by name of the tensor; ``names``: of all weights."""

    names: tuple[str, ...]
    entries: Mapping[str, Entry]

    @functools.cached_property
    def weights(self) -> Mapping[str, int]:
        """By name of the weight, what is there for its layers alone."""
        found = dict.fromkeys(self.names, 0)
        for entry in self.entries.values():
            if entry.is_divided or len(entry.parts) == 1:
                parts = entry.divide(entry.size) if entry.is_divided else dict.fromkeys(entry.parts, entry.size)
                for name, size in parts.items():
                    found[name] += size
        return found

    @functools.cached_property
    def shared(self) -> Mapping[str, int]:
        """By name of a tensor, what layers of several weights need whole."""
        entries = self.entries.items()
        return {name: entry.size for name, entry in entries if len(entry.parts) > 1 and not entry.is_divided}


def constant_bytes(graph: GraphProto, layers: Iterable[Layer]) -> ConstantBytes:
    """The bytes of the constants that weighted nodes read, quantized or not; ``layers`` are named as in the plan."""
    weight_of = {layer.node: layer.weight for layer in layers}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    constant = _constant_tensors(graph)
    needs = {value.name: _Need(others=True) for value in graph.output}
    entries: dict[str, Entry] = {}
    for node in reversed(graph.node):
        need = _Need(others=True)
        if constant.issuperset(node.output):
            need = _need_of(node, needs, initializers)
            _count(entries, need, node.output[0], node)
        path = _PATH.get(node.op_type, 0)
        for place, name in enumerate(node.input):
            reader = need if place == path else need.undivided()
            if node.name in weight_of and place:
                reader = _Need(parts={weight_of[node.name]: 0})
            needs.setdefault(name, _Need()).add(reader)
    for tensor in graph.initializer:
        _count(entries, needs.get(tensor.name, _Need()), tensor.name, tensor, len(tensor.raw_data))
    return ConstantBytes(names=tuple(dict.fromkeys(weight_of.values())), entries=entries)


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


def _count(entries: dict[str, Entry], need: _Need, name: str, entry: Message, data: int = 0) -> None:
    """Count an entry for the weights that need it; what others need is no constant of a weight."""
    if need.parts and not need.others:
        content = hashlib.sha1(entry.SerializeToString(deterministic=True), usedforsecurity=False).digest()
        entries[name] = Entry(content=content, size=entry_bytes(entry), data=data, parts=need.parts)


def _constant_tensors(graph: GraphProto) -> set[str]:
    """Initializers, and what nodes compute from nothing else."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        inner = any(item.HasField("g") or item.graphs for item in node.attribute)
        if not inner and known.issuperset(name for name in node.input if name):
            known.update(node.output)
    return known
