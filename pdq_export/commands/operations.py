"""Multiplications of each layer, and what they take where hardware pays for the bits of both factors."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.graph.prepare import PreparedModel
from pdq_export.search.budget import Cost
from pdq_export.spec import ALL_BITS, CARRIER_BITS, MAX_BITS, Layer, Plan, Role
from pdq_export.validate import Session


def count_multiplications(
    prepared: PreparedModel, layers: Sequence[Layer], inputs: Sequence[NDArray[np.float32]]
) -> dict[str, int]:
    """By node, those that a layer takes for ``inputs``, one array for each of the model's. Raises ValidationError.

    Of a convolution without what its padding would save: every weight is counted at every place.
    """
    index = prepared.index
    shown = onnx.ModelProto()
    shown.CopyFrom(prepared.model)
    known = {value.name for value in shown.graph.output}
    wanted = {name for layer in layers for name in (layer.input, layer.output)} - set(index.inputs)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - known))
    found = Session(shown.SerializeToString()).run_by_name(tuple(inputs))
    shapes = {name: x.shape for name, x in found.items()} | {
        name: x.shape for name, x in zip(index.inputs, inputs, strict=True)
    }
    counts = {}
    for layer in layers:
        weight = index.initializers[layer.weight].dims
        transposed = layer.op_type == "ConvTranspose"
        if transposed or layer.op_type == "Conv":
            # A ConvTranspose uses each weight once for every place of its input.
            places = shapes[layer.input if transposed else layer.output]
            counts[layer.node] = math.prod(weight) * places[0] * math.prod(places[2:])
        else:
            counts[layer.node] = math.prod(shapes[layer.output]) * math.prod(weight) // shapes[layer.output][-1]
    return counts


def bit_operations(plan: Plan, multiplications: Mapping[str, int]) -> Cost:
    """Multiplications times the bits of both factors, over all quantized layers, in units of what 8/8 takes.

    What a layer reads as no learned activation has 8 bits.
    """
    unit = sum(multiplications[layer.node] for layer in plan.layers) * MAX_BITS * CARRIER_BITS
    single: dict[str, dict[int, float]] = {}
    pairs: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for layer in plan.layers:
        share = multiplications[layer.node] / max(unit, 1)
        source = plan.source(layer.input)
        if source is not None and plan.points[source].role is Role.ACTIVATION:
            both = pairs.setdefault((layer.weight, source), {(v, w): 0.0 for v in ALL_BITS for w in ALL_BITS})
            for v, w in both:
                both[v, w] += share * v * w
        else:
            own = single.setdefault(layer.weight, dict.fromkeys(ALL_BITS, 0.0))
            for v in ALL_BITS:
                own[v] += share * v * CARRIER_BITS
    return Cost(single=single, pairs=pairs)
