"""`validate`: any quantized ONNX file beside the FP32 file that it was made of, with gates."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.commands.details import with_layer_errors
from pdq_export.commands.judging import Metrics, Observed, find_metrics, side_contents
from pdq_export.commands.known import read_how_made
from pdq_export.commands.next_steps import compare_few, with_next_steps
from pdq_export.commands.pairs import File, Model, choose_batch, first_batch, read_samples, warn_of_pair
from pdq_export.commands.progress import ProgressCallback, Tell
from pdq_export.commands.saturated import find_saturated
from pdq_export.commands.settle import asked_labels, asked_preprocess, settle
from pdq_export.commands.warned import Warned
from pdq_export.commands.written import asks_page, check_written
from pdq_export.config.config import Config
from pdq_export.config.option import VALIDATE
from pdq_export.config.signature import takes_options
from pdq_export.data import Data, DataSource, check_exists, classes_of, known_labels
from pdq_export.errors import ModelError, ValidationError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.files import write_together
from pdq_export.gates import Limits, check_outputs, parse_limits
from pdq_export.graph.batch_axis import follow
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import tidy
from pdq_export.report import Report
from pdq_export.signature import check_labels, declared_scores
from pdq_export.spec import Place
from pdq_export.validate import (
    Batch,
    Course,
    LatencyPair,
    Measurements,
    Metric,
    Pair,
    min_onnxruntime,
    open_pair,
    run_course,
    try_latency,
)
from pdq_export.validate.compare import class_scores

logger = logging.getLogger(__name__)


@tells_of_memory(calibrates=False)
@takes_options(VALIDATE)
def validate_models(
    model: Model,
    quantized: Model,
    *,
    data: DataSource,
    labels: Any = None,
    metrics: Metrics = (),
    batch_size: int | None = None,
    config: Config | str | Path | None = None,
    progress: ProgressCallback | None = None,
    **fields: Any,
) -> Report:
    """Run a quantized ONNX file beside the FP32 file that it was made of, whoever made them, and judge it by gates.

    Inputs and outputs are matched by name, or by position where names differ and shapes fit. ``data``: as ``eval`` of
    `quantize`; ``labels``: class indices [N] for the first output, where the data have none. ``metrics``: functions
    that are called with (outputs, labels) once for each file, see `pdq_export.validate.metrics.Metric`, beside those
    that ``metric`` names. ``batch_size``: of the samples, by default 16, or what the files fix.

    The report has the figures, and in ``gates`` the verdicts; a gate that fails raises nothing. With ``config`` options
    come from a `Config` or the path of a TOML file; ``fields`` win over it. ``report``, ``junit`` and ``markdown`` are
    written together at the very end. Raises PdqError for anything that can be wrong with files, data, options or
    metrics, before anything is written.
    """
    settled = settle(config, fields, command=VALIDATE)
    with Warned() as warned:
        return _validate(model, quantized, data, labels, metrics, batch_size, settled, config, Tell(progress), warned)


def _validate(
    model: Model,
    quantized: Model,
    data: DataSource,
    labels: Any,
    metrics: Metrics,
    batch_size: int | None,
    settled: Config,
    config: Config | str | Path | None,
    tell: Tell,
    warned: Warned,
) -> Report:
    """What `validate_models` does with its settled options."""
    named = find_metrics(settled.gates, metrics)
    limits = parse_limits(settled.gates, metrics=len(named))
    labels, preprocess = asked_labels(settled, labels), asked_preprocess(settled)
    check_exists(data)
    tell.stage("load")
    files = [File.of(given, which) for given, which in ((model, "model"), (quantized, "quantized"))]
    read = (quantized, config, *(path for file in files for path in file.external))
    check_written(settled, model=model, data=[data], others=read, makes_model=False)
    pair = open_pair(*(file.runs for file in files))
    warn_of_pair(files[0].structure, files[1].structure, (_name(model, "model"), _name(quantized, "quantized")))
    tell.stage("read")
    size = choose_batch(pair, batch_size)
    _check_known_labels(pair, data, labels, needed=limits.section.max_drop is not None or not named)
    samples = read_samples(data, labels, pair, size, tell, preprocess=preprocess)
    limits.check_labels(samples.source, labelled=samples.labels is not None)
    run = _Run(pair=pair, samples=samples, size=size, limits=limits, metrics=named)
    measured, observed = run.measure(files[0].structure, tell)
    saturated = (
        ()
        if files[1].is_qonnx
        else find_saturated(files[1].content, files[1].structure, pair.kernels, pair.quantized, run.first())
    )
    tell.stage("time")
    latency = None if any(file.is_qonnx for file in files) else run.time(*(file.content for file in files))
    report = Report.of(
        dataclasses.replace(measured, min_onnxruntime=min_onnxruntime(files[1].content)),
        model=files[0].info(),
        quantized=files[1].info(),
        saturated_layers=saturated,
        latency=latency,
        metrics=observed.result(),
        changed=observed.changed(classes_of(samples)),
        settings={
            "command": "validate",
            "evaluation": str(samples),
            "batch_size": size,
            "preprocess": {name: getattr(settled.preprocess, name) for name in preprocess.given()},
            "renamed": dict(pair.renamed),
            "confidence": settled.gates.confidence,
        },
    )
    report = report.judged(limits)
    if asks_page(settled):
        report = with_layer_errors(report, model, quantized, samples, tell, pair.batch)
    made = read_how_made(files[1].structure)
    layers = (
        None
        if any(file.is_qonnx for file in files)
        else lambda: compare_few(model, quantized, samples, made, tell, pair.batch)
    )
    report = with_next_steps(report, made, layers)
    report = dataclasses.replace(report, warnings=warned.texts)
    if contents := side_contents(settled, report, samples):
        write_together(contents, overwrite=settled.file.overwrite)
    return report


def _check_known_labels(pair: Pair, data: DataSource, labels: Any, *, needed: bool) -> None:
    """Raise DataError for labels that do not fit what the FP32 file declares; ``needed``: whatever its output is."""
    first = pair.original.gives[0]
    known, scores = known_labels(data, labels), declared_scores(first.shape)
    if known is None or scores is None or first.name in pair.uncompared:
        return
    if needed or class_scores(scores) is not None:
        check_labels(first.name, scores, known)


def _name(given: Model, which: str) -> str:
    return str(given) if isinstance(given, str | Path) else given.graph.name or which


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """Two files over the samples, ``size`` at a time."""

    pair: Pair
    samples: Data
    size: int
    limits: Limits
    metrics: Sequence[Metric]

    def first(self) -> Batch:
        """The first batch."""
        return first_batch(self.samples, self.size)

    def measure(self, structure: onnx.ModelProto, tell: Tell) -> tuple[Measurements, Observed]:
        """What the files compute, and what was seen of it beside; ``structure``: of the first."""
        pair, samples = self.pair, self.samples
        outputs = pair.original.run_by_name(self.first())
        check_outputs(self.limits, outputs)
        observed = Observed(self.metrics, samples.labels, pair.original.gives[0].name)
        course = Course(
            batches=lambda: samples.batches(self.size),
            labels=self._labels(outputs),
            places=_places(structure, outputs, min(self.size, len(samples))),
            observe=observed,
            strict=False,
        )
        told = lambda done: tell.images("validate", done, len(samples))  # noqa: E731
        measured = run_course(course, pair.original, pair.quantized, pair.kernels, progress=told)
        named = [
            dataclasses.replace(output, quantized_name=pair.renamed.get(output.name)) for output in measured.outputs
        ]
        if measured.not_finite and not self.limits.of_outputs:  # else a gate tells, and fails
            name = measured.not_finite[0]
            raise ValidationError(f"output {name!r}: {measured.uncompared[name]}; expected finite numbers")
        uncompared = {**pair.uncompared, **measured.uncompared}
        for name, reason in uncompared.items():
            logger.warning("output %r is not compared: %s", name, reason)
        return (
            dataclasses.replace(
                measured, outputs=tuple(named), uncompared=uncompared, session_config=pair.quantized.config
            ),
            observed,
        )

    def _labels(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.integer] | None:
        """Those that top-1 is computed of: none where metrics take them and the first output has no class scores."""
        if self.samples.labels is None:
            return None
        name = self.pair.original.gives[0].name
        if name not in outputs:  # top-1 of another output would be a figure of something else
            if self.metrics and self.limits.section.max_drop is None:
                return None
            raise ModelError(
                f"output {name!r}, the first of the FP32 file, is what labels belong to, and it cannot be compared: "
                f"{self.pair.uncompared[name]}; expected a quantized file that has it, or data without labels"
            )
        first = outputs[name]
        if self.metrics and self.limits.section.max_drop is None and class_scores(first) is None:
            return None
        check_labels(name, first, self.samples)
        return self.samples.labels

    def time(self, *contents: bytes | Path) -> LatencyPair | None:
        """Both on one sample, or the batch that they fix, on one thread; None, with a warning, where one fails."""
        batch = first_batch(self.samples, self.pair.batch or 1)
        return try_latency(contents[0], contents[1], batch, inputs=self.pair.quantized.inputs)


def _places(structure: onnx.ModelProto, outputs: Mapping[str, NDArray[Any]], count: int) -> dict[str, Place]:
    """Where images lie in outputs in which they do not have axis 0 for themselves, as far as shapes tell it."""
    if count > 1 and all(array.shape[:1] == (count,) for array in outputs.values()):
        return {}
    model = onnx.ModelProto()
    model.CopyFrom(structure)
    initialized = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in initialized and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = count
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        places = follow(GraphIndex(tidy.infer_shapes(model)), count).places
    except ModelError:
        return {}
    return {
        name: place
        for name, array in outputs.items()
        if (place := places.get(name)) is not None and place != Place(axis=0) and _holds(place, array, count)
    }


def _holds(place: Place, array: NDArray[Any], count: int) -> bool:
    return place.axis < array.ndim and array.shape[place.axis] == place.outer * count * place.inner
