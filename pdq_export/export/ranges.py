"""Which integers a quantized activation may take, and which it can take anyhow: what is bounded needs no Clip."""

import math

import numpy as np
from onnx import NodeProto

from pdq_export import operators
from pdq_export.errors import ExportError
from pdq_export.graph.lookup import GraphIndex, describe, optional_input
from pdq_export.spec import Plan, QuantizedTensor

Interval = tuple[float, float]
_UNBOUNDED: Interval = (-math.inf, math.inf)
# Of a step: integer kernels compute in float32, so that a value at the bound of a rounding may fall beyond it.
_MARGIN = 0.01


def integer_range(index: GraphIndex, quantized: QuantizedTensor, activation: NodeProto | None) -> tuple[int, int]:
    """Smallest and largest integer of an activation, inclusive.

    lo = max(qmin, q(lo_f)), hi = min(qmax, q(hi_f)) with q(v) = round_half_even(v / scale) + zero_point and [lo_f,
    hi_f] the interval that ``activation`` clips to; an Identity clips to none. Rounding is monotone, so clipping the
    integers equals quantizing what the activation gives. Raises ExportError for an activation that is no interval.
    """
    lo, hi = quantized.point.qmin, quantized.point.qmax
    if activation is None or activation.op_type == "Identity":
        return lo, hi
    low, high = _interval(index, quantized.point.tensor, activation)
    scale, zero_point = np.float32(quantized.scale), int(quantized.zero_point)

    def quantize(value: float) -> int:
        ratio = np.rint(np.float64(np.float32(value) / scale))
        return int(np.clip(ratio + zero_point, lo, hi))

    return (lo if low is None else quantize(low)), (hi if high is None else quantize(high))


def _interval(index: GraphIndex, tensor: str, activation: NodeProto) -> tuple[float | None, float | None]:
    if activation.op_type == "Relu":
        return 0.0, None
    if activation.op_type == "Clip":
        return bound(index, activation, 1), bound(index, activation, 2)
    raise ExportError(
        f"tensor {tensor!r}: {describe(activation)} cannot be expressed by an integer range; "
        "expected Relu or Clip; do not mark it as absorbed"
    )


def bound(index: GraphIndex, activation: NodeProto, position: int) -> float | None:
    """A bound of a Clip, its input at ``position``; None for none. Raises ExportError where it is not constant."""
    name = optional_input(activation, position)
    if name is None:
        return None
    value = index.constant(name)
    if value is None or value.size != 1:
        raise ExportError(
            f"tensor {activation.output[0]!r}: the bound {name!r} of {describe(activation)} is not constant; "
            "expected a scalar initializer; do not mark it as absorbed"
        )
    return float(value.reshape(()))


class Ranges:
    """Which values the tensors of a quantized graph can take, as far as points and the nodes between them tell.

    Nodes are to be visited, and points settled, in topological order. It needs neither weights nor inferred types,
    which files that are written again lack.
    """

    def __init__(self, index: GraphIndex, plan: Plan) -> None:
        self._index, self._plan = index, plan
        self._computed: dict[str, Interval] = {}
        self._settled: dict[str, Interval] = {}

    def visit(self, node: NodeProto) -> None:
        """Take in a node."""
        interval = self._of(node)
        if interval != _UNBOUNDED:
            self._computed[node.output[0]] = interval

    def settle(self, quantized: QuantizedTensor, integers: tuple[int, int]) -> None:
        """Take in that a point has these integers, from the first to the last."""
        scale, zero_point = np.asarray(quantized.scale).item(), np.asarray(quantized.zero_point).item()
        low, high = ((integer - zero_point) * scale for integer in integers)
        self._settled[quantized.point.tensor] = (low, high)

    def reachable(
        self, quantized: QuantizedTensor, activation: NodeProto | None, container: tuple[int, int]
    ) -> tuple[int, int]:
        """Smallest and largest integer of an activation that its type and what is quantized can give.

        ``activation``: the node that is dropped, whose input is quantized instead. ``container``: of the type. What is
        moved or clipped between two pairs counts as unbounded: onnxruntime makes one pair of both, in a scale of its
        own, where no Clip of integers keeps them apart.
        """
        tensor = quantized.point.tensor
        if not all(self._computes(reader) for reader in self._index.consumers(tensor)):
            return container
        values = self._computed.get(tensor, _UNBOUNDED) if activation is None else self._moved(activation)
        steps = np.array(values) / np.asarray(quantized.scale, np.float64).item() + [-_MARGIN, _MARGIN]
        low, high = np.clip(np.rint(steps) + np.asarray(quantized.zero_point).item(), *container)
        return int(low), int(high)

    def _read(self, node: NodeProto, tensor: str) -> Interval:
        """Of a tensor as ``node`` reads it."""
        source = self._plan.source(tensor)
        if source is None:
            return self._computed.get(tensor, _UNBOUNDED)
        plain = tensor in self._plan.unquantized.get(node.name, ())
        return _UNBOUNDED if plain else self._settled.get(source, _UNBOUNDED)

    def _moved(self, node: NodeProto) -> Interval:
        """Of the input of a node that is no more than a move or a bound."""
        known = self._plan.source(node.input[0]) is None
        return self._computed.get(node.input[0], _UNBOUNDED) if known else _UNBOUNDED

    @staticmethod
    def _computes(node: NodeProto) -> bool:
        """Whether a node certainly keeps its pair apart from one behind it."""
        operator = operators.get(node.op_type)
        return not node.domain and (operator.weighted or operator.merges or operator.bounded)

    def _of(self, node: NodeProto) -> Interval:
        """Of the first output of a node; of an operator that is not ONNX's own nothing is known, whatever its name."""
        if node.domain:
            return _UNBOUNDED
        operator = operators.get(node.op_type)
        least = 0.0 if operator.nonnegative else -math.inf
        match node.op_type:
            case "Relu" | "Clip" if self._is_known(node):
                low, high = _interval(self._index, node.output[0], node)
                limits = (-math.inf if low is None else low, math.inf if high is None else high)
                if self._plan.source(node.input[0]) is not None:
                    return _UNBOUNDED
                low, high = np.clip(self._moved(node), *limits)
                return float(low), float(high)
            case "Add":
                return _combined(np.add, *(self._read(node, name) for name in node.input))
            case "Mul":
                return _combined(np.multiply, *(self._read(node, name) for name in node.input))
            case "MaxPool":
                return self._moved(node)
        if operator.rearranges:
            return self._moved(node)
        return (max(least, -1.0), 1.0) if operator.bounded else (least, math.inf)

    def _is_known(self, activation: NodeProto) -> bool:
        """Whether the bounds of a Clip are constants; a Relu has none."""
        bounds = [self._index.constant(name) for name in activation.input[1:] if name]
        return all(value is not None and value.size == 1 for value in bounds)


def _combined(function: np.ufunc, first: Interval, second: Interval) -> Interval:
    """Of a sum or product."""
    if not np.isfinite([first, second]).all():
        return _UNBOUNDED
    ends = function.outer(first, second)
    return float(ends.min()), float(ends.max())
