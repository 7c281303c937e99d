"""A file as it would be written, with placeholders: whether it can be, runs, and how large it is."""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.export.loading import Loading
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.noise import noise
from pdq_export.graph.prepare import PreparedModel
from pdq_export.plan.nodes import is_nonnegative
from pdq_export.spec import Plan, Point, QuantizedTensor, QuantizedTensors, Role
from pdq_export.targets import find_target
from pdq_export.validate import Session

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placeholders:
    """A file with placeholders in place of what calibration learns, and its bytes."""

    model: onnx.ModelProto
    content: bytes


def dry_run(
    prepared: PreparedModel,
    plan: Plan,
    target: str,
    *,
    loading: Loading | None = None,
    runtime: str | None = None,
    metadata: Mapping[str, str] | None = None,
    inputs: Sequence[NDArray[np.float32]] | None = None,
    tensors: QuantizedTensors | None = None,
) -> Placeholders:
    """Export and run with placeholders, so that nobody waits for a calibration that cannot be written or run.

    ``loading``: how weights are packed. ``runtime``: the version of onnxruntime that has to load the file.
    ``inputs``: one array for each input; without them noise of the inputs' shapes, where the float model runs on that.
    ``tensors``: what to write instead of placeholders.
    Scales and zero points are as many-digited and as varied as learned ones: the file is as large as the real one.
    Raises ValidationError, naming the node to leave in float where onnxruntime does, and OptionError, naming what needs
    a newer onnxruntime than ``runtime``.
    """
    index, generator = prepared.index, np.random.default_rng(0)
    if tensors is None:
        tensors = {name: _placeholder(index, point, generator) for name, point in plan.points.items()}
    chosen = find_target(target)
    packing = (loading or Loading()).packing
    exported = chosen.export(prepared.model, plan, tensors, metadata=metadata or {}, packing=packing, runtime=runtime)
    content = exported.SerializeToString(deterministic=True)
    given = inputs if inputs is not None else _noise_that_runs(prepared, generator)
    try:
        chosen.check_runs(content, None if given is None else tuple(given))
    except ValidationError as error:
        raise _with_remedy(error, index) from error
    return Placeholders(model=exported, content=content)


def tell_loading(loading: Loading, target: str) -> None:
    """Say which onnxruntime a file needs that is written for newer ones though nobody asked for it."""
    if loading.note and find_target(target).layout.packs:
        logger.info("%s", loading.note)


def _noise_that_runs(prepared: PreparedModel, generator: np.random.Generator) -> tuple[NDArray[np.float32], ...] | None:
    """Random inputs of one sample; None where there are none, or the float model does not run on them."""
    arrays = noise(prepared.index, generator, batch=1)
    if arrays is None:
        return None
    try:
        Session(prepared.model.SerializeToString()).run(arrays)
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
