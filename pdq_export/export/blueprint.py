"""What a file needs to know about itself to be written in another layout, in one of its metadata_props.

The weights lie in the graph, in any layout. The rest is the prepared float graph without its weights, the plan, and
the activations' parameters: an ONNX model with the plan as JSON in its own metadata, compressed; about 2 kB for a
ResNet-20. `read_blueprint` joins both again. The text is the same for every layout of one
calibration with the same packing and --runtime.
"""

import base64
import dataclasses
import math
import zlib
from collections.abc import Mapping

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto

from pdq_export.errors import ModelError, PdqError
from pdq_export.export.constants import LayerConstants
from pdq_export.export.layouts import FORM, OLDEST_FORM, Quantized
from pdq_export.export.readers import read_bias, read_weight
from pdq_export.export.stored_plan import StoredPlan, VersionError, read_plan, write_plan
from pdq_export.graph.lookup import GraphIndex, optional_input, quantized_nodes
from pdq_export.spec import BitWidths, Layer, Plan, Point, QuantizedTensor

KEY = "pdq_export.source"
_PLAN_KEY = "plan"
_SMALL = 64  # constants of up to so many elements are not looked for in the graph
_LARGEST = 1 << 28  # bytes of the description; that of a network with 1,000 layers is a thousandth of it

