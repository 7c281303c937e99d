"""The stages before calibration that `quantize` and `inspect_model` share."""

import dataclasses
import logging

import onnx

from pdq_export.errors import OptionError
from pdq_export.frontend import find_batch_blockers, find_unsupported
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch
from pdq_export.graph.prepare import PreparedModel, at_opset, prepare
from pdq_export.plan import PlanOptions, float_tail, without_tail
from pdq_export.plan.outputs import separate_outputs
from pdq_export.plan.planned import Planned
from pdq_export.spec import Plan
from pdq_export.targets import Target, find_target

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
    return target.plan(prepared.index, options, _unsupported(prepared.index, options))


def _separated(prepared: PreparedModel) -> PreparedModel:
    return dataclasses.replace(prepared, model=separate_outputs(prepared.model))


def _unsupported(index: GraphIndex, options: PlanOptions) -> dict[str, str]:
    """What calibration cannot compute, by node with the reason: unknown operators, and what mixes up images.

    The latter where the unknown ones are left to the tail; the model is refused for them otherwise.
    """
    freed = free_batch.run(index.model)
    found = {node: error.found for node, error in find_unsupported(freed).items()}
    if not found:
        return find_batch_blockers(freed, index)
    tail = float_tail(index, options, found)
    if not found.keys() <= tail.keys():
        return found
    core = without_tail(index.model, tail)
    return find_batch_blockers(free_batch.run(core), core) | found
