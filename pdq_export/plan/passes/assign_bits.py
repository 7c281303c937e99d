"""Bits of single tensors, as an allotment by tensor name gives them: mixed precision."""

import dataclasses
from collections.abc import Mapping

from pdq_export.errors import OptionError
from pdq_export.nearby import near_names
from pdq_export.plan.outputs import Outer, read_unquantized
from pdq_export.plan.planned import Planned
from pdq_export.plan.readers import tensors_before_layers
from pdq_export.spec import Point, Role


def run(planned: Planned) -> Planned:
    """Assign the bits that the options have for single tensors."""
    bits = planned.options.tensor_bits
    return assign_bits(planned, dict(bits)) if bits else planned


def assign_bits(planned: Planned, bits: Mapping[str, int]) -> Planned:
    """The plan with other bits for the weights and learned activations that ``bits`` names.

    What is named nowhere keeps its bits. A weight that several layers share is one tensor and has one width for all of
    them; a tensor that carries another one's integers has the bits of that one. Weights of 8 bits are symmetric,
    narrower ones as the options have them. Raises OptionError for a name that is no weight and no learned activation of
    the plan, and for bits that it cannot have.
    """
    points = dict(planned.plan.points)
    for tensor, wanted in bits.items():
        point = points.get(tensor)
        if point is None or point.role is Role.CARRIER:
            raise _refused(planned, tensor)
        points[tensor] = point.with_bits(wanted, symmetric=planned.options.symmetric_weights)
    passthrough, unquantized = _read(planned, points)
    plan = dataclasses.replace(planned.plan, points=points, passthrough=passthrough, unquantized=unquantized)
    return dataclasses.replace(planned, plan=plan)


def _read(planned: Planned, points: Mapping[str, Point]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """What is passed on as integers, and what is read before quantization, where an activation may be narrower now.

    What was read so because it had few bits still is when it gets 8: that is as right, and as `plan.outputs` leaves it.
    """
    index, plan = planned.core, planned.plan
    layers = {layer.node for layer in (*plan.layers, *plan.excluded)}
    outer = Outer(index, layers, tensors_before_layers(index, layers))
    fewest = {n: dataclasses.replace(p, bits=min(p.bits, plan.points[n].bits)) for n, p in points.items()}
    passthrough, unquantized = read_unquantized(index, outer, fewest, plan.passthrough)
    return passthrough, {**plan.unquantized, **unquantized}


def _refused(planned: Planned, tensor: str) -> OptionError:
    """Why a tensor can be given no bits, and what can in its place."""
    plan = planned.plan
    expected = "expected the name of a weight or of a learned activation"
    if tensor in plan.points:
        found = f"is a carrier, which always has 8 bits; {expected}"
    elif tensor in plan.passthrough:
        source = plan.passthrough[tensor]
        found = f"carries the integers of {source!r}; {expected}; give the bits to {source!r}"
    elif layer := next((layer for layer in plan.excluded if layer.weight == tensor), None):
        found = f"belongs to {layer.node!r}, which stays in float; {expected}; leave out the --exclude that matches it"
    elif layer := next((layer for layer in plan.layers if layer.node == tensor), None):
        found = f"is a node; {expected}; its weight is {layer.weight!r}"
    elif tensor in planned.index.producer or tensor in planned.index.inputs or planned.index.is_constant(tensor):
        found = f"is not quantized under this plan; {expected}"
    else:
        known = [name for name, point in plan.points.items() if point.role is not Role.CARRIER]
        near = near_names(tensor, known)
        found = f"is not in the prepared model; {expected}{f'; did you mean {near[0]!r}?' if near else ''}"
    return OptionError(f"bits of tensor {tensor!r}: it {found}")
