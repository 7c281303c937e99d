"""The last stages: a calibrated network is exported, judged, and kept with all that is told of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx

from pdq_export.advice import HowMade
from pdq_export.calibrate import Calibrated
from pdq_export.commands.allotting import bits_content
from pdq_export.commands.calibrating import CalibratedWork
from pdq_export.commands.details import weight_histograms, with_layer_errors
from pdq_export.commands.evaluate import Evaluation, evaluate, help_evaluate, time_beside
from pdq_export.commands.judging import side_contents
from pdq_export.commands.known import how_made
from pdq_export.commands.making import Making
from pdq_export.commands.next_steps import compare_few, larger_budget, with_next_steps
from pdq_export.commands.progress import Tell
from pdq_export.commands.request import Request
from pdq_export.commands.search import Found
from pdq_export.commands.warned import Warned
from pdq_export.commands.written import asks_page, bits_path
from pdq_export.config.config import Config
from pdq_export.config.sections import FileSection
from pdq_export.data import Data, classes_of
from pdq_export.data.synthetic import asks_synthetic
from pdq_export.errors import OptionError
from pdq_export.export.cost import constant_bytes
from pdq_export.export.layouts import MIN_OPSET
from pdq_export.files import Draft
from pdq_export.graph.edit import with_constants
from pdq_export.graph.lookup import opset_version
from pdq_export.graph.save import in_order, model_files
from pdq_export.report import ModelInfo, Report, tell_verdict
from pdq_export.report.layers import LayerReport
from pdq_export.search.allotment import Allotment
from pdq_export.spec import Plan, QuantizedTensors
from pdq_export.targets import find_target
from pdq_export.validate.parity import Parity
from pdq_export.work import Work


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


def finish(
    made: CalibratedWork, allotment: Allotment | None, found: Found | None, tell: Tell, warned: Warned
) -> Result | None:
    """Write the file, its report and ``allotment``, all together, after a look at what onnxruntime makes of it.

    ``found``: bits of `--bits auto`, and their budget. Of several ranks the first alone has a result. Raises
    ValidationError where onnxruntime computes something else than what was calibrated, and OptionError for a
    file beyond its budget; the file, its report and its bits are kept aside then.
    """
    request, work = made.request, made.work
    asked, judged = request.config.file, work.samples.judged
    tell.stage("export")
    making = Making.of(request, work, made.options, made.equalized)
    quantized = _export(work, made.calibrated, request.config, making.metadata())
    tell.stage("validate")
    if not request.ranks.is_first:
        help_evaluate(_evaluation(made, quantized))
        return None
    with Draft() as draft:
        own, files = _keep(draft, quantized, asked)
        report, parity = _judge(made, making, quantized, own, found, tell)
        try:
            tell_verdict(report, parity, judged.source)
            if found is not None:
                _check_budget(found, report, bits_path(request.config))
        finally:  # what is refused is told with all figures
            report = dataclasses.replace(report, warnings=warned.texts)
            files += _keep_beside(draft, report, request.config, judged, allotment)
        draft.place(overwrite=asked.overwrite)
    tensors = made.calibrated.tensors
    return Result(model=quantized, plan=work.plan, tensors=tensors, report=report, files=tuple(files))


def _export(work: Work, calibrated: Calibrated, config: Config, metadata: Mapping[str, str]) -> onnx.ModelProto:
    return find_target(config.file.target).export(
        with_constants(work.prepared.model, calibrated.biases),
        work.plan,
        calibrated.tensors,
        metadata=metadata,
        own_opset=max(work.original.opset, MIN_OPSET),
        max_opset=config.file.opset,
        packing=work.loading.packing,
        runtime=config.file.runtime,
    )


def _judge(
    made: CalibratedWork, making: Making, quantized: onnx.ModelProto, own: ModelInfo, found: Found | None, tell: Tell
) -> tuple[Report, Parity]:
    """What the written file does, beside FP32 and its simulation, and what to try next; ``own``: what file it is."""
    request, work, calibrated = made.request, made.work, made.calibrated
    evaluation = _evaluation(made, quantized)
    target = evaluation.target
    measured, parity, observed = evaluate(evaluation, metrics=request.metrics, tell=tell)
    settings = {"opset": opset_version(quantized), "equalized_tensors": list(made.equalized)}
    if target.layout.packs:
        settings["loading"] = work.loading.to_dict()
    report = making.report(
        measured,
        work,
        calibrated,
        weight_bytes=constant_bytes(quantized.graph, work.plan.layers).weights,
        records=made.records,
        quantized=own,
        saturated_layers=parity.saturated,
        latency=time_beside(work, evaluation.content, made.reference, target=target),
        settings=settings,
        metrics=observed.result(),
        changed=observed.changed(classes_of(work.samples.judged)),
        search=None if found is None else found.report,
    ).judged(request.limits)
    made_how = _how_made(request, work, report, found)
    if asks_page(request.config):
        report = dataclasses.replace(
            report, weights=weight_histograms(work.prepared.index, work.plan, calibrated.tensors)
        )
        original = onnx.load_from_string(made.reference.content(work.prepared.model))
        report = with_layer_errors(report, original, quantized, work.samples.judged, tell, work.batch, made_how)

    def compare() -> LayerReport:
        return compare_few(work.original.parse(), quantized, work.samples.judged, made_how, tell, work.batch)

    return with_next_steps(report, made_how, compare if target.in_onnxruntime else None), parity


def _evaluation(made: CalibratedWork, quantized: onnx.ModelProto) -> Evaluation:
    request = made.request
    return Evaluation(
        work=made.work,
        calibrated=made.calibrated,
        content=quantized.SerializeToString(deterministic=True),
        reference=made.reference,
        target=find_target(request.config.file.target),
        device=request.device,
        deterministic=request.config.run.deterministic,
        simulated_images=request.config.run.simulated_images,
        ranks=request.ranks,
    )


def _how_made(request: Request, work: Work, report: Report, found: Found | None) -> HowMade:
    """What is known of the file's making; ``found``: its bits, where they were found."""
    images = None if asks_synthetic(request.calib) else len(work.samples.calibration)
    made = how_made(report.settings, images)
    if found is None:
        return made
    most = found.budget.bytes(report.model.size)
    return dataclasses.replace(made, instead=larger_budget(found.report, most, report.quantized.size, found.raised))


