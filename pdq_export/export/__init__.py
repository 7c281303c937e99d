"""Quantized tensors + plan + prepared ONNX model -> low-bit QDQ model; one module per layout, no torch.

Who a file is for, and which layout that takes, is said in `pdq_export.targets`.
"""

import dataclasses
from collections.abc import Mapping

import onnx

import pdq_export
from pdq_export.arithmetic.bias import bias_integers, bias_scale, channel_bias, has_integer_bias, round_bias
from pdq_export.errors import ExportError, OptionError
from pdq_export.export import ort
from pdq_export.export.blueprint import KEY as BLUEPRINT_KEY
from pdq_export.export.blueprint import Blueprint, describe_blueprint, read_blueprint
from pdq_export.export.constants import settle_constants
from pdq_export.export.layouts import MIN_OPSET, Layout, Packing, Quantized
from pdq_export.export.runtimes import KEY as RUNTIME_KEY
from pdq_export.export.runtimes import check_runtime, min_onnxruntime
from pdq_export.export.storage import NARROW, storage_opset
from pdq_export.graph.lookup import GraphIndex, opset_version
from pdq_export.graph.scopes import without_metadata
from pdq_export.spec import Plan, QuantizedTensors, Role

__all__ = [
    "Blueprint",
    "Layout",
    "Packing",
    "assemble",
    "bias_integers",
    "bias_scale",
    "channel_bias",
    "export_model",
    "has_integer_bias",
    "read_blueprint",
    "required_opset",
    "round_bias",
]


def required_opset(
    plan: Plan, layout: Layout = ort.LAYOUT, max_opset: int | None = None, packing: Packing = Packing.BYTES
) -> int:
    """The opset that `export_model` needs of a model: what the layout and ``packing`` want, at most ``max_opset``.

    Below the opset that knows a type, native stores its tensors in the next larger one: 2 bits in UINT4 below 25,
    everything in 8 bits below 21; ort packs its weights in bytes. Raises OptionError for ``max_opset`` below 13.
    """
    if max_opset is not None and max_opset < MIN_OPSET:
        raise OptionError(f"--opset {max_opset}: expected at least {MIN_OPSET}, which quantizes per channel")
    wanted = layout.required_opset(plan)
    if layout.packs and packing is Packing.TYPES:
        weights = (point.bits for point in plan.points.values() if point.role is Role.WEIGHT)
        wanted = max([wanted, *(storage_opset(bits) for bits in weights if bits in NARROW)])
    return wanted if max_opset is None else min(wanted, max_opset)


def export_model(
    model: onnx.ModelProto,
    plan: Plan,
    tensors: QuantizedTensors,
    *,
    layout: Layout = ort.LAYOUT,
    metadata: Mapping[str, str],
    convertible: bool = True,
    own_opset: int | None = None,
    max_opset: int | None = None,
    packing: Packing = Packing.BYTES,
    runtime: str | None = None,
) -> onnx.ModelProto:
    """Write the quantized model; ``model`` is left as it is and equal arguments give equal bytes.

    ``model``: prepared, at the opset that `required_opset` names. ``tensors``: one for each of the plan's
    points. ``metadata``: added to the model's own; where the file is to be ``convertible``, with what
    `pdq_export.commands.convert` needs: to that end ``own_opset``, of the model as it came, and ``max_opset``, as for
    `required_opset`, and ``runtime`` are written down. ``packing``: of the weights of ort. ``runtime``: the version of
    onnxruntime that has to load the file. Raises ExportError, naming the tensor, for whatever cannot be laid out, and
    OptionError for what needs a newer ``runtime``.
    """
    opset = opset_version(model)
    if opset < MIN_OPSET:
        raise ExportError(f"model: opset is {opset}; expected at least {MIN_OPSET}; prepare it first")
    model = without_metadata(model)
    quantized = dataclasses.replace(settle(model, plan, tensors), packing=packing)
    graph = layout.write(quantized)
    if convertible:
        blueprint = Blueprint(quantized=quantized, own_opset=own_opset or opset, max_opset=max_opset, runtime=runtime)
        metadata = {**metadata, BLUEPRINT_KEY: describe_blueprint(blueprint, graph)}
    written = assemble(model, graph, layout=layout, metadata=metadata)
    if runtime is not None:
        check_runtime(written, runtime)
    return written


def assemble(
    model: onnx.ModelProto, graph: onnx.GraphProto, *, layout: Layout, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """A checked model with the written ``graph`` and all else of ``model``. Raises ExportError."""
    quantized = onnx.ModelProto(
        ir_version=_ir_version(model),
        producer_name="pdq-export",
        producer_version=pdq_export.__version__,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
    )
    quantized.opset_import.extend(model.opset_import)
    own = {opset.domain for opset in model.opset_import}
    others = {domain: version for domain, version in layout.domains.items() if domain not in own}
    quantized.opset_import.extend(map(onnx.helper.make_opsetid, others.keys(), others.values()))
    quantized.functions.extend(model.functions)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    properties = {key: value for key, value in {**kept, **metadata}.items() if key != RUNTIME_KEY}
    onnx.helper.set_model_props(quantized, properties)
    quantized.graph.CopyFrom(graph)
    if layout.for_onnxruntime:
        onnx.helper.set_model_props(quantized, {**properties, RUNTIME_KEY: min_onnxruntime(quantized)})
    try:
        onnx.checker.check_model(quantized, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip()[:500]
        raise ExportError(f"model: the {layout.name} layout is not a valid model: {reason}") from error
    return quantized


def settle(model: onnx.ModelProto, plan: Plan, tensors: QuantizedTensors) -> Quantized:
    """The integers and scales that every layout writes. Raises ExportError if plan, tensors and model do not fit."""
    index = GraphIndex(model)
    for name, point in plan.points.items():
        if name not in tensors:
            raise ExportError(f"tensor {name!r}: planned but without scale and zero_point; calibrate it first")
        known = name in index.producer or name in index.inputs or name in index.initializers
        if point.role is not Role.WEIGHT and not known:
            raise ExportError(f"tensor {name!r}: planned but not in the model; plan the prepared model")
    for layer in plan.layers:
        if layer.node not in index.nodes:
            raise ExportError(f"node {layer.node!r}: planned but not in the model; plan the prepared model")
    activations = {name: tensors[name] for name, point in plan.points.items() if point.role is not Role.WEIGHT}
    constants = settle_constants(index, plan, tensors)
    return Quantized(index=index, plan=plan, activations=activations, constants=constants)


def _ir_version(model: onnx.ModelProto) -> int:
    """The lowest version that the opsets allow: a runtime may know an opset but refuse a newer format."""
    needed = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    return max(needed, 10) if model.functions else needed
