"""What is known of a finished file that tells what would help it: how it was made, and what bits cost in it."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from pdq_export.advice import HowMade
from pdq_export.config.record import EQUALIZED, read_record
from pdq_export.errors import ModelError, PdqError
from pdq_export.export import read_blueprint
from pdq_export.export.blueprint import KEY as BLUEPRINT_KEY
from pdq_export.export.constants import LayerConstants, along_axis
from pdq_export.export.layouts import Quantized
from pdq_export.export.loading import Loading
from pdq_export.graph import origins
from pdq_export.report.remedies import Growth
from pdq_export.spec import QuantizedTensor
from pdq_export.targets import find_target, target_names
from pdq_export.validate import kernels_saturate

logger = logging.getLogger(__name__)

_NARROW, _FULL = 7, 8  # bits of weights, of remedies


def read_how_made(quantized: onnx.ModelProto) -> HowMade:
    """What a file's metadata say of its making."""
    properties = {entry.key: entry.value for entry in quantized.metadata_props}
    try:
        record = read_record(properties, "")
    except ModelError:
        return HowMade()
    return how_made(record.settled)


def read_equalized(quantized: onnx.ModelProto) -> frozenset[str]:
    """The tensors whose channels a file's metadata say to have been scaled; none where they say nothing."""
    properties = {entry.key: entry.value for entry in quantized.metadata_props}
    try:
        names = read_record(properties, "").made_by.get(EQUALIZED)
    except ModelError:
        return frozenset()
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def how_made(settings: Mapping[str, Any], images: int | None = None) -> HowMade:
    """A run with these settings, on so many calibration images."""
    name = str(settings.get("target", ""))
    target = find_target(name) if name in target_names() else None
    return HowMade(
        settings=settings,
        images=images,
        free_activations=target is not None and target.free_activations,
        shrinks=target is None or target.layout.shrinks,
        weight_bits=_NARROW if kernels_saturate() and not settings.get("reduce_range", False) else _FULL,
    )


def growth_of(quantized: onnx.ModelProto) -> Growth | None:
    """What bits of layers cost in the file, to the byte but for what tables share; None of other tools' files."""
    if all(entry.key != BLUEPRINT_KEY for entry in quantized.metadata_props):
        return None
    try:
        return _growth(quantized)
    except PdqError as error:
        logger.info("bytes are counted by the bits of weights: %s", error)
        return None


def _growth(quantized: onnx.ModelProto) -> Growth:
    # They need torch, which compare does not otherwise.
    from pdq_export.commands.costs import weight_costs
    from pdq_export.graph.prepare import PreparedModel

    written = read_blueprint(quantized).quantized
    known = {**written.activations, **dict(map(_quantized, written.constants.values()))}
    properties = {entry.key: entry.value for entry in quantized.metadata_props}
    target = find_target(properties.get("pdq_export.target", "ort"))
    costs = weight_costs(
        PreparedModel(model=_with_weights(written), statistics={}),
        written.plan,
        target,
        loading=Loading(packing=written.packing),
        known=known,
        widths=(_NARROW, _FULL),
    )
    weights = {
        name: layer.weight
        for layer in written.plan.layers
        if layer.weight in costs.planned
        for name in origins.names(written.index.nodes[layer.node])
    }

    def growth(bits: Mapping[str, int]) -> int | None:
        if any(name not in weights or width not in costs.weights[weights[name]] for name, width in bits.items()):
            return None
        return costs.predict({weights[name]: width for name, width in bits.items()}) - costs.size

    return growth


def _quantized(layer: LayerConstants) -> tuple[str, QuantizedTensor]:
    weight = layer.weight
    zero_point = weight.zero_point.astype(np.int32)
    made = QuantizedTensor(point=weight.point, scale=weight.scale, zero_point=zero_point, integers=weight.integers)
    return weight.point.tensor, made


def _with_weights(written: Quantized) -> onnx.ModelProto:
    """The float graph with what the integers stand for in place of weights and biases."""
    made = onnx.ModelProto()
    made.CopyFrom(written.index.model)
    values = {}
    for layer in written.constants.values():
        weight = layer.weight
        scale = along_axis(weight.scale, weight.point.axis, weight.integers.ndim)
        values[weight.point.tensor] = weight.centered.astype(np.float32) * scale
        if (bias := layer.bias) is not None:
            values[bias.tensor] = bias.integers.astype(np.float32) * bias.scale
    for tensor in made.graph.initializer:
        if tensor.name in values:
            array = np.asarray(values[tensor.name], np.float32).reshape(tuple(tensor.dims))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return made
