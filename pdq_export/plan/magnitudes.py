"""Weights too small for a scale that is a normal float32 number, of which runtimes may make zero."""

import numpy as np

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex, describe
from pdq_export.spec import Plan

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_LOST = 2.0  # a scale that has to be so many times as coarse: one bit


def check_magnitudes(index: GraphIndex, plan: Plan) -> None:
    """Raise ModelError if the largest value of a quantized weight is too small for its bits.

    A weight of zeros is let pass.
    """
    for layer in plan.layers:
        weight, point = index.constant(layer.weight), plan.points.get(layer.weight)
        if weight is None or point is None:
            continue
        largest, needed = float(np.abs(weight).max(initial=0)), point.qmax * _SMALLEST_SCALE
        if 0 < largest < needed / _LOST:
            raise ModelError(
                f"{describe(index.nodes[layer.node])}: the largest value of its weight {layer.weight!r} is "
                f"{largest:.3g}; expected at least {needed:.3g}, as less has no scale of {point.bits} bits that is a "
                "normal float32 number; multiply the weight and the bias by a power of two and divide the next "
                "layer's weight by it"
            )
