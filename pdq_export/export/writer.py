"""Collects the nodes and initializers of a new graph under names that collide with nothing in the old one."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto

from pdq_export.export.storage import packed_tensor
from pdq_export.graph.lookup import reads, subgraphs

NODE_BYTES = 128  # of a node in the file, about
# Names that are added to those of a tensor or node repeat it up to this length. torch's older exporter writes the path
# of modules into each: five additions of fifty characters, and two or three readers, are a third of a small file.
_LONGEST_REPEATED = 16
_LONGEST_STEM = 24


class GraphWriter:
    """A new graph in the making; the old one is only read."""

    def __init__(self, graph: GraphProto) -> None:
        self._old = graph
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self._tensor_names = set(_tensor_names(graph))
        self._node_names = {node.name for node in graph.node}
        self._own = frozenset(self._tensor_names | self._node_names)
        self._stems: dict[str, str] = {}
        self._integers: dict[tuple[int, int, bool], str] = {}
        self._zeros: dict[tuple[tuple[int, ...], type[np.integer[Any]]], str] = {}
        self._shared_numbers: dict[tuple[tuple[int, ...], str], str] = {}
        self._claimed: set[tuple[int, ...]] = set()

    def node(self, op_type: str, inputs: Sequence[str], output: str, *, name: str = "", **attributes: Any) -> str:
        """Append a node; ``output`` and ``name`` are wishes. Returns the real name of the output.

        Nodes that runtimes fold when they load the file go without a name, which would be longer than the rest of them.
        """
        return self.node_to(op_type, inputs, self.tensor_name(output), name=name, **attributes)

    def node_to(self, op_type: str, inputs: Sequence[str], output: str, *, name: str = "", **attributes: Any) -> str:
        """Append a node that writes exactly ``output``, a name of the old graph that is free in the new one."""
        name = _unique(self._short(name), self._node_names) if name else name
        self._nodes.append(onnx.helper.make_node(op_type, list(inputs), [output], name=name, **attributes))
        return output

    def nodes(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Append a node of several outputs, as `node`. Returns their real names."""
        names = [self.tensor_name(output) for output in outputs]
        self._nodes.append(onnx.helper.make_node(op_type, list(inputs), names, **attributes))
        return names

    def copy(self, node: NodeProto, inputs: Sequence[str], outputs: Sequence[str] | None = None) -> NodeProto:
        """Append a copy of an old node that reads ``inputs`` and writes ``outputs`` (default: its own)."""
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = inputs
        if outputs is not None:
            copied.output[:] = outputs
        self._nodes.append(copied)
        return copied

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer. Returns its real name."""
        name = self.tensor_name(name)
        return self.initializer(onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))

    def initializer(self, tensor: TensorProto) -> str:
        """Add an initializer whose name came from `tensor_name`. Returns the name."""
        self._initializers[tensor.name] = tensor
        return tensor.name

    def integer(self, value: int, bits: int, *, signed: bool = False) -> str:
        """An integer scalar of ``bits`` bits (2, 4 or 8) that every user of the same value and type shares."""
        key = (value, bits, signed)
        if key not in self._integers:
            name = self.tensor_name(f"{'int' if signed else 'uint'}{bits}_{value}")
            self._integers[key] = self.initializer(packed_tensor(name, np.array(value), bits, signed=signed))
        return self._integers[key]

    def int32(self, *values: int) -> str:
        """INT32 values, of one a scalar, that every user of the same shares."""
        return self._numbers(values, np.array(values[0] if len(values) == 1 else values, np.int32))

    def int64(self, *values: int) -> str:
        """INT64 values, [n], that every user of the same shares: shapes and bounds."""
        return self._numbers(values, np.array(values, np.int64))

    def _numbers(self, values: tuple[int, ...], array: NDArray[Any]) -> str:
        key = (values, array.dtype.name)
        if key not in self._shared_numbers:
            self._shared_numbers[key] = self.constant("_".join([array.dtype.name, *map(str, values[:4])]), array)
        return self._shared_numbers[key]

    def sole_zeros(self, shape: tuple[int, ...]) -> str:
        """INT8 zeros that no other caller gets; the first of a shape shares those of `zeros`.

        Runtimes would make equal nodes one again, so others are stored.
        """
        if shape in self._claimed:
            return self.constant("_".join(["int8_zero", *map(str, shape)]), np.zeros(shape, np.int8))
        self._claimed.add(shape)
        return self.zeros(shape)

    def zeros(self, shape: tuple[int, ...], dtype: type[np.integer[Any]] = np.int8) -> str:
        """Integer zeros that every user of the same shape and type shares."""
        key = (shape, dtype)
        if key not in self._zeros:
            name = "_".join([f"{np.dtype(dtype)}_zero", *(str(size) for size in shape)])
            if math.prod(shape) * np.dtype(dtype).itemsize < NODE_BYTES:
                self._zeros[key] = self.constant(name, np.zeros(shape, dtype))
            else:
                sizes = self.constant(f"{name}_shape", np.array(shape, np.int64))
                value = onnx.numpy_helper.from_array(np.zeros(1, dtype))
                self._zeros[key] = self.node("ConstantOfShape", [sizes], name, value=value)
        return self._zeros[key]

    def tensor_name(self, wanted: str) -> str:
        """``wanted`` or, if it is taken, ``wanted_1`` and so on; it is taken from now on."""
        return _unique(self._short(wanted), self._tensor_names)

    def _short(self, wanted: str) -> str:
        """``Relu.3_scale`` for ``/layer1/layer1.0/Relu_output_0_scale``; short names and those of the old graph stay.

        The stem is the end of the tensor's or node's name, numbered where several end alike.
        """
        if wanted in self._own:
            return wanted
        ends = (match.start() for match in reversed(list(re.finditer("[_/]", wanted))))
        base = next((wanted[:end] for end in ends if wanted[:end] in self._own), "")
        if len(base) <= _LONGEST_REPEATED:
            return wanted
        if base not in self._stems:
            self._stems[base] = _unique(_end(base), set(self._stems.values()), separator=".")
        return self._stems[base] + wanted[len(base) :]

    def finish(self) -> GraphProto:
        """The new graph: the old inputs and outputs, and the nodes and initializers that are needed."""
        needed = {value.name for value in self._old.output}
        kept: list[NodeProto] = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(reads(node))
                kept.append(node)
        was_constant = {tensor.name for tensor in self._old.initializer}
        graph = GraphProto(name=self._old.name, doc_string=self._old.doc_string)
        graph.input.extend(v for v in self._old.input if v.name in needed or v.name not in was_constant)
        graph.output.extend(self._old.output)
        graph.initializer.extend(t for name, t in self._initializers.items() if name in needed)
        graph.sparse_initializer.extend(t for t in self._old.sparse_initializer if t.values.name in needed)
        graph.node.extend(reversed(kept))
        return graph


def _end(name: str) -> str:
    """The end of a path: ``Relu`` of ``/layer1/Relu_output_0``, ``conv1.weight`` of ``layer1.0.conv1.weight``."""
    last = re.split("[/:]", name.removesuffix("_output_0").rstrip("/:"))[-1]
    return ".".join(last.split(".")[-2:])[-_LONGEST_STEM:] or "tensor"


def _unique(wanted: str, taken: set[str], separator: str = "_") -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}{separator}{count}"
    taken.add(name)
    return name


def _tensor_names(graph: GraphProto) -> Iterable[str]:
    yield from (value.name for value in [*graph.input, *graph.output, *graph.value_info])
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in subgraphs(node):
            yield from _tensor_names(inner)
