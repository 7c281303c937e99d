"""Which tensors are quantized to what, and which nodes are reconstructed together: the plan, from the graph alone."""

import onnx

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.blocks import find_blocks
from pdq_export.plan.family import network_family
from pdq_export.plan.points import find_layers, find_points
from pdq_export.plan.tensorrt import points_for_tensorrt
from pdq_export.spec import BitWidths, Plan

__all__ = ["make_plan", "network_family"]


def make_plan(
    model: onnx.ModelProto,
    bits: BitWidths,
    *,
    symmetric_weights: bool = False,
    per_layer: bool = False,
    tensorrt: bool = False,
) -> Plan:
    """Plan the quantization of a prepared model to ``bits``; ``per_layer`` makes every layer a block of its own.

    First and last weighted layers get 8-bit weights, the last layers' input and the network's input 8 bits; the
    network's outputs are not quantized (PD-Quant, section 4). ``tensorrt``: symmetric points, only where TensorRT's
    explicit quantization wants them, and float biases. Raises ModelError where there is nothing to quantize.
    """
    index = GraphIndex(model)
    layers = find_layers(index)
    points, passthrough = find_points(index, layers, bits, symmetric_weights=symmetric_weights)
    if tensorrt:
        points, passthrough = points_for_tensorrt(index, layers, points, passthrough)
    return Plan(
        bits=bits,
        points=points,
        passthrough=passthrough,
        layers=layers,
        blocks=find_blocks(index, layers, points, per_layer=per_layer),
        integer_bias=not tensorrt,
    )