def _keep(draft: Draft, quantized: onnx.ModelProto, asked: FileSection) -> tuple[ModelInfo, list[Path]]:
    """Have the file safe on the disk, where one is asked for; what it is, and where it will be."""
    if asked.output is None:
        return ModelInfo.of("", quantized.SerializeToString(deterministic=True)), []
    written = model_files(asked.output, quantized, external=asked.external_data)
    draft.add(in_order(written))
    return ModelInfo.of(Path(asked.output).name, *written.values()), list(written)


def _check_budget(found: Found, report: Report, bits: Path | None) -> None:
    """Raise OptionError for a file that learned scales made larger than the budget that its bits were found for.

    ``bits``: the name of the file of bits that is kept beside it, if one is.
    """
    most, size = found.budget.bytes(report.model.size), report.quantized.size
    if most is not None and size > most:
        kept = ""
        if bits is not None:
            kept = (
                f"--bits-from with the {bits.name} that is kept, instead of --bits auto and its budget, and --resume, "
                "which makes this file of the blocks that are finished; or "
            )
        raise OptionError(
            f"{found.budget.told()}: the file has {size} bytes, {size - most} too many: scales that calibration found "
            f"make it larger than was estimated; give {kept}--max-size {size}, and --resume, which takes those blocks "
            f"up where the same bits are found; or less than {most} for bits that take fewer bytes"
        )


def _keep_beside(draft: Draft, report: Report, config: Config, data: Data, allotment: Allotment | None) -> list[Path]:
    """Have the report, in every form that is asked for, and bits of layers safe on the disk; where they will be."""
    contents = side_contents(config, report, data)
    if allotment is not None and (path := bits_path(config)) is not None:
        contents[path] = bits_content(path, allotment, config)
    if contents:
        draft.add(contents)
    return list(contents)
