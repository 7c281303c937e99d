"""Weights that no x86 kernel saturates on.

onnxruntime's own quantization has the name ``reduce_range`` for it.
"""

import dataclasses
import logging

from pdq_export.plan.planned import Planned
from pdq_export.plan.saturation import saturating_layers
from pdq_export.spec import Plan

_REDUCED_BITS = 7


def run(planned: Planned) -> Planned:
    """Reduce the range where that was asked for; a plan without such weights stays as it is, and says so."""
    if not planned.options.section.reduce_range:
        return planned
    layers = saturating_layers(planned.plan)
    if not layers:
        text = (
            "--reduce-range changes nothing: no layer with UINT8 inputs of 8 bits has weights of 8 bits, or asymmetric "
            "ones of 7"
        )
        return planned.told(logging.WARNING, text)
    reduced = planned.with_points(reduce_range(planned.plan).points)
    return reduced.told(logging.INFO, f"weights that get {_REDUCED_BITS} bits: those of {', '.join(layers)}")


def reduce_range(plan: Plan) -> Plan:
    """The plan with symmetric weights of 7 bits, -64 to 63, in the layers that `saturating_layers` finds."""
    points, saturating = dict(plan.points), set(saturating_layers(plan))
    for layer in plan.layers:
        if layer.node in saturating:
            points[layer.weight] = points[layer.weight].with_bits(_REDUCED_BITS, symmetric=True)
    return dataclasses.replace(plan, points=points)
