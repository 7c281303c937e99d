"""The stages before calibration that `quantize` and `inspect_model` share."""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import pdq_export
from pdq_export.config.method import CalibrationOptions
from pdq_export.data import InputSpec
from pdq_export.errors import ModelError, OptionError, ValidationError
from pdq_export.frontend import find_batch_blockers, find_unsupported
from pdq_export.graph.lookup import GraphIndex, float_tensors_behind
from pdq_export.graph.noise import noise
from pdq_export.graph.passes import free_batch
from pdq_export.graph.prepare import PreparedModel, at_opset, prepare
from pdq_export.plan import PlanOptions, float_tail, without_tail
from pdq_export.plan.operators import is_nonnegative
from pdq_export.plan.outputs import separate_outputs
from pdq_export.plan.planned import Planned
from pdq_export.spec import Plan, Point, QuantizedTensor, Role
from pdq_export.targets import Target, find_target
from pdq_export.validate import Session

logger = logging.getLogger(__name__)


def prepare_and_plan(
    model: onnx.ModelProto, options: PlanOptions, *, target: str, opset: int | None
) -> tuple[PreparedModel, Plan]:
    """Prepare the model at the opset that the layout needs for what is planned, and plan it for the target.

    Raises ModelError or OptionError where that cannot be done as asked.
    """
    chosen = find_target(target)
    prepared = _separated(prepare(model))
    planned = _plan(prepared, options, chosen)
    needed, own = chosen.required_opset(planned.plan, opset), planned.index.opset
    if opset is not None and own > opset:
        raise OptionError(
            f"--opset {opset}: the model's own opset is {own} already; expected {own} or more; export the model with "
            f"opset {opset}"
        )
    if needed > own:
        prepared = at_opset(prepared, needed)
        planned = _plan(prepared, options, chosen)
    for level, text in planned.notes:
        logger.log(level, text)
    if planned.model is not prepared.model:  # nodes were added
        prepared = dataclasses.replace(prepared, model=planned.model)
    return prepared, planned.plan


def _plan(prepared: PreparedModel, options: PlanOptions, target: Target) -> Planned:
    return target.plan(prepared.model, options, _unsupported(prepared.model, options))


def _separated(prepared: PreparedModel) -> PreparedModel:
    return dataclasses.replace(prepared, model=separate_outputs(prepared.model))


def _unsupported(model: onnx.ModelProto, options: PlanOptions) -> dict[str, str]:
    """What calibration cannot compute, by node with the reason: unknown operators, and what mixes up images.

    The latter where the unknown ones are left to the tail; the model is refused for them otherwise.
    """
    freed = free_batch.run(model)
    found = {node: error.found for node, error in find_unsupported(freed).items()}
    if not found:
        return find_batch_blockers(freed, model)
    tail = float_tail(model, options, found)
    if not found.keys() <= tail.keys():
        return found
    core = without_tail(model, tail)
    return find_batch_blockers(free_batch.run(core), core) | found


def collect_settings(
    planning: PlanOptions,
    options: CalibrationOptions,
    *,
    target: str,
    family: str,
    method: str = "pd-quant",
    preset: str = "balanced",
) -> dict[str, Any]:
    """Everything that was asked for or settled, in plain types, for the report and the file's metadata."""
    return {
        **planning.settings(),
        "target": target,
        "method": method,
        "preset": preset,
        "family": family,
        **dataclasses.asdict(options),
    }


