"""Operators that say the same as another one are written as that one, which planning, import and export know.

Sum of tensors is a chain of Add, in the order in which runtimes add; Mean is the same and a Mul by 1 / n. Max and Min
with a number are a Clip, a Clip without an upper bound above 0 is a Relu, and a Clip takes in the Relu before it. PRelu
with one slope is LeakyRelu, Swish is x * Sigmoid(x), and what computes nothing at inference is passed by. All of it
gives the same numbers, but Mean, which multiplies where it divided, and Swish, by float rounding.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto
from onnx.helper import make_node

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input

Rewrite = Callable[[GraphIndex, NodeProto], list[NodeProto] | None]
Bounds = tuple[float | None, float | None]  # low and high; None is no bound
_LARGEST = float(np.finfo(np.float32).max)


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite the nodes that say the same as others; constants have to be initializers.

    Tensors keep their names. The last of several new nodes has the name of the old one.
    """
    index = GraphIndex(model)
    found = [node for node in model.graph.node if node.op_type in _REWRITES and not node.domain]
    for node in found:
        writer = index.producer.get(node.output[0])
        if writer is None or writer is not node:
            continue  # a later node has taken it in
        nodes = _REWRITES[node.op_type](index, node)
        if nodes is not None:
            edit.replace_node(model.graph, node, nodes)
            index = GraphIndex(model)
    return model


def _numbered(node: NodeProto, number: int) -> str:
    return f"{node.name}/{number}" if node.name else ""


def _chain(index: GraphIndex, node: NodeProto, output: str, *, last_name: str) -> Iterator[NodeProto]:
    """Adds of all inputs of ``node``, from the first on, that write ``output``."""
    total, *others = node.input
    for number, operand in enumerate(others, 1):
        ends = number == len(others)
        result = output if ends else edit.fresh_name(index, f"{node.output[0]}.{number}")
        name = last_name if ends else _numbered(node, number)
        add = make_node("Add", [total, operand], [result], name)
        index.producer[result] = add  # so that the next fresh name is another one
        yield add
        total = result


def _sum(index: GraphIndex, node: NodeProto) -> list[NodeProto]:
    if len(node.input) == 1:
        return _nothing(node)
    return list(_chain(index, node, node.output[0], last_name=node.name))


def _mean(index: GraphIndex, node: NodeProto) -> list[NodeProto]:
    if len(node.input) == 1:
        return _nothing(node)
    total = edit.fresh_name(index, f"{node.output[0]}.sum")
    adds = list(_chain(index, node, total, last_name=_numbered(node, len(node.input) - 1)))
    share = edit.add_constant(index, f"{node.output[0]}.share", np.array(1 / len(node.input), np.float32))
    return [*adds, make_node("Mul", [total, share], node.output, node.name)]


def _extreme(index: GraphIndex, node: NodeProto) -> list[NodeProto] | None:
    """Max or Min of a tensor and a number."""
    if len(node.input) == 1:
        return _nothing(node)
    if len(node.input) != 2:
        return None
    for tensor, bound in (node.input, reversed(node.input)):
        value = _number(index, bound)
        if value is not None and not index.is_constant(tensor):
            own = (value, None) if node.op_type == "Max" else (None, value)
            return _with_earlier(index, node, tensor, own) or _limits(index, node, tensor, own)
    return None


def _clip(index: GraphIndex, node: NodeProto) -> list[NodeProto] | None:
    own = _bounds(index, node)
    if own is None:
        return None
    tensor = node.input[0]
    alone = _limits(index, node, tensor, own) if _is_relu(own) else None
    return _with_earlier(index, node, tensor, own) or alone


def _with_earlier(index: GraphIndex, node: NodeProto, tensor: str, own: Bounds) -> list[NodeProto] | None:
    """One node for a Relu or Clip and a Clip behind it; none where their bounds exclude each other."""
    before = index.producer.get(tensor)
    if before is None or before.domain or index.sole_consumer(tensor) is not node:
        return None
    earlier = (0.0, None) if before.op_type == "Relu" else _bounds(index, before)
    merged = None if earlier is None else _intersection(earlier, own)
    if merged is None:
        return None
    edit.replace_node(index.graph, before, [])
    return _limits(index, node, before.input[0], merged)


