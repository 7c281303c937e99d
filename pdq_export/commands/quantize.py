"""`quantize`: the stages in order, from an FP32 ONNX file to a low-bit one with its report."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import onnx
import torch

from pdq_export.calibrate import Calibrated, calibrate
from pdq_export.calibrate.device import choose_device
from pdq_export.calibrate.memory import parse_size, trim_heap
from pdq_export.calibrate.precision import settled_torch
from pdq_export.calibrate.ramps import with_fitted_ramps
from pdq_export.commands.dry_run import dry_run
from pdq_export.commands.evaluate import evaluate
from pdq_export.commands.keeping import describe_run, kept_blocks
from pdq_export.commands.progress import Progress, ProgressCallback, Tell
from pdq_export.config.method import CalibrationOptions, choose_options
from pdq_export.data import Source, check_exists, read_samples
from pdq_export.errors import OptionError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.export import MIN_OPSET
from pdq_export.fidelity import Fidelity, as_seen
from pdq_export.files import Draft
from pdq_export.graph.edit import with_constants
from pdq_export.graph.lookup import opset_version
from pdq_export.graph.save import check_output, in_order, model_files
from pdq_export.plan import PlanOptions
from pdq_export.plan.summary import summarize_layers
from pdq_export.report import ModelInfo, Report, tell_parity, warn_lost_parts, warn_useless
from pdq_export.runs import check_root
from pdq_export.spec import BitWidths, Plan, QuantizedTensors
from pdq_export.stages import collect_settings, file_metadata
from pdq_export.targets import find_target
from pdq_export.work import PlannedModel, Work, begin_work, equalize_channels, import_planned, open_model, tell_tail

__all__ = ["Progress", "ProgressCallback", "Result", "quantize"]

logger = logging.getLogger(__name__)

# The simulation takes most of the time of a validation, and a thousand images tell how near onnxruntime is to it.
SIMULATED_IMAGES = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """``model``: the quantized file's content. ``tensors``: its integers, scales and zero_points by tensor name.

    ``files``: what was written, the model, where there is one the file of its weights, and the report.
    """

    model: onnx.ModelProto
    plan: Plan
    tensors: QuantizedTensors
    report: Report
    files: tuple[Path, ...]


@tells_of_memory(calibrates=True)
@settled_torch()
def quantize(
    model: str | Path | onnx.ModelProto,
    *,
    bits: str | BitWidths = "4/4",
    calib: Source,
    eval: Source | None = None,
    output: str | Path | None = None,
    report: str | Path | None = None,
    overwrite: bool = False,
    target: str = "ort",
    opset: int | None = None,
    external_data: bool = False,
    method: str = "pd-quant",
    preset: str = "balanced",
    weights: str | None = None,
    wide_residuals: bool = False,
    reduce_range: bool = False,
    layer_bits: Mapping[str, str | BitWidths] | Sequence[str] = (),
    exclude: Sequence[str] = (),
    exclude_op: Sequence[str] = (),
    first_last: str | BitWidths = "8/8",
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    max_memory: int | str | None = None,
    simulated_images: int = SIMULATED_IMAGES,
    work_dir: str | Path | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> Result:
    """Quantize an FP32 ONNX CNN to ``bits`` (W/A) with PD-Quant and validate the result in onnxruntime.

    ``method``: pd-quant, or one of the methods that it grew from: qdrop, brecq, adaround, nearest. ``preset``: the
    budget, fast, balanced or paper. ``weights``: asymmetric, or symmetric where a runtime needs zero_point 0; None is
    asymmetric where the target takes that.
    ``wide_residuals``: residual connections keep 8 bits, and what layers read of them has A.
    ``reduce_range``: weights of 7 bits where wider ones saturate on x86 processors without VNNI.
    ``layer_bits``: bits of single layers, {REGEX: W/A} or ``REGEX=W/A``; ``exclude``: regular expressions of layers
    and other nodes that stay in float, ``exclude_op``: operators that do; ``first_last``: bits of the first and last
    layer; `plan.options.PlanOptions` says what wins.
    ``options``: fields of `CalibrationOptions` that win over method, preset and what the graph suggests.
    ``calib`` and ``eval``: images [N, C, H, W], as an array, an `ImageSet`, or a path to an .npz, .npy or folder; for
    a model with several inputs, or one that is no image, {name: array [N, ...]}, an `InputSet` or an .npz of them.
    ``eval`` gives the figures of the report; without it agreement is measured on the calibration images and the
    report says so. ``simulated_images``: the simulation sees at most so many of them, evenly spread; onnxruntime sees
    all. ``output`` and ``report``: where the model and the report, as JSON, are written, together at the very end;
    None writes nothing. ``overwrite``: they may replace files. ``external_data``: the weights go to ``output.data``,
    as they do over 2 GB. Before validation the model is kept on the disk beside ``output``; an error or Ctrl-C from
    then on says where. ``max_memory``: bytes of host memory, or a size like ``4GB``, that
    calibration shall keep to; it moves data to temporary files and never changes the result. ``work_dir``: where
    finished blocks are kept, by default in the user's cache folder; ``resume``: take up those that an earlier run with
    the same model, images and options has finished, the result is the same. Raises PdqError for
    anything that can be wrong with the model, the data or the options, before anything is written, and
    ValidationError where onnxruntime computes something else than what was calibrated.
    """
    request = Request.of(
        model,
        calib,
        eval,
        output=output,
        report=report,
        overwrite=overwrite,
        external_data=external_data,
        planning={
            "bits": bits,
            "layer_bits": layer_bits,
            "exclude": exclude,
            "exclude_op": exclude_op,
            "first_last": first_last,
            "weights": weights,
            "wide_residuals": wide_residuals,
            "reduce_range": reduce_range,
        },
        target=target,
        opset=opset,
        method=method,
        preset=preset,
        overrides=options,
        device=device,
        max_memory=max_memory,
        simulated_images=simulated_images,
        work_dir=work_dir,
        resume=resume,
    )
    return _run(request, Tell(progress))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked of `quantize`, as far as it can be checked and settled before any work."""

    model: str | Path | onnx.ModelProto
    calib: Source
    eval: Source | None
    output: Path | None
    report: Path | None
    overwrite: bool
    external_data: bool
    planning: PlanOptions
    target: str
    opset: int | None
    method: str
    preset: str
    overrides: Mapping[str, Any] | None
    device: torch.device
    max_memory: int | None
    simulated_images: int
    work_dir: Path | None
    resume: bool

    @classmethod
    def of(
        cls,
        model: str | Path | onnx.ModelProto,
        calib: Source,
        eval: Source | None,
        *,
        output: str | Path | None,
        report: str | Path | None,
        planning: Mapping[str, Any],
        device: str,
        max_memory: int | str | None,
        work_dir: str | Path | None,
        **others: Any,
    ) -> Self:
        """Raises OptionError for wrong options and for files that cannot be written, DataError for missing data."""
        chosen = choose_options(method=others["method"], preset=others["preset"], overrides=others["overrides"])
        request = cls(
            model=model,
            calib=calib,
            eval=eval,
            output=None if output is None else Path(output),
            report=None if report is None else Path(report),
            planning=find_target(others["target"]).settle(PlanOptions.of(**planning, per_layer=chosen.per_layer)),
            device=choose_device(device),
            max_memory=None if max_memory is None else parse_size(max_memory),
            work_dir=None if work_dir is None else Path(work_dir),
            **others,
        )
        check_exists(calib)
        check_exists(eval)
        if request.simulated_images < 1:
            raise OptionError(f"--simulated-images {request.simulated_images}: expected 1 or more")
        request._check_files()
        return request

    def _check_files(self) -> None:
        if self.work_dir is not None:
            check_root(self.work_dir)
        if self.output is None and self.report is None:
            return
        check_output(
            self.output,
            overwrite=self.overwrite,
            model=None if isinstance(self.model, onnx.ModelProto) else self.model,
            inputs=tuple(path for path in (self.calib, self.eval) if isinstance(path, str | Path)),
            external=self.external_data,
            report=self.report,
        )

    def options(self, family: str) -> CalibrationOptions:
        """The numbers of the method for a network of this family."""
        return choose_options(method=self.method, preset=self.preset, overrides=self.overrides, family=family)

    def settings(self, chosen: CalibrationOptions, family: str) -> dict[str, Any]:
        """Everything that was asked for or settled, for the file's metadata and the report."""
        return collect_settings(
            self.planning, chosen, target=self.target, method=self.method, preset=self.preset, family=family
        )