def file_metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a written file says about its own making."""
    return {
        "pdq_export.version": pdq_export.__version__,
        "pdq_export.bits": settings["bits"],
        "pdq_export.target": settings["target"],
        "pdq_export.seed": str(settings["seed"]),
        "pdq_export.config.method": json.dumps(settings, sort_keys=True),
    }


def dry_run(
    prepared: PreparedModel,
    plan: Plan,
    target: str,
    *,
    metadata: Mapping[str, str] | None = None,
    inputs: Sequence[NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """Export and run with placeholders, so that nobody waits for a calibration that cannot be written or run.

    ``inputs``: one array for each input; without them noise of the inputs' shapes, where the float model runs on that.
    Scales and zero points are as many-digited and as varied as learned ones: the file is as large as the real one.
    Raises ValidationError, naming the node to leave in float where onnxruntime does.
    """
    index, generator = GraphIndex(prepared.model), np.random.default_rng(0)
    tensors = {name: _placeholder(index, point, generator) for name, point in plan.points.items()}
    chosen = find_target(target)
    exported = chosen.export(prepared.model, plan, tensors, metadata=metadata or {})
    given = inputs if inputs is not None else _noise_that_runs(prepared.model, generator)
    try:
        chosen.check_runs(exported, None if given is None else tuple(given))
    except ValidationError as error:
        raise _with_remedy(error, index) from error
    return exported


def _noise_that_runs(model: onnx.ModelProto, generator: np.random.Generator) -> tuple[NDArray[np.float32], ...] | None:
    """Random inputs of one sample; None where there are none, or the float model does not run on them."""
    arrays = noise(GraphIndex(model), generator, batch=1)
    if arrays is None:
        return None
    try:
        Session(model.SerializeToString()).run(arrays)
    except ValidationError:
        return None
    return arrays


def _with_remedy(error: ValidationError, index: GraphIndex) -> ValidationError:
    """The error with the node that onnxruntime was running, whose name fusions keep, and what to do about it."""
    found = re.search(r"Name:'([^']+)'", str(error))
    node = index.nodes.get(found[1]) if found else None
    where = "model" if node is None else f"node {node.name!r} ({node.op_type})"
    remedy = "--exclude or --exclude-op" if node is None else f"--exclude '^{re.escape(node.name)}$'"
    return ValidationError(
        f"{where}: what would be written does not run ({error}); expected a quantized model that does; leave what "
        f"fails in float with {remedy}"
    )


def _placeholder(index: GraphIndex, point: Point, generator: np.random.Generator) -> QuantizedTensor:
    integers: NDArray[np.int16] | None = None
    shape: tuple[int, ...] = ()
    if point.role is Role.WEIGHT:
        weight = index.constant(point.tensor)
        assert weight is not None
        assert point.axis is not None
        integers, shape = np.zeros(weight.shape, np.int16), (weight.shape[point.axis],)
    # With zero_point 0, which what is never negative gets, onnxruntime drops a Relu before the pair.
    middle = 0 if point.symmetric or point.absorbed or is_nonnegative(index, point.tensor) else point.qmax / 2
    return QuantizedTensor(
        point=point,
        scale=np.asarray(generator.uniform(0.01, 0.02, shape), np.float32),
        zero_point=np.asarray(np.rint(middle * generator.uniform(0.5, 1.5, shape)), np.int32),
        integers=integers,
    )


def _cut(index: GraphIndex, name: str) -> str:
    """How a model can do without an input of integers or booleans."""
    constant = f"make it a constant where it is always the same (an initializer {name!r} in place of the input)"
    behind = float_tensors_behind(index, name)
    if not behind:
        return constant
    inputs = [other for other in index.inputs if (dtype := index.dtype(other)) is not None and dtype.kind == "f"]
    return (
        f"start the model behind it: onnx.utils.extract_model(old_path, new_path, {[*inputs, *behind]}, "
        f"{list(index.outputs)}), and give what the part before computes as data, under these names; or {constant}"
    )


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of a model, whose axis 0 counts samples. Raises ModelError for one that calibration cannot feed."""
    index = GraphIndex(model)
    specs = []
    for name in index.inputs:
        dtype, shape = index.dtype(name), index.shape(name)
        if dtype is None or dtype.kind != "f":
            raise ModelError(
                f"input {name!r}: is {dtype}; expected float32, which can be calibrated; {_cut(index, name)}"
            )
        if not shape:
            what = "its rank is unknown" if shape is None else "is a scalar"
            raise ModelError(
                f"input {name!r}: {what}; expected N x ..., for images N x C x H x W; declare this shape in the file's "
                "graph.input, a name or a number for each axis, or export it so"
            )
        specs.append(InputSpec(name=name, shape=tuple(d if isinstance(d, int) else None for d in shape)))
    batches = {spec.shape[0] for spec in specs}
    if len(batches) != 1:
        raise ModelError(
            f"model: axis 0 differs between its inputs: {', '.join(map(str, specs))}; expected the same batch size for "
            "all; export it so"
        )
    return tuple(specs)
