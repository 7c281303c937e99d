"""Proof of a quantized file: it is run in onnxruntime and compared with FP32 and with the simulation."""

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import pdq_export
from pdq_export.errors import ValidationError
from pdq_export.spec import OutputPart, Place
from pdq_export.validate.compare import Accuracy, AccuracyMeter, Agreement, AgreementMeter
from pdq_export.validate.deviation import (
    BY_DEFAULT,
    WITHOUT_SATURATION,
    DeviationMeter,
    Simulate,
    measure_amplified,
    measure_ways,
)
from pdq_export.validate.parts import PartAgreement, PartMeters
from pdq_export.validate.report import ModelInfo, OutputAgreement, Report
from pdq_export.validate.runtime import (
    Batch,
    KernelCount,
    Session,
    count_kernels,
    kernels_saturate,
    min_onnxruntime,
    needed_config,
    warn_older,
    with_outputs,
)

__all__ = [
    "BATCH_SIZE",
    "BY_DEFAULT",
    "WITHOUT_SATURATION",
    "Accuracy",
    "AccuracyMeter",
    "Agreement",
    "AgreementMeter",
    "Batch",
    "DeviationMeter",
    "KernelCount",
    "ModelInfo",
    "OutputAgreement",
    "PartAgreement",
    "Report",
    "Session",
    "Simulate",
    "check_loads",
    "check_runs_quantized",
    "count_kernels",
    "kernels_saturate",
    "measure_amplified",
    "measure_ways",
    "min_onnxruntime",
    "needed_config",
    "validate",
    "with_outputs",
]

Array = NDArray[np.float32]
BATCH_SIZE = 16  # simulation and both sessions hold the activations of a batch

logger = logging.getLogger(__name__)


def check_loads(model: onnx.ModelProto) -> None:
    """Raise ValidationError where onnxruntime loads ``model`` with no session options that `needed_config` knows."""
    needed_config(model.SerializeToString())


def check_runs_quantized(model: onnx.ModelProto, batch: Batch | None) -> None:
    """Raise ValidationError where onnxruntime does not load ``model``, with `needed_config`, or run it on ``batch``."""
    content = model.SerializeToString()
    config = needed_config(content)
    if batch is not None:
        Session(content, config=config).run(batch)


def validate(
    *,
    original: onnx.ModelProto | bytes,
    quantized: onnx.ModelProto | bytes,
    images: Array | Iterable[Batch],
    labels: NDArray[np.integer] | None = None,
    simulate: Simulate | None = None,
    simulate_every: int = 1,
    compared: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    model: ModelInfo | None = None,
    layers: Iterable[Mapping[str, Any]] = (),
    floating: Iterable[Mapping[str, Any]] = (),
    predictions: Mapping[str, Sequence[str]] | None = None,
    parts: Mapping[str, Sequence[OutputPart]] | None = None,
    places: Mapping[str, Place] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
    optimize: bool = True,
) -> Report:
    """Run both models over the images and compare their outputs, one batch at a time.

    ``images``: [N, C, H, W], or an iterable of such batches, taken as they are; a tuple is one array for each input.
    ``labels``: [N], where the first output is one vector of class scores per image. ``compared``: names of tensors,
    inner ones among them; by default all outputs. ``simulate``: these of the simulated quantized model for one batch,
    of which it sees the first and every ``simulate_every``-th one. ``model``: the user's file; without it, ``original``
    as serialized. ``parts``: of outputs, compared one by one too. ``places``: where images lie in outputs in which they
    do not have axis 0 for themselves. ``progress`` is told how many images are done. Without ``optimize`` onnxruntime
    runs the original as it is written. Raises ValidationError where a model does not load or run, where outputs do not
    fit each other, their places or the labels, and where there is no image.
    """
    contents = tuple(
        m if isinstance(m, bytes) else m.SerializeToString(deterministic=True) for m in (original, quantized)
    )
    config = needed_config(contents[1])
    warn_older(contents[1])
    reference_session, session = (
        Session(with_outputs(content, compared), config=options, optimize=optimized)
        for content, options, optimized in ((contents[0], None, optimize), (contents[1], config, True))
    )
    names = tuple(compared) or session.outputs
    meters = _Meters(
        names, places or {}, session.outputs[0], simulated=simulate is not None, labelled=labels is not None
    )
    part_meters = PartMeters(parts or {}, names, places or {})
    for number, batch in enumerate(_batches(images, batch_size)):
        seen = simulate is not None and number % simulate_every == 0
        simulated = [np.asarray(output) for output in simulate(batch)] if simulate is not None and seen else None
        part = None if labels is None else labels[meters.images : meters.images + _size(batch)]
        reference, found = reference_session.run_by_name(batch), session.run_by_name(batch)
        meters.update(_size(batch), reference, found, simulated, part)
        part_meters.update(reference, found)
        if progress is not None:
            progress(meters.images)
    if not meters.images:
        raise ValidationError("there is no image to validate on; expected at least one")
    if labels is not None and len(labels) != meters.images:
        raise ValidationError(f"there are {len(labels)} labels for {meters.images} images; expected one each")
    float_accuracy, quantized_accuracy, simulated_accuracy, float_where_simulated = meters.accuracies()
    return Report(
        model=model or ModelInfo.of("", contents[0]),
        quantized=ModelInfo.of("", contents[1]),
        images=meters.images,
        float_accuracy=float_accuracy,
        quantized_accuracy=quantized_accuracy,
        simulated_accuracy=simulated_accuracy,
        float_where_simulated=float_where_simulated,
        outputs=meters.outputs(),
        kernels=count_kernels(contents[1], config),
        session_config=config,
        min_onnxruntime=min_onnxruntime(contents[1]),
        settings=dict(settings or {}),
        versions=_versions(),
        layers=tuple(layers),
        floating=tuple(floating),
        predictions=dict(predictions or {}),
        parts=part_meters.result(),
    )


