"""The last touches: no dead nodes, no unused constants or opsets, unique node names, inferred shapes."""

import logging
import math

import onnx

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import all_nodes, reads
from pdq_export.graph.messages import essential_line
from pdq_export.graph.passes import name_batch

logger = logging.getLogger(__name__)

SHAPE_SIZE = 1024  # constants up to this size may be shapes, scales or axes, which inference reads


def remove_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop nodes whose outputs nobody reads, then initializers and opset imports that are not used."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(name for name in node.output if name):
            kept.append(node)
            needed.update(reads(node))
    kept.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    domains = {"", *(node.domain for node in all_nodes(kept))}
    opsets = [entry for entry in model.opset_import if entry.domain in domains]
    fields = ((graph.node, kept), (graph.initializer, initializers), (model.opset_import, opsets))
    for field, values in fields:
        del field[:]
        field.extend(values)
    return model


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a unique name: its own if it has one, else ``{op_type}_{position}``."""
    reserved = {node.name for node in model.graph.node}
    taken: set[str] = set()
    for position, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            stem = node.name or f"{node.op_type}_{position}"
            number, name = 0, stem
            while name in reserved or name in taken:
                number += 1
                name = f"{stem}_{number}"
            node.name = name
        taken.add(node.name)
    return model


def name_axes(value: onnx.ValueInfoProto) -> None:
    """Give anonymous dynamic axes a name, ``x.shape[0]``, so that inference can tell which are equal."""
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value") and not dim.dim_param:
            dim.dim_param = f"{value.name}.shape[{axis}]"


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer shape and type of every inner tensor; what stood there before is dropped.

    The anonymous axes of inputs stay anonymous. In inner tensors they are called ``x.shape[0]`` and so on. Raises
    ModelError if the shapes of an operator's inputs contradict each other.
    """
    skeleton = without_weights(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True)
    except Exception as error:  # RuntimeError, ValueError or its own InferenceError
        raise ModelError(
            f"model: shapes cannot be inferred ({essential_line(error)}); expected consistent shapes; "
            "check the file with onnx.checker.check_model(path, full_check=True) and re-export it"
        ) from error
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    for declared, computed in zip(model.graph.output, inferred.graph.output, strict=True):
        _correct(declared, computed)
    return name_batch.run(model)


def _correct(declared: onnx.ValueInfoProto, computed: onnx.ValueInfoProto) -> None:
    """Declare what the graph computes where a file says something else, which runtimes run but no checker accepts."""
    old, new = declared.type.tensor_type, computed.type.tensor_type
    if not (old.HasField("shape") and new.HasField("shape")):
        return
    pairs = list(zip(old.shape.dim, new.shape.dim, strict=False))
    known = [(a.dim_value, b.dim_value) for a, b in pairs if a.HasField("dim_value") and b.HasField("dim_value")]
    if len(old.shape.dim) == len(new.shape.dim) and all(a == b for a, b in known):
        return
    logger.warning(
        "output %r: declares the shape %s, but its node computes %s; the written file declares what is computed",
        declared.name,
        *([dim.dim_value or dim.dim_param or "?" for dim in each.shape.dim] for each in (old, new)),
    )
    old.shape.CopyFrom(new.shape)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large constants are inputs.

    Inference serializes the model, which takes time for weights.
    """
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        name_axes(value)
    graph.output.extend(model.graph.output)
    for value in graph.output:  # without its shape: what files declare is now and then wrong
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SHAPE_SIZE:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return skeleton