# What can come of reading a description that somebody has changed: its graph is a stranger's, and so are its names.
DAMAGED = (
    *(PdqError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError),
    DecodeError,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What `read_blueprint` finds: what was quantized, the opset of the user's model, and --opset and --runtime."""

    quantized: Quantized
    own_opset: int
    max_opset: int | None
    runtime: str | None = None


def describe_blueprint(blueprint: Blueprint, written: GraphProto) -> str:
    """The text for a file whose graph is ``written``: base 85 of a compressed ONNX model."""
    index, plan = blueprint.quantized.index, blueprint.quantized.plan
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(_without_constants(index.model))
    settled = {
        name
        for constants in blueprint.quantized.constants.values()
        for name in (constants.weight.point.tensor, constants.bias.tensor if constants.bias else None)
    }
    in_graph = {tensor.name for tensor in written.initializer}
    for tensor in index.graph.initializer:
        if tensor.name in settled or (tensor.name in in_graph and math.prod(tensor.dims) > _SMALL):
            skeleton.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            skeleton.graph.initializer.append(tensor)
    stored = StoredPlan.of(
        plan,
        opsets=(blueprint.own_opset, blueprint.max_opset),
        activations={
            name: (float(str(np.float32(known.scale))), int(known.zero_point))  # the fewest digits that tell it
            for name, known in blueprint.quantized.activations.items()
        },
        zero_points={
            constants.weight.point.tensor: _numbers(constants.weight.zero_point)
            for constants in blueprint.quantized.constants.values()
            if constants.weight.zero_point.any()
        },
        packing=blueprint.quantized.packing,
        runtime=blueprint.runtime,
    )
    return _pack(skeleton, stored)


def renew_blueprint(text: str, blueprint: Blueprint) -> str:
    """The text of `describe_blueprint` for a graph of the present form, from that of whichever form.

    ``blueprint``: has the packing and --runtime of that graph.
    """
    skeleton = _unpack(text)
    stored = read_plan(_stored(skeleton))
    renewed = dataclasses.replace(stored, version=FORM, packing=blueprint.quantized.packing, runtime=blueprint.runtime)
    return text if stored == renewed else _pack(skeleton, renewed)


def _numbers(zero_point: NDArray[np.int16]) -> int | tuple[int, ...]:
    return tuple(zero_point.tolist()) if zero_point.ndim else int(zero_point)


def read_blueprint(file: onnx.ModelProto, where: str = "model") -> Blueprint:
    """What ``file`` was written from, its weights read from its graph; raises ModelError where that is not told.

    ``where``: what messages call the file.
    """
    properties = {entry.key: entry.value for entry in file.metadata_props}
    if KEY not in properties:
        if next(quantized_nodes(file), None) is None:
            raise ModelError(
                f"{where}: is a float model; expected a file that pdq-export quantized for ort, native, qcdq or qonnx; "
                "quantize it first: pdq-export quantize --target has the same layouts"
            )
        raise ModelError(
            f"{where}: its metadata has no {KEY!r}; expected a file that this or a newer pdq-export quantized for ort, "
            "native, qcdq or qonnx; quantize the float model again"
        )
    try:
        skeleton = _unpack(properties[KEY])
        plan = read_plan(_stored(skeleton))
        return _join(file, skeleton, plan)
    except VersionError as error:
        raise ModelError(
            f"{where}: {KEY!r} has version {error.found}; expected {OLDEST_FORM} to {FORM}; "
            f"convert it with the pdq-export that wrote it, {properties.get('pdq_export.version', 'a newer one')[:40]}"
        ) from error
    except DAMAGED as error:
        raise ModelError(
            f"{where}: {KEY!r} in its metadata does not fit its graph ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); expected a file as pdq-export wrote it; "
            "quantize the float model again"
        ) from error


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    skeleton = onnx.ModelProto(
        ir_version=model.ir_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        opset_import=model.opset_import,
        functions=model.functions,
    )
    graph = model.graph
    skeleton.graph.CopyFrom(
        GraphProto(
            name=graph.name, doc_string=graph.doc_string, node=graph.node, input=graph.input, output=graph.output
        )
    )
    return skeleton


def _stored(skeleton: onnx.ModelProto) -> str:
    """The JSON that `read_plan` reads."""
    properties: dict[str, str] = {entry.key: entry.value for entry in skeleton.metadata_props}
    return properties[_PLAN_KEY]


def _pack(skeleton: onnx.ModelProto, stored: StoredPlan) -> str:
    onnx.helper.set_model_props(skeleton, {_PLAN_KEY: write_plan(stored)})
    return base64.b85encode(zlib.compress(skeleton.SerializeToString(deterministic=True), 9)).decode()


def _unpack(text: str) -> onnx.ModelProto:
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b85decode(text), _LARGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("it is cut off or too large")
    skeleton = onnx.ModelProto()
    skeleton.ParseFromString(data)
    return skeleton


def _join(file: onnx.ModelProto, skeleton: onnx.ModelProto, stored: StoredPlan) -> Blueprint:
    written = GraphIndex(file)
    for tensor in skeleton.graph.initializer:
        if _lacks_data(tensor) and tensor.name in written.initializers:
            tensor.CopyFrom(written.initializers[tensor.name])
    onnx.helper.set_model_props(skeleton, {})
    index = GraphIndex(skeleton)
    layers = tuple(_layer(index, index.nodes[name]) for name in stored.layers)
    plan = Plan(
        bits=BitWidths.parse(stored.bits),
        points=stored.plan_points(),
        passthrough=stored.passthrough,
        layers=layers,
        blocks=(),
        excluded=tuple(_layer(index, index.nodes[name]) for name in stored.excluded),
        tail=dict.fromkeys(stored.tail, ""),
        excluded_nodes=stored.excluded_nodes,
        unquantized=stored.unquantized,
    )
    activations = {
        name: QuantizedTensor(
            point=plan.points[name], scale=np.array(scale, np.float32), zero_point=np.array(zero_point, np.int32)
        )
        for name, (scale, zero_point) in stored.activations.items()
    }
    constants = {
        layer.node: _read_layer(
            written,
            layer,
            plan.points[layer.weight],
            shape=tuple(index.initializers[layer.weight].dims),
            zero_point=np.asarray(stored.zero_points.get(layer.weight, 0), np.int16),
            source=activations.get(plan.source(layer.input) or ""),
        )
        for layer in layers
        if layer.weight in plan.points
    }
    _check_complete(index, constants)
    return Blueprint(
        quantized=Quantized(
            index=index,
            plan=plan,
            activations=activations,
            constants=constants,
            form=stored.version,
            packing=stored.packing,
        ),
        own_opset=stored.opsets[0],
        max_opset=stored.opsets[1],
        runtime=stored.runtime,
    )


def _check_complete(index: GraphIndex, constants: Mapping[str, LayerConstants]) -> None:
    """Raise ValueError for a constant that lies neither in the graph nor, in its size, with a layer."""
    sizes: dict[str, int] = {}
    for settled in constants.values():
        sizes[settled.weight.point.tensor] = settled.weight.integers.size
        if settled.bias is not None:
            sizes[settled.bias.tensor] = settled.bias.integers.size
    for name, tensor in index.initializers.items():
        if _lacks_data(tensor) and not 0 < math.prod(tensor.dims) <= sizes.get(name, 0):
            raise ValueError(f"constant {name!r} is nowhere in the graph")


def _layer(index: GraphIndex, node: NodeProto) -> Layer:
    bias = optional_input(node, 2)
    return Layer(
        node=node.name,
        op_type=node.op_type,
        input=node.input[0],
        weight=node.input[1],
        bias=bias if index.is_constant(bias) else None,
        output=node.output[0],
    )


def _read_layer(
    written: GraphIndex,
    layer: Layer,
    point: Point,
    *,
    shape: tuple[int, ...],
    zero_point: NDArray[np.int16],
    source: QuantizedTensor | None,
) -> LayerConstants:
    """The constants of a layer; ``source``: what quantizes its input."""
    weight = read_weight(written, layer, point, shape=shape, zero_point=zero_point)
    input_scale = None if source is None else np.float32(source.scale)
    return LayerConstants(weight=weight, bias=read_bias(written, layer, weight, input_scale))


def fill_missing(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which constants without data, which only settled layers read, are zeros."""
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    for tensor in filled.graph.initializer:
        if _lacks_data(tensor):
            tensor.raw_data = bytes(
                math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            )
    return filled


def _lacks_data(tensor: TensorProto) -> bool:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return not tensor.HasField("raw_data") and not any(fields) and math.prod(tensor.dims) > 0