def _run(request: Request, tell: Tell) -> Result:
    """The stages in order. What is deleted is not held while calibration needs the memory."""
    tell.stage("load")
    file, session = open_model(request.model)
    tell.stage("plan")
    planned = PlannedModel.of(file, request.planning, target=request.target, opset=request.opset)
    chosen, inputs = request.options(planned.family), planned.inputs
    network = import_planned(planned)
    tell.stage("read")
    told = functools.partial(tell.images, "read")
    samples = read_samples(request.calib, request.eval, inputs, chosen.samples, told=told)
    work = begin_work(planned, network, samples)
    del planned, network
    tell.stage("check")
    fidelity = work.fidelity(session)
    _check(work, fidelity, request.target)
    del session
    trim_heap()  # of large models several copies were made so far
    tell.stage("calibrate")
    seen = as_seen(samples.calibration.inputs(), work.index)
    work, equalized = _equalize(work, chosen, fidelity, seen)
    reference = fidelity.reference()
    del fidelity
    calibrated = _calibrate(work, seen, chosen, request, tell)
    del seen
    tell.stage("export")
    settings = request.settings(chosen, work.family)
    quantized = _export(work, calibrated, request, settings)
    tell.stage("validate")
    with Draft() as draft:
        info, files = _keep(draft, quantized, request)
        measured, parity = evaluate(
            work,
            calibrated,
            quantized.SerializeToString(deterministic=True),
            reference,
            device=request.device,
            simulated_images=request.simulated_images,
            tell=tell,
        )
        report = Report.of(
            measured,
            model=ModelInfo.of(file.name, file.content),
            quantized=info,
            saturated_layers=parity.saturated,
            **_describe(work, calibrated, request.target),
            settings={
                **settings,
                "opset": opset_version(quantized),
                "device": str(request.device),
                **samples.settings(),
                "equalized_tensors": list(equalized),
            },
        )
        if request.report is not None:
            draft.add({request.report: report.to_json().encode()})
            files.append(request.report)
        for tell_meaning in (warn_useless, warn_lost_parts):
            tell_meaning(report, samples.judged.source)
        tell_parity(parity)
        draft.place(overwrite=request.overwrite)
    return Result(model=quantized, plan=work.plan, tensors=calibrated.tensors, report=report, files=tuple(files))


