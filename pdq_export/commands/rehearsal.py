"""What the stages behind a plan would find, gone through with placeholders for what calibration learns."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx

from pdq_export.commands.dry_run import dry_run
from pdq_export.commands.estimates import estimate_tensors
from pdq_export.commands.operations import bit_operations, count_multiplications
from pdq_export.config.sections import FileSection
from pdq_export.errors import ModelError, PdqError, ValidationError
from pdq_export.export.cost import constant_bytes
from pdq_export.fidelity import check_on_noise
from pdq_export.frontend import check_batch, find_unsupported, import_model
from pdq_export.graph.noise import noise
from pdq_export.graph.passes import free_batch
from pdq_export.signature import input_specs
from pdq_export.spec import Plan
from pdq_export.targets import find_target
from pdq_export.validate import KernelCount, Session, min_onnxruntime, open_counted
from pdq_export.work import PlannedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What calibration would refuse, what else is wrong, and size and kernels of the file with placeholders.

    ``bit_ops``: of the plan, over those of 8/8; None where the model does not run on random inputs.
    """

    unsupported: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    min_onnxruntime: str | None = None
    quantized_size: int | None = None
    layer_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kernels: KernelCount | None = None
    bit_ops: float | None = None


def rehearse(
    planned: PlannedModel, session: Session | str, asked: FileSection, metadata: Mapping[str, str]
) -> Rehearsal:
    """Go through them; ``session``: of the user's file, or why there is none."""
    unsupported: tuple[str, ...] = ()
    problems = [session] if isinstance(session, str) else []
    size = kernels = lowest = None
    layer_bytes: dict[str, int] = {}
    try:
        core = planned.core.model
        freed = free_batch.run(core)
        unsupported = tuple(map(str, find_unsupported(freed).values()))
        if not unsupported:
            network = import_model(freed)
            check_batch(network, core)
            if not isinstance(session, str):
                check_on_noise(planned.original, session, planned.prepared, core, network)
    except PdqError as error:
        problems.append(str(error))
    try:
        input_specs(planned.index)
    except ModelError as error:
        problems.append(str(error))
    try:
        file = dry_run(
            *(planned.prepared, planned.plan, asked.target),
            loading=planned.loading,
            runtime=asked.runtime,
            metadata=metadata,
            tensors=estimate_tensors(planned.prepared, planned.plan),
        )
        size, lowest = len(file.content), min_onnxruntime(file.content)
        layer_bytes = _layer_bytes(file.model, planned.plan)
        if find_target(asked.target).in_onnxruntime:
            _, kernels = open_counted(file.content)
    except PdqError as error:
        problems.append(str(error))
    return Rehearsal(
        unsupported=unsupported,
        problems=tuple(problems),
        min_onnxruntime=lowest,
        quantized_size=size,
        layer_bytes=layer_bytes,
        kernels=kernels,
        bit_ops=_bit_ops(planned),
    )


def _bit_ops(planned: PlannedModel) -> float | None:
    index, plan = planned.index, planned.plan
    inputs = noise(index, np.random.default_rng(0), batch=1)
    if inputs is None or not plan.layers:
        return None
    try:
        counts = count_multiplications(planned.prepared, plan.layers, inputs)
    except ValidationError:  # noise need not be what a model takes
        return None
    return bit_operations(plan, counts).of({name: point.bits for name, point in plan.points.items()})


def _layer_bytes(file: onnx.ModelProto, plan: Plan) -> dict[str, int]:
    """By node, what the file holds for the constants of a layer; a weight that is shared counts for the first."""
    layers = (*plan.layers, *plan.excluded)
    left = dict(constant_bytes(file.graph, layers).weights)
    return {layer.node: left.pop(layer.weight, 0) for layer in layers}
