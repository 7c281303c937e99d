"""Weights narrow enough for the INT32 sums of integer kernels.

A kernel adds K products of an activation and a weight, and its bias, in 32 bits, and wraps around without a word where
that does not hold them: at 8/8 from K = 66,312 on, which a Gemm behind a flattened feature map can have.
"""

import dataclasses

from pdq_export import operators
from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import MIN_BITS, Layer, Plan, Point

# Largest sum of products: a bias takes up to 2^30 of the rest (`arithmetic.bias`), so that both together fit INT32.
_LARGEST_SUM, _LARGEST_SUM_BESIDE_BIAS = 2**31 - 1, 2**30 - 1


def fit_accumulators(index: GraphIndex, plan: Plan) -> tuple[Plan, dict[str, int]]:
    """The plan with fewer bits for the weights whose sums could leave INT32, and these bits by layer.

    Raises ModelError for a layer whose sums do not even fit with 2 bits.
    """
    points, narrowed = dict(plan.points), dict[str, int]()
    for layer in plan.layers:
        weight, source = plan.points.get(layer.weight), plan.points.get(plan.source(layer.input) or "")
        if weight is None or source is None or not operators.get(layer.op_type).integer_kernel:
            continue  # computed in float
        largest = _LARGEST_SUM_BESIDE_BIAS if plan.integer_bias and layer.bias else _LARGEST_SUM
        bits = _bits_that_fit(layer, weight, largest // (_terms(index, weight) * _largest_distance(source)))
        if bits < points[layer.weight].bits:
            points[layer.weight] = dataclasses.replace(points[layer.weight], bits=bits)
        if bits < weight.bits:
            narrowed[layer.node] = bits
    return (dataclasses.replace(plan, points=points) if narrowed else plan), narrowed


def _bits_that_fit(layer: Layer, weight: Point, largest: int) -> int:
    for bits in range(weight.bits, MIN_BITS - 1, -1):
        if _largest_distance(dataclasses.replace(weight, bits=bits)) <= largest:
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
