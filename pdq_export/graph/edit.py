"""Small changes to a graph that several passes share."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, attribute

Doubles = NDArray[np.float64]


def fresh_name(index: GraphIndex, wish: str) -> str:
    """``wish`` if no tensor has that name, else ``wish_1``, ``wish_2``, ..."""
    taken = {*index.initializers, *index.producer, *index.inputs, *index.read}
    number, name = 0, wish
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


def set_constant(index: GraphIndex, reader: NodeProto, name: str, value: NDArray[Any]) -> str:
    """Store ``value`` for ``reader`` under ``name`` and return the name.

    If others use ``name``, the value gets a fresh one.
    """
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
    readers = index.consumers(name)
    used_elsewhere = len(readers) > 1 or any(node is not reader for node in readers)
    if name in index.initializers and not used_elsewhere and name not in index.outputs:
        index.initializers[name].CopyFrom(tensor)
        return name
    tensor.name = fresh_name(index, name)
    index.graph.initializer.append(tensor)
    return str(tensor.name)


def add_constant(index: GraphIndex, wish: str, value: NDArray[Any]) -> str:
    """Add an initializer under a fresh name and return the name."""
    name = fresh_name(index, wish)
    index.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
    index.initializers[name] = index.graph.initializer[-1]
    return name


def with_constants(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of ``model`` with other values for some initializers, by name; ``model`` itself if there are none."""
    if not values:
        return model
    work = onnx.ModelProto()
    work.CopyFrom(model)
    for tensor in work.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return work


def drop_attribute(node: NodeProto, name: str) -> None:
    """Remove one attribute, if it is there."""
    kept = [candidate for candidate in node.attribute if candidate.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def replace_node(graph: onnx.GraphProto, node: NodeProto, replacements: Iterable[NodeProto]) -> None:
    """Put nodes in the place of ``node``; without any, ``node`` is removed.

    Nodes without metadata get those of ``node``.
    """
    position = next(i for i, candidate in enumerate(graph.node) if candidate is node)
    metadata = list(node.metadata_props)
    del graph.node[position]
    for offset, replacement in enumerate(replacements):
        graph.node.insert(position + offset, replacement)
        if not replacement.metadata_props:
            graph.node[position + offset].metadata_props.extend(metadata)


def output_axis(index: GraphIndex, layer: NodeProto) -> int:
    """The axis of a layer's constant weight that counts output channels.

    For a ConvTranspose these are the channels of one group.
    """
    match layer.op_type:
        case "Conv":
            return 0
        case "Gemm" if attribute(layer, "transB", 0):
            return 0
        case "MatMul":
            return len(index.initializers[layer.input[1]].dims) - 1
    return 1


def output_channels(index: GraphIndex, layer: NodeProto) -> int:
    """Number of output channels of a Conv, ConvTranspose, Gemm or MatMul with a constant weight."""
    channels = int(index.initializers[layer.input[1]].dims[output_axis(index, layer)])
    return channels * int(attribute(layer, "group", 1)) if layer.op_type == "ConvTranspose" else channels


def scale_outputs(layer: NodeProto, weight: Doubles, factor: Doubles) -> Doubles:
    """Multiply each output channel of a weight by ``factor``, shape [C]."""
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "Gemm":
        return weight * (factor[:, None] if attribute(layer, "transB", 0) else factor)
    groups = int(attribute(layer, "group", 1))  # ConvTranspose: [C_in, C_out / groups, ...]
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    by_group = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (grouped * by_group).reshape(weight.shape)


def scale_and_shift(index: GraphIndex, layer: NodeProto, factor: Doubles, offset: Doubles) -> None:
    """Change the constants of a Conv, ConvTranspose or Gemm so that its output y becomes y * factor + offset.

    ``factor``, ``offset``: float64 [C]. Computed in float64; shared constants are copied first.
    """
    weight = index.constant(layer.input[1])
    assert weight is not None, f"{layer.name}: the caller has checked that the weight is constant"
    bias_name = layer.input[2] if len(layer.input) > 2 and layer.input[2] else None
    bias = index.constant(bias_name)
    old_bias = np.float64(0) if bias is None else bias.astype(np.float64)
    if layer.op_type == "Gemm":
        old_bias = old_bias * attribute(layer, "beta", 1.0)
        drop_attribute(layer, "beta")
    new_weight = layer.input[1]
    with np.errstate(over="ignore"):  # an infinite result is left to check_finite, which has a message for it
        shifted = (old_bias * factor + offset).astype(weight.dtype)
        scaled = scale_outputs(layer, weight.astype(np.float64), factor).astype(weight.dtype)
    if np.any(factor != 1):
        new_weight = set_constant(index, layer, new_weight, scaled)
    new_bias = set_constant(index, layer, bias_name or f"{layer.input[1]}.bias", shifted)
    inputs = [layer.input[0], new_weight, new_bias]
    del layer.input[:]
    layer.input.extend(inputs)


def foldable_layer(index: GraphIndex, tensor: str, reader: NodeProto) -> NodeProto | None:
    """The layer that writes ``tensor``, if constants can be folded into it; else None.

    That is a Conv, ConvTranspose or Gemm with constant weights whose output only ``reader`` reads.
    """
    layer = index.producer.get(tensor)
    if layer is None or layer.domain or not operators.get(layer.op_type).takes_bias:
        return None
    if index.sole_consumer(tensor) is not reader:
        return None
    constants = [name for name in layer.input[1:] if name]
    return layer if constants and all(map(index.is_constant, constants)) else None