def _bounds(index: GraphIndex, node: NodeProto) -> Bounds | None:
    """Constant bounds of a float Clip, None for one that is left out; None altogether for anything else."""
    if node.op_type != "Clip" or node.domain:
        return None
    if index.opset < 11:
        return attribute(node, "min", None), attribute(node, "max", None)
    names = optional_input(node, 1), optional_input(node, 2)
    values = tuple(_number(index, name) for name in names)
    known = all(name is None or value is not None for name, value in zip(names, values, strict=True))
    return (values[0], values[1]) if known and any(names) else None


def _intersection(first: Bounds, second: Bounds) -> Bounds | None:
    """The bounds that both say, one after the other; None where they exclude each other."""
    lows = [low for low in (first[0], second[0]) if low is not None]
    highs = [high for high in (first[1], second[1]) if high is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    return None if low is not None and high is not None and low > high else (low, high)


def _is_relu(bounds: Bounds) -> bool:
    low, high = bounds
    return low == 0 and (high is None or high >= _LARGEST)


def _limits(index: GraphIndex, node: NodeProto, tensor: str, bounds: Bounds) -> list[NodeProto]:
    low, high = bounds
    if _is_relu(bounds):
        return [make_node("Relu", [tensor], node.output, node.name)]
    if index.opset < 11:
        limits: dict[str, Any] = {key: value for key, value in (("min", low), ("max", high)) if value is not None}
        return [make_node("Clip", [tensor], node.output, node.name, **limits)]
    names = [
        "" if value is None else edit.add_constant(index, f"{node.output[0]}.{key}", np.array(value, np.float32))
        for key, value in (("min", low), ("max", high))
    ]
    return [make_node("Clip", [tensor, *names] if names[1] else [tensor, names[0]], node.output, node.name)]


def _number(index: GraphIndex, tensor: str | None) -> float | None:
    """A float32 constant of one element that lends no axes to what it is compared with."""
    value = index.constant(tensor)
    if value is None or value.dtype != np.float32 or value.size != 1 or value.ndim > 1 or np.isnan(value).any():
        return None
    return float(value.reshape(()))


def _leaky(index: GraphIndex, node: NodeProto) -> list[NodeProto] | None:
    slope = index.constant(node.input[1])
    if slope is None or slope.size != 1:
        return None
    return [make_node("LeakyRelu", [node.input[0]], node.output, node.name, alpha=float(slope.reshape(())))]


def _rectifier(_: GraphIndex, node: NodeProto, *, default: float) -> list[NodeProto] | None:
    """A LeakyRelu or ThresholdedRelu whose alpha is 0."""
    if attribute(node, "alpha", default) != 0:
        return None
    return [make_node("Relu", [node.input[0]], node.output, node.name)]


def _swish(index: GraphIndex, node: NodeProto) -> list[NodeProto] | None:
    if attribute(node, "alpha", 1.0) != 1.0:
        return None
    gate = edit.fresh_name(index, f"{node.output[0]}.gate")
    return [
        make_node("Sigmoid", [node.input[0]], [gate], f"{node.name}/Sigmoid" if node.name else ""),
        make_node("Mul", [node.input[0], gate], node.output, node.name),
    ]


def _dropout(index: GraphIndex, node: NodeProto) -> list[NodeProto] | None:
    """At inference, where nobody reads the mask."""
    training = optional_input(node, 2)
    if index.opset < 7:  # an attribute says whether it drops anything
        return None
    if training is not None and ((value := index.constant(training)) is None or value.any()):
        return None
    if any(name and (index.consumers(name) or name in index.outputs) for name in node.output[1:]):
        return None
    return _nothing(node)


def _single(_: GraphIndex, node: NodeProto) -> list[NodeProto] | None:
    return _nothing(node) if len(node.input) == 1 else None


def _nothing(node: NodeProto) -> list[NodeProto]:
    return [make_node("Identity", [node.input[0]], [node.output[0]], node.name)]


_REWRITES: dict[str, Rewrite] = {
    "Sum": _sum,
    "Mean": _mean,
    "Max": _extreme,
    "Min": _extreme,
    "Clip": _clip,
    "PRelu": _leaky,
    "LeakyRelu": functools.partial(_rectifier, default=0.01),
    "ThresholdedRelu": functools.partial(_rectifier, default=1.0),
    "Swish": _swish,
    "Dropout": _dropout,
    "Concat": _single,
}
