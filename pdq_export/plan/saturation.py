"""Weights so wide that kernels of some processors saturate; `plan.passes.reduce_range` makes them narrower.

Without VNNI instructions, on x86 processors, onnxruntime multiplies UINT8 activations by INT8 weights with VPMADDUBSW,
which adds two neighbouring products in 16 bits and saturates. Activations of 8 bits reach 255, so weights may reach
64: 2 * 255 * 64 is the largest such sum that fits. Wider ones give wrong sums, without a word.
"""

from pdq_export import operators
from pdq_export.spec import CARRIER_BITS, Layer, Plan

_LARGEST_WEIGHT = 64


def saturating_layers(plan: Plan, *, signed: bool = False) -> list[str]:
    """Names of the layers with 8-bit inputs whose weights, q - zero_point, may exceed 64 in size.

    With ``signed`` those with INT8 inputs too: onnxruntime makes UINT8 of them, but they are there for other runtimes,
    which do not saturate, so that their weights keep their range.
    """
    return [layer.node for layer in plan.layers if _can_saturate(plan, layer, signed)]


def _can_saturate(plan: Plan, layer: Layer, signed: bool = False) -> bool:
    weight, source = plan.points.get(layer.weight), plan.points.get(plan.source(layer.input) or "")
    if weight is None or source is None or source.bits < CARRIER_BITS or (source.symmetric and not signed):
        return False
    if not operators.get(layer.op_type).integer_kernel:
        return False
    # An asymmetric weight may have its zero_point at either end of the range.
    return (-weight.qmin if weight.symmetric else weight.qmax) > _LARGEST_WEIGHT