def _versions() -> dict[str, str]:
    """Versions of what decides the result; onnxruntime has several distributions, so it is asked itself."""
    import onnxruntime

    versions = {"pdq-export": pdq_export.__version__, "onnxruntime": str(onnxruntime.__version__)}
    for package in ("numpy", "onnx", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _size(batch: Batch) -> int:
    return len(batch[0]) if isinstance(batch, tuple) else len(batch)


def _batches(images: Array | Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    if not isinstance(images, np.ndarray):
        yield from images
        return
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size]


class _Meters:
    """The running numbers of one validation."""

    def __init__(
        self, names: Sequence[str], places: Mapping[str, Place], scores: str, *, simulated: bool, labelled: bool
    ) -> None:
        self.images = 0
        self._names, self._scores, self._simulated, self._labelled = names, scores, simulated, labelled
        pairs = ("quantized_float", "quantized_simulated", "simulated_float")
        self._agreements = [
            {pair: AgreementMeter(f"output {name!r}", places.get(name)) for pair in pairs} for name in names
        ]
        self._deviations = [DeviationMeter() for _ in names]
        self._accuracies = [AccuracyMeter() for _ in range(4)]

    def update(
        self,
        size: int,
        reference: Mapping[str, Array],
        quantized: Mapping[str, Array],
        simulated: Sequence[Array] | None,
        labels: NDArray[np.integer] | None,
    ) -> None:
        self.images += size
        if set(reference) != set(quantized) or (simulated is not None and len(simulated) != len(self._names)):
            raise ValidationError(f"the models and the simulation have unequal outputs; expected {list(self._names)}")
        by_name = dict(zip(self._names, simulated or (), strict=simulated is not None))
        for name, meters, deviation in zip(self._names, self._agreements, self._deviations, strict=True):
            meters["quantized_float"].update(reference[name], quantized[name])
            if simulated is not None:
                meters["quantized_simulated"].update(by_name[name], quantized[name])
                meters["simulated_float"].update(reference[name], by_name[name])
                deviation.update(by_name[name], quantized[name])
        if labels is not None:
            where_simulated = reference if self._scores in by_name else {}
            for meter, outputs in zip(self._accuracies, (reference, quantized, by_name, where_simulated), strict=True):
                if self._scores in outputs:
                    meter.update(outputs[self._scores], labels)

    def accuracies(self) -> tuple[Accuracy | None, Accuracy | None, Accuracy | None, Accuracy | None]:
        """Of FP32, the quantized model, the simulation, where it has the scores, and FP32 on what that saw."""
        if not self._labelled:
            return None, None, None, None
        floating, quantized, simulated, where_simulated = (meter.result() for meter in self._accuracies)
        return (floating, quantized, *((simulated, where_simulated) if simulated.images else (None, None)))

    def outputs(self) -> tuple[OutputAgreement, ...]:
        """The agreement in every output."""
        return tuple(
            OutputAgreement(
                name=name,
                quantized_float=meters["quantized_float"].result(),
                quantized_simulated=meters["quantized_simulated"].result() if self._simulated else None,
                simulated_float=meters["simulated_float"].result() if self._simulated else None,
                deviation=deviation.result() if self._simulated else None,
            )
            for name, meters, deviation in zip(self._names, self._agreements, self._deviations, strict=True)
        )
