"""Which integers a quantized activation may take, with a dropped Relu or Clip expressed in them."""

import numpy as np
from onnx import NodeProto

from pdq_export.errors import ExportError
from pdq_export.graph.lookup import GraphIndex, describe, optional_input
from pdq_export.spec import QuantizedTensor


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
        return _bound(index, activation, 1), _bound(index, activation, 2)
    raise ExportError(
        f"tensor {tensor!r}: {describe(activation)} cannot be expressed by an integer range; "
        "expected Relu or Clip; do not mark it as absorbed"
    )


def _bound(index: GraphIndex, activation: NodeProto, position: int) -> float | None:
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
