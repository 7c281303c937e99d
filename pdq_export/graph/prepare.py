"""The preparation of a model: small passes in a fixed order."""

import dataclasses
from collections.abc import Mapping

import onnx

from pdq_export.graph.passes import constants, fold_batch_norm, simplify, tidy
from pdq_export.spec import ChannelStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model that later stages can rely on, and what BatchNormalization knew about it.

    ``model``: all constants are initializers, nodes are sorted and uniquely named, BatchNormalization is folded.
    ``statistics``: by output tensor of the layer that a BatchNormalization was folded into.
    """

    model: onnx.ModelProto
    statistics: Mapping[str, ChannelStatistics]


def prepare(model: onnx.ModelProto, *, opset: int | None = None) -> PreparedModel:
    """Bring a loaded model into the form that planning, import and export rely on. Raises ModelError."""
    work = onnx.ModelProto()
    work.CopyFrom(model)
    work = constants.run(work)
    work = simplify.run(work)
    work = constants.run(work)
    work = onnx.shape_inference.infer_shapes(work)
    work, statistics = fold_batch_norm.run(work)
    work = tidy.name_nodes(tidy.remove_unused(work))
    return PreparedModel(model=work, statistics=statistics)
