"""Weights narrow enough for the INT32 sums of integer kernels.

A kernel adds K products of an activation and a weight, and its bias, in 32 bits, and wraps around without a word where
that does not hold them: at 8/8 from K = 66,312 on, which a Gemm behind a flattened feature map can have.
"""

import logging

from pdq_export import operators
from pdq_export.errors import ModelError, first_few
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.planned import Planned
from pdq_export.spec import MIN_BITS, Layer, Point

# Largest sum of products: a bias takes up to 2^30 of the rest (`arithmetic.bias`), so that both together fit INT32.
_LARGEST_SUM, _LARGEST_SUM_BESIDE_BIAS = 2**31 - 1, 2**30 - 1


def run(planned: Planned) -> Planned:
    """Give fewer bits to the weights whose sums could leave INT32, and say which.

    Raises ModelError for a layer whose sums do not even fit with 2 bits.
    """
    plan, index = planned.plan, planned.index
    points, narrowed = dict(plan.points), dict[str, int]()
    for layer in plan.layers:
        weight, source = plan.points.get(layer.weight), plan.points.get(plan.source(layer.input) or "")
        if weight is None or source is None or not operators.get(layer.op_type).integer_kernel:
            continue  # computed in float
        largest = _LARGEST_SUM_BESIDE_BIAS if plan.integer_bias and layer.bias else _LARGEST_SUM
        bits = _bits_that_fit(layer, weight, largest // (_terms(index, weight) * _largest_distance(source)))
        if bits < points[layer.weight].bits:
            points[layer.weight] = weight.with_bits(bits)
        if bits < weight.bits:
            narrowed[layer.node] = bits
    if not narrowed:
        return planned
    return planned.with_points(points).told(
        logging.WARNING,
        "sums of so many products could leave the runtime's INT32, so weights get fewer bits: "
        f"{first_few([f'{node!r} {bits}' for node, bits in narrowed.items()])}; --exclude leaves a layer in float",
    )


def _bits_that_fit(layer: Layer, weight: Point, largest: int) -> int:
    for bits in range(weight.bits, MIN_BITS - 1, -1):
        if _largest_distance(weight.with_bits(bits)) <= largest:
            return bits
    raise ModelError(
        f"node {layer.node!r} ({layer.op_type}): its sums leave INT32 even with weights of {MIN_BITS} bits; "
        f"expected fewer products in a sum; leave it in float with --exclude {layer.node!r}"
    )


def _terms(index: GraphIndex, weight: Point) -> int:
    """How many products an output element adds up."""
    value = index.constant(weight.tensor)
    assert value is not None
    assert weight.axis is not None
    return max(1, int(value.size) // max(1, int(value.shape[weight.axis])))


def _largest_distance(point: Point) -> int:
    """The largest |q - zero_point|: an asymmetric point may have its zero_point at either end of the range."""
    return -point.qmin if point.symmetric else point.qmax
