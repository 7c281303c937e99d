"""What a page for a browser shows besides the figures: where the error arises, and pictures of changed samples."""

import dataclasses
import logging
import time
from collections.abc import Mapping

import numpy as np
import onnx

from pdq_export.advice import HowMade
from pdq_export.commands.compare import compare_layers
from pdq_export.commands.pairs import Model
from pdq_export.commands.progress import Tell
from pdq_export.data import Data
from pdq_export.data.thumbnails import thumbnails
from pdq_export.errors import PdqError
from pdq_export.export.constants import along_axis
from pdq_export.graph.lookup import GraphIndex
from pdq_export.report import Report, to_html
from pdq_export.spec import Plan, QuantizedTensors
from pdq_export.validate.histograms import WeightHistogram

logger = logging.getLogger(__name__)

IMAGES = 64  # that layers are compared on


def with_layer_errors(
    report: Report,
    model: Model,
    quantized: Model,
    data: Data,
    tell: Tell,
    batch: int | None,
    made: HowMade | None = None,
) -> Report:
    """The report with what `compare_layers` measures on the first images, and with the integers of weights.

    ``batch``: what the files fix, so that there are whole ones. ``made``: as `compare_layers` has it. Where
    the files cannot be compared so, a warning says why, and the report stays as it is.
    """
    began, one = time.perf_counter(), batch or 1
    first = data.head(max(IMAGES // one, 1) * one)
    try:
        found = compare_layers(model, quantized, data=first, samples=len(first), tell=Tell(tell.callback), made=made)
    except PdqError as error:
        logger.warning("the page does not show where the error arises: %s", error)
        return report
    logger.info("compared layer by layer on %d images in %.1f s", found.images, time.perf_counter() - began)
    named = dataclasses.replace(found, evaluation=str(data), model=report.model.name, quantized=report.quantized.name)
    weights = report.weights or found.weights
    return dataclasses.replace(report, layer_errors=dataclasses.replace(named, weights=()), weights=weights)


def weight_histograms(index: GraphIndex, plan: Plan, tensors: QuantizedTensors) -> tuple[WeightHistogram, ...]:
    """Of every quantized layer, its FP32 weight, which ``index`` has, and the integers that it has become."""
    found = []
    for layer in plan.layers:
        tensor = tensors.get(layer.weight)
        if tensor is None or tensor.integers is None:
            continue
        floats = onnx.numpy_helper.to_array(index.initializers[layer.weight]).astype(np.float64)
        point = tensor.point
        scale, zero_point = (along_axis(x, point.axis, floats.ndim) for x in (tensor.scale, tensor.zero_point))
        scaled = floats / scale + zero_point
        found.append(WeightHistogram.of(layer.node, tensor.integers, point.qmin, point.qmax, floats=scaled))
    return tuple(found)


def page(report: Report, data: Data | None) -> bytes:
    """The report as a page, with pictures of the samples whose class changes where ``data`` are images."""
    samples = () if report.changed is None or data is None else report.changed.samples
    pictures: Mapping[int, str] = {} if data is None else thumbnails(data, [one.number for one in samples])
    return to_html(report, pictures=pictures)
