"""float16, bfloat16 and float64 models compute in float32; inputs and outputs keep the types that they declare."""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, TensorProto

from pdq_export.graph.external import all_tensors
from pdq_export.graph.lookup import subgraphs

logger = logging.getLogger(__name__)

OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast, and of what makes tensors out of nothing: EyeLike, RandomNormal, ...


def other_floats(model: onnx.ModelProto) -> set[int]:
    """The float types besides float32 that the model has anywhere outside functions."""
    return {dtype for dtype in _float_types(model.graph) if dtype in OTHER_FLOATS}


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every other float float32, constants included; a Cast stands behind each input and before each output.

    A model that is float32 throughout is returned as it is.
    """
    graph = model.graph
    if not other_floats(model):
        return model
    logger.info("the model computes in float16, bfloat16 or float64; it is quantized from float32")
    taken = set(_names(graph))
    constant = {tensor.name for tensor in graph.initializer}
    inputs = {v.name: _fresh(v.name, taken) for v in graph.input if _is_other(v) and v.name not in constant}
    outputs = {v.name: _fresh(v.name, taken) for v in graph.output if _is_other(v) and v.name not in inputs}
    declared = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    _rename(graph, {**inputs, **outputs})
    _convert(graph, interface=constant)
    nodes = [onnx.helper.make_node("Cast", [old], [new], name=f"{new}.cast", to=1) for old, new in inputs.items()]
    nodes += graph.node
    nodes += [
        onnx.helper.make_node("Cast", [new], [old], name=f"{new}.cast", to=declared[old])
        for old, new in outputs.items()
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _is_other(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in OTHER_FLOATS


def _float_types(graph: GraphProto) -> Iterator[int]:
    yield from (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    yield from (tensor.data_type for tensor in all_tensors(graph))
    for node in graph.node:
        yield from (a.i for a in node.attribute if a.name in TYPE_ATTRIBUTES and a.type == onnx.AttributeProto.INT)
        for inner in subgraphs(node):
            yield from _float_types(inner)


def _names(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in subgraphs(node):
            yield from _names(inner)


def _fresh(name: str, taken: set[str]) -> str:
    wish, number = f"{name}.float32", 0
    while wish in taken:
        number += 1
        wish = f"{name}.float32_{number}"
    taken.add(wish)
    return wish


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Inner tensors only: the declarations of a whole model's inputs and outputs stay."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            _rename(inner, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def _convert(graph: GraphProto, interface: set[str] | None = None) -> None:
    """Constants, type attributes and declarations; of a whole model's inputs only those that ``interface`` names."""
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values if interface is None else [v for v in graph.input if v.name in interface]:
        if _is_other(value):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in [*graph.initializer, *(t for node in graph.node for a in node.attribute for t in (a.t, *a.tensors))]:
        if tensor.data_type in OTHER_FLOATS:
            with np.errstate(over="ignore"):  # an infinite result is left to check_finite, which has a message for it
                wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in TYPE_ATTRIBUTES and attribute.i in OTHER_FLOATS:
                attribute.i = TensorProto.FLOAT
        for inner in subgraphs(node):
            _convert(inner)