def _check(work: Work, fidelity: Fidelity, target: str) -> None:
    """Refuse what would not compute what the file does, and what could not be written or run in the end."""
    fidelity.check_finite()
    fidelity.check_model(work.prepared.model)
    fidelity.check_network(work.network, work.prepared, work.core.model)
    tell_tail(work)
    dry_run(work.prepared, work.plan, target, inputs=fidelity.probe)


def _equalize(
    work: Work, chosen: CalibrationOptions, fidelity: Fidelity, inputs: Sequence[torch.Tensor]
) -> tuple[Work, tuple[str, ...]]:
    """The work with channels in one range, where that is asked for, and the tensors concerned."""
    if not chosen.equalize_channels:
        return work, ()
    changed, tensors = equalize_channels(work, inputs)
    fidelity.check_model(changed.prepared.model, what="equalizing channels", remedy="--set equalize_channels=false")
    fidelity.check_network(changed.network, changed.prepared, work.core.model)
    return changed, tensors


def _calibrate(
    work: Work, inputs: Sequence[torch.Tensor], chosen: CalibrationOptions, request: Request, tell: Tell
) -> Calibrated:
    """Calibrate, with finished blocks kept or taken up."""
    run = describe_run(
        name=work.original.name,
        sha256=ModelInfo.of(work.original.name, work.original.content).sha256,
        prepared=work.prepared,
        plan=work.plan,
        inputs=inputs,
        options=chosen,
        asked={**request.planning.settings(), "target": request.target, "opset": request.opset},
        device=request.device,
    )
    with kept_blocks(run, work_dir=request.work_dir, resume=request.resume) as checkpoint:
        return calibrate(
            work.network,
            work.plan,
            work.prepared.statistics,
            inputs,
            chosen,
            device=request.device,
            max_memory=request.max_memory,
            progress=tell.block,
            checkpoint=checkpoint,
        )


def _export(work: Work, calibrated: Calibrated, request: Request, settings: Mapping[str, Any]) -> onnx.ModelProto:
    return find_target(request.target).export(
        with_constants(work.prepared.model, calibrated.biases),
        work.plan,
        calibrated.tensors,
        metadata=file_metadata(settings),
        own_opset=max(work.original.opset, MIN_OPSET),
        max_opset=request.opset,
    )


def _keep(draft: Draft, quantized: onnx.ModelProto, request: Request) -> tuple[ModelInfo, list[Path]]:
    """Have the file safe on the disk, where one is asked for; what it is, and where it will be."""
    if request.output is None:
        return ModelInfo.of("", quantized.SerializeToString(deterministic=True)), []
    written = model_files(request.output, quantized, external=request.external_data)
    draft.add(in_order(written))
    return ModelInfo.of(request.output.name, *written.values()), list(written)


def _describe(work: Work, calibrated: Calibrated, target: str) -> dict[str, Any]:
    """What the report says of the layers and of what was calibrated."""
    plan = with_fitted_ramps(work.plan, calibrated.tensors)
    return {
        "layers": tuple(dataclasses.asdict(layer) for layer in summarize_layers(work.index, work.plan)),
        "floating": tuple(dataclasses.asdict(node) for node in find_target(target).find_floating(work.index, plan)),
        "predictions": calibrated.predictions,
    }
