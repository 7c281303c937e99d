"""`convert`: a finished file in another layout, from what is written in it; nothing is calibrated again."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx

from pdq_export.config.config import make_config
from pdq_export.config.record import retargeted
from pdq_export.errors import ExportError, ModelError, OptionError, ValidationError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.export import assemble, read_blueprint
from pdq_export.export.blueprint import DAMAGED, Blueprint, fill_missing, renew_blueprint
from pdq_export.export.blueprint import KEY as BLUEPRINT_KEY
from pdq_export.export.layouts import FORM, Quantized
from pdq_export.export.loading import choose_loading
from pdq_export.export.runtimes import check_runtime
from pdq_export.graph.external import all_tensors
from pdq_export.graph.load import in_memory, read_model
from pdq_export.graph.lookup import GraphIndex, opset_version
from pdq_export.graph.noise import noise
from pdq_export.graph.passes import lower_opset, raise_opset, tidy
from pdq_export.graph.sizes import check_tensor_sizes
from pdq_export.graph.tensors import check_size
from pdq_export.targets import Target, find_target, target_names
from pdq_export.validate import Session, check_loads


@tells_of_memory(calibrates=False)
def convert(
    model: str | Path | onnx.ModelProto, target: str, *, opset: int | None = None, runtime: str | None = None
) -> onnx.ModelProto:
    """Write a file that `pdq_export.quantize` wrote for ort, native, qcdq or qonnx in another layout.

    ``opset`` and ``runtime``: as in `quantize`; by default what was given there. Its graph is what
    quantizing for ``target`` would have written, and converting it back gives the first file again, byte for byte
    (with another ``runtime`` its graph, given the first one again). Both are run on a random input, without
    optimizations, where onnxruntime runs the files of both targets. Raises
    ModelError for a file that pdq-export did not write or that was changed since, OptionError for tensorrt, whose
    calibration is another one, and for an opset or a runtime that cannot be had, also where the file names the runtime
    itself, ValidationError where outputs differ.
    """
    check_target(target)
    find_target(target).check_runtime(make_config({"runtime": runtime}).file.runtime)
    file = read_model(model) if isinstance(model, str | Path) else in_memory(model)
    where = "model" if isinstance(model, onnx.ModelProto) else str(model)
    _check_sizes(file, where)
    properties = {entry.key: entry.value for entry in file.metadata_props}
    written_for = properties.get("pdq_export.target", "")
    if written_for in target_names() and not find_target(written_for).convertible:
        raise OptionError(
            f"{where}: is a {written_for} file; expected one of {', '.join(_convertible())}: {written_for} is "
            "calibrated in another way; quantize the float model again"
        )
    blueprint = read_blueprint(file, where)
    _check_unchanged(file, blueprint, written_for or "ort", where)
    blueprint, newest = _as_asked(blueprint, opset, runtime)
    wanted = _choose_opset(blueprint, target, newest)
    renewed = {**properties, BLUEPRINT_KEY: renew_blueprint(properties[BLUEPRINT_KEY], blueprint)}
    metadata = retargeted(renewed, target=target, opset=opset, runtime=runtime)
    try:
        converted = _write(blueprint.quantized, target, wanted, metadata)
    except ExportError as error:
        here = blueprint.quantized.index.opset
        if wanted >= here:
            raise
        if opset is not None:
            raise OptionError(
                f"--opset {opset}: the graph is of opset {here} and cannot be expressed in {wanted} ({error}); "
                f"expected {here}; quantize the float model with --target {target} --opset {opset}"
            ) from error
        converted = _write(blueprint.quantized, target, here, metadata)
    if blueprint.runtime is not None and find_target(target).layout.for_onnxruntime:
        own = f"{where}: was written with --runtime {blueprint.runtime}" if runtime is None else ""
        check_runtime(converted, blueprint.runtime, own)
    _check_equal(file, converted, find_target(written_for or "ort"), find_target(target))
    return converted


def check_target(target: str) -> None:
    """Raise OptionError for a target that is unknown or cannot be converted to."""
    if not find_target(target).convertible:
        raise OptionError(
            f"--target {target}: a finished file cannot be converted to it, since {target} is calibrated in another "
            f"way; expected {', '.join(_convertible())}; quantize the float model with --target {target}"
        )


def _convertible() -> list[str]:
    return [name for name in target_names() if find_target(name).convertible]


def _as_asked(blueprint: Blueprint, opset: int | None, runtime: str | None) -> tuple[Blueprint, int | None]:
    """The blueprint in the present form and for the runtime that is asked for, and the newest opset to write.

    How weights are packed stays as it is, but where another runtime is asked for or the form is older.
    """
    quantized, keeps = blueprint.quantized, runtime is None and blueprint.quantized.form == FORM
    runtime = runtime or blueprint.runtime
    opset = blueprint.max_opset if opset is None else opset
    chosen = choose_loading(quantized.index, quantized.plan, runtime=runtime, max_opset=opset)
    packing = quantized.packing if keeps else chosen.packing
    quantized = dataclasses.replace(quantized, form=FORM, packing=packing)
    return dataclasses.replace(blueprint, quantized=quantized, runtime=runtime), chosen.max_opset


def _choose_opset(blueprint: Blueprint, target: str, newest: int | None) -> int:
    needed = find_target(target).required_opset(blueprint.quantized.plan, newest, blueprint.quantized.packing)
    return max(needed, min(blueprint.own_opset, newest or blueprint.own_opset))


def _write(quantized: Quantized, target: str, opset: int, metadata: dict[str, str]) -> onnx.ModelProto:
    at_opset, layout = _at_opset(quantized, opset), find_target(target).layout
    return assemble(at_opset.index.model, layout.write(at_opset), layout=layout, metadata=metadata)


def _at_opset(quantized: Quantized, opset: int) -> Quantized:
    """The same at another opset, if there is such a graph: for a lower one the checker has to accept it."""
    here = quantized.index.opset
    if opset == here:
        return quantized
    model = fill_missing(quantized.index.model)
    if opset > here:
        model = raise_opset.run(tidy.infer_shapes(model), opset)
        del model.graph.value_info[:]
    else:
        model = lower_opset.run(model, opset)
    return dataclasses.replace(quantized, index=GraphIndex(model))


def _check_unchanged(file: onnx.ModelProto, blueprint: Blueprint, target: str, where: str) -> None:
    """Raise ModelError where writing the file again does not give its graph."""
    changed = ModelError(
        f"{where}: its graph is not the one that its metadata describes; expected a file as pdq-export wrote it; "
        "convert it before other tools change it, or quantize the float model again"
    )
    try:
        again = _write(blueprint.quantized, target, opset_version(file), {}).graph
    except DAMAGED as error:
        raise changed from error
    if _told_apart(file.graph, blueprint) != _told_apart(again, blueprint):
        raise changed


def _told_apart(graph: onnx.GraphProto, blueprint: Blueprint) -> bytes:
    """A written graph to be compared: what was added to the blueprint's names is called by its place.

    Other versions call it otherwise. Inferred shapes change nothing and are left out.
    """
    known = blueprint.quantized.index
    kept = {"", *known.inputs, *known.outputs, *known.initializers, *known.read, *known.producer, *known.nodes}
    numbers: dict[str, str] = {}

    def called(name: str) -> str:
        return name if name in kept else numbers.setdefault(name, f"\0{len(numbers)}")

    plain = onnx.GraphProto()
    plain.CopyFrom(graph)
    del plain.value_info[:]
    for tensor in plain.initializer:
        tensor.name = called(tensor.name)
    for node in plain.node:
        node.name = called(node.name)
        node.input[:] = map(called, node.input)
        node.output[:] = map(called, node.output)
    content: bytes = plain.SerializeToString(deterministic=True)
    return content


def _check_sizes(file: onnx.ModelProto, where: str) -> None:
    """Raise ModelError for tensors that are not as large as they say, or larger than any network needs."""
    try:
        for tensor in all_tensors(file.graph):
            check_size(tensor)
        check_tensor_sizes(file)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error.__cause__


def _check_equal(file: onnx.ModelProto, converted: onnx.ModelProto, source: Target, target: Target) -> None:
    """Run both, as the graphs say; outputs have to be equal to the bit.

    What does not run in onnxruntime has to load in its own runtime, and that is all.
    """
    if not target.in_onnxruntime:
        target.check_runs(converted.SerializeToString(), None)
        return
    check_loads(converted)
    if not source.in_onnxruntime:
        return
    x = noise(GraphIndex(file), np.random.default_rng(0), batch=1)
    if x is None:
        return
    session, other = (Session(m.SerializeToString(), optimize=False) for m in (file, converted))
    try:
        before = session.run(x)
    except ValidationError:
        return  # the guessed sizes do not suit the model
    after = other.run(x)
    for name, a, b in zip(session.outputs, before, after, strict=True):
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            raise ValidationError(
                f"output {name!r}: the converted model differs by {np.abs(a - b).max()} on random input; expected "
                "equal outputs; please report this as a bug"
            )
