"""`quantize`: the stages in order, from an FP32 ONNX file to a low-bit one with its report."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from torch import fx

from pdq_export.advice import HowMade
from pdq_export.calibrate import BlockProgress, BlockRecord, Calibrated, calibrate
from pdq_export.calibrate.engine import UNLIKE
from pdq_export.calibrate.memory import trim_heap
from pdq_export.calibrate.precision import settled_torch
from pdq_export.calibrate.shares import check_enough
from pdq_export.commands.allotting import bits_content, take_bits
from pdq_export.commands.details import weight_histograms, with_layer_errors
from pdq_export.commands.dry_run import dry_run, tell_loading
from pdq_export.commands.evaluate import Evaluation, evaluate, help_evaluate, time_beside
from pdq_export.commands.find_bits import Finder
from pdq_export.commands.find_smallest import Candidate, find_smallest
from pdq_export.commands.judging import Metrics, Observed, batch_slices, side_contents
from pdq_export.commands.keeping import describe_run, kept_blocks
from pdq_export.commands.known import how_made
from pdq_export.commands.making import Making
from pdq_export.commands.next_steps import compare_few, larger_budget, with_next_steps
from pdq_export.commands.progress import Progress, ProgressCallback, Tell
from pdq_export.commands.request import Request
from pdq_export.commands.search import Found
from pdq_export.commands.seen import Seen, check_alike
from pdq_export.commands.synthetic import make_samples
from pdq_export.commands.warned import Warned
from pdq_export.commands.written import asks_page, bits_path
from pdq_export.config.config import AUTO, Config, FileSection
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import QUANTIZE
from pdq_export.config.signature import takes_options
from pdq_export.data import Data, DataSource, InputSpec, Samples, classes_of, known_labels, read_samples
from pdq_export.data.synthetic import asks_synthetic
from pdq_export.errors import OptionError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.export.cost import constant_bytes
from pdq_export.export.layouts import MIN_OPSET
from pdq_export.fidelity import Fidelity, UserFile
from pdq_export.files import Draft
from pdq_export.gates import check_outputs
from pdq_export.graph.edit import with_constants
from pdq_export.graph.lookup import opset_version
from pdq_export.graph.save import in_order, model_files
from pdq_export.normalization import read_alike, warn_of_normalization
from pdq_export.ranks import Ranks
from pdq_export.report import ModelInfo, Report, tell_verdict
from pdq_export.report.layers import LayerReport
from pdq_export.search.allotment import Allotment
from pdq_export.search.asked import asks_smallest
from pdq_export.spec import Plan, QuantizedTensors
from pdq_export.targets import find_target
from pdq_export.validate import BATCH_SIZE, Batch, Session
from pdq_export.validate.parity import Parity
from pdq_export.work import (
    Model,
    PlannedModel,
    Work,
    begin_work,
    check_known_labels,
    check_work,
    equalize_channels,
    import_planned,
    open_model,
)

__all__ = ["Progress", "ProgressCallback", "Result", "quantize"]

logger = logging.getLogger(__name__)


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
@takes_options(QUANTIZE)
def quantize(
    model: Model,
    *,
    example_input: Any = None,
    calib: DataSource | None = None,
    eval: DataSource | None = None,
    labels: Any = None,
    config: Config | str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    metrics: Metrics = (),
    progress: ProgressCallback | None = None,
    **fields: Any,
) -> Result:
    """Quantize an FP32 ONNX CNN with PD-Quant and validate the result in onnxruntime.

    ``model``: the path of an ONNX file, an `onnx.ModelProto`, or a `torch.nn.Module`, which is exported here in
    evaluation mode, with BatchNormalization kept, as it computes for ``example_input``: a tensor [N, ...] or a tuple.

    ``calib`` and ``eval``: images [N, C, H, W], as an array, a tensor, an `ImageSet`, or a path to an .npz, .npy or
    folder; for a model with several inputs, or one that is no image, {name: array [N, ...]}, an `InputSet` or an .npz
    of them; (X, y) with labels y [N]; a torch DataLoader or Dataset, onnxruntime's CalibrationDataReader, or any
    iterable of arrays, tensors, (image, label) pairs or dicts by input name, one by one or in batches; or
    "module:function", which is imported and called and returns any of these. Iterables are gone through once, of
    ``calib`` only as far as ``samples``. ``calib`` "synthetic" (a file of that name is "./synthetic"): images are
    learned from what the model's BatchNormalization has gathered. ``eval`` gives the figures of the report; without it
    agreement is measured on the calibration images and the report says so. ``labels``: class indices [N] of ``eval``,
    or else of ``calib``.

    ``config``: options, as a `Config` or the path of a TOML file; those given here as ``fields`` win over it. All of
    them are below. ``options``: those of `CalibrationOptions`, which can be given as ``fields`` as well; they win over
    method, preset and what the graph suggests. ``layer_bits`` may be {REGEX: W/A}, bits `BitWidths`, ``max_memory`` a
    number of bytes. ``metrics``: functions of outputs and labels beside those that ``metric`` names, as
    `validate_models` takes them; gates are judged on ``eval``, and one that fails is in the report and raises nothing.

    ``output`` and ``report`` are written together at the very end. Before validation the model is kept on the disk
    beside ``output``; an error or Ctrl-C from then on says where. ``progress`` is called with a `Progress`. Raises
    PdqError for anything that can be wrong with the model, the data or the options, before anything is written, and
    ValidationError where onnxruntime computes something else than what was calibrated.
    """
    request = Request.of(
        model,
        config,
        fields,
        example_input=example_input,
        calib=calib,
        eval=eval,
        labels=labels,
        options=options,
        metrics=metrics,
    )
    result = _run_warned(request, progress)
    assert result is not None  # the only process is the first
    return result


@tells_of_memory(calibrates=True)
@settled_torch()
def quantize_together(
    ranks: Ranks, model: Model, *, config: Config, progress: ProgressCallback | None
) -> Result | None:
    """What `quantize` does, in several processes that call this together; the result on the first, which alone writes.

    Raises what `quantize` does, and RankError where the processes are not alike or one of them has ended.
    """
    nothing: dict[str, Any] = dict.fromkeys(("example_input", "calib", "eval", "labels", "options"))
    return _run_warned(Request.of(model, config, {}, **nothing, ranks=ranks), progress if ranks.is_first else None)


def _run_warned(request: Request, progress: ProgressCallback | None) -> Result | None:
    with contextlib.ExitStack() as until_end:
        warned = until_end.enter_context(Warned())
        return _run(request, Tell(progress), until_end, warned)


def _run(request: Request, tell: Tell, until_end: contextlib.ExitStack, warned: Warned) -> Result | None:
    """The stages in order; ``until_end`` holds what is kept for a run that is interrupted in any of them.

    What is deleted is not held while calibration needs the memory. Of several ranks the first alone has a result.
    """
    tell.stage("load")
    asked = request.config.file
    file, session = open_model(request.model, request.example_input, opset=asked.opset)
    tell.stage("plan")
    config, allotment = take_bits(request.config, file)
    request, found = request.planned_as(config), None
    searched, smallest = config.plan.bits == AUTO, asks_smallest(config)
    planned = PlannedModel.of(file, request.planning, asked, told=not searched)
    chosen, inputs = request.options(planned.family), planned.inputs
    judged_on = request.calib if request.eval is None else request.eval
    check_known_labels(planned, known_labels(judged_on, request.labels))
    network = import_planned(planned)
    tell.stage("read")
    samples = _samples(request, planned, inputs, network, tell)
    if samples.held is not None:
        request = request.calibrating(samples, chosen.samples)
        chosen = request.options(planned.family)
    check_alike(request, planned, chosen, samples)
    _check_count(request, chosen, samples)
    work = begin_work(planned, network, samples)
    del planned, network
    tell.stage("check")
    fidelity = work.fidelity(session)
    _check(work, fidelity, asked)
    _tell_normalization(work)
    _check_gates(request, work, fidelity)
    if searched and not smallest:
        request, allotment, found = _find_bits(request, work, chosen, tell)
        work, fidelity = _planned_again(request, file, samples, session, tell)
    trim_heap()  # of large models several copies were made so far
    if smallest:
        made, allotment, found = _find_smallest(request, work, fidelity, session, chosen, tell, until_end)
        del fidelity, session
    else:
        del session
        tell.stage("calibrate")
        seen = Seen.of(work, request.ranks)
        work, equalized = _equalize(work, chosen, fidelity, seen, request.ranks)
        reference = fidelity.reference()
        del fidelity
        calibrated, records = _calibrate(work, seen, chosen, request, tell.block, until_end)
        del seen
        made = Candidate(
            request=request,
            work=work,
            calibrated=calibrated,
            records=records,
            equalized=equalized,
            reference=reference,
        )
    request, work, calibrated = made.request, made.work, made.calibrated
    tell.stage("export")
    making = Making.of(request, work, chosen, made.equalized)
    quantized = _export(work, calibrated, request.config, making.metadata())
    tell.stage("validate")
    if not request.ranks.is_first:
        help_evaluate(_evaluation(made, quantized))
        return None
    with Draft() as draft:
        own, files = _keep(draft, quantized, asked)
        report, parity = _judge(made, making, quantized, own, found, tell)
        try:
            tell_verdict(report, parity, samples.judged.source)
            if found is not None:
                _check_budget(found, report, bits_path(request.config))
        finally:  # what is refused is told with all figures
            report = dataclasses.replace(report, warnings=warned.texts)
            files += _keep_beside(draft, report, request.config, samples.judged, allotment)
        draft.place(overwrite=asked.overwrite)
    return Result(model=quantized, plan=work.plan, tensors=calibrated.tensors, report=report, files=tuple(files))


def _check_count(request: Request, chosen: CalibrationOptions, samples: Samples) -> None:
    """Refuse ranks with nothing to do, and warn of a single image."""
    if len(samples.calibration) == 1:
        logger.warning(
            "%s: one image to calibrate on: scales and rounding fit it alone, and others can lose everything; take a "
            "hundred or more, as the model will meet them",
            samples.calibration.source,
        )
    check_enough(request.ranks, chosen, len(samples.calibration))


def _samples(
    request: Request, planned: PlannedModel, inputs: Sequence[InputSpec], network: fx.GraphModule, tell: Tell
) -> Samples:
    """What is calibrated on, read or made, and what is judged on."""
    count = request.options(planned.family).samples
    if asks_synthetic(request.calib):
        return make_samples(request, planned, network, count, tell)
    return read_samples(
        request.calib,
        request.eval,
        inputs,
        count,
        told=functools.partial(tell.images, "read"),
        labels=request.labels,
        preprocess=request.preprocess,
        hold_back=asks_smallest(request.config),
    )


def _find_bits(
    request: Request, work: Work, chosen: CalibrationOptions, tell: Tell
) -> tuple[Request, Allotment, Found]:
    """The request with the bits that were found, by layer and with how they compare."""

    def find() -> tuple[Config, Allotment, Found]:
        finder = Finder.of(work, request.config, chosen, tell)
        tell.stage("search")
        return finder.find()

    config, allotment, found = request.ranks.done_by_first(find)
    return request.planned_as(config), allotment, found


def _planned_again(
    request: Request, file: UserFile, samples: Samples, session: Session, tell: Tell, heard: set[str] | None = None
) -> tuple[Work, Fidelity]:
    """The work with the bits that the request has now; ``heard``: as in `prepare_and_plan`."""
    tell.stage("plan")
    planned = PlannedModel.of(file, request.planning, request.config.file, heard=heard)
    work = begin_work(planned, import_planned(planned), samples)
    fidelity = work.fidelity(session)
    _check(work, fidelity, request.config.file)
    return work, fidelity


def _find_smallest(
    request: Request,
    work: Work,
    fidelity: Fidelity,
    session: Session,
    chosen: CalibrationOptions,
    tell: Tell,
    until_end: contextlib.ExitStack,
) -> tuple[Candidate, Allotment, Found]:
    """The smallest file that keeps --max-drop on the images held back, calibrated, with its bits and all steps."""
    finder = Finder.of(work, request.config, chosen, tell)
    tell.stage("search")
    heard: set[str] = set()

    def calibrate_as(config: Config, progress: Callable[[BlockProgress], None]) -> Candidate:
        changed = request.planned_as(config)
        again, checked = _planned_again(changed, work.original, work.samples, session, tell, heard)
        tell.stage("calibrate")
        seen = Seen.of(again, request.ranks)
        again, equalized = _equalize(again, chosen, checked, seen, request.ranks)
        calibrated, records = _calibrate(again, seen, chosen, changed, progress, until_end)
        return Candidate(
            request=changed,
            work=again,
            calibrated=calibrated,
            records=records,
            equalized=equalized,
            reference=checked.reference(),
        )

    return find_smallest(finder, fidelity.reference(), calibrate_as, device=request.device, tell=tell)


def _check(work: Work, fidelity: Fidelity, asked: FileSection) -> None:
    """Refuse what would not compute what the file does, and what could not be written or run in the end."""
    check_work(work, fidelity)
    dry_run(work.prepared, work.plan, asked.target, loading=work.loading, runtime=asked.runtime, inputs=fidelity.probe)
    tell_loading(work.loading, asked.target)


def _check_gates(request: Request, work: Work, fidelity: Fidelity) -> None:
    """Refuse gates that there is nothing to judge by, and metrics that fail, before anybody waits for calibration."""
    judged, size = work.samples.judged, work.batch or BATCH_SIZE
    request.limits.check_labels(judged.source, labelled=judged.labels is not None)
    check_outputs(request.limits, {name: fidelity.outputs[name] for name in work.compared})
    if not (request.metrics and request.ranks.is_first):
        return
    reference = fidelity.reference()
    session = Session(reference.content(work.prepared.model), optimize=reference.optimize)
    observed = Observed(request.metrics, judged.labels)
    batches: Iterator[Batch] = judged.batches(size)
    for samples, batch in zip(batch_slices(len(judged), size), batches, strict=True):
        outputs = session.run_by_name(batch)
        observed(outputs, outputs, samples)
    request.limits.check_metrics(value.name for value in observed.result())


def _tell_normalization(work: Work) -> None:
    """Warn of images that seem to be normalized in another way than those of training, wherever they are read from.

    The same images of another folder are told of too: each folder says itself how it is read.
    """
    samples = work.samples
    calibration, judged = samples.calibration, samples.judged
    same = samples.shared == len(judged) and read_alike(calibration, judged)
    made = samples.synthesis is not None  # they fit, whatever the normalization is
    for data in (*(() if made else (calibration,)), *(() if same else (judged,))):
        warn_of_normalization(work.network, work.plan, work.prepared.statistics, data)


def _equalize(
    work: Work, chosen: CalibrationOptions, fidelity: Fidelity, seen: Seen, ranks: Ranks
) -> tuple[Work, tuple[str, ...]]:
    """The work with channels in one range, where that is asked for, and the tensors concerned."""
    if not chosen.equalize_channels:
        return work, ()
    # What the prepared model computes has to be the file's where the file is compared with it.
    found = equalize_channels(work, seen.inputs, ranks, through_clips=fidelity.reference().file is not None)
    fidelity.check_model(found.exact.model, what="equalizing channels", remedy="--set equalize_channels=false")
    fidelity.check_network(found.work.network, found.exact, work.core.model)
    return found.work, found.tensors


def _calibrate(
    work: Work,
    seen: Seen,
    chosen: CalibrationOptions,
    request: Request,
    progress: Callable[[BlockProgress], None],
    until_end: contextlib.ExitStack,
) -> tuple[Calibrated, Mapping[str, BlockRecord]]:
    """Calibrate, with finished blocks kept or taken up; by block, how it was done."""
    asked, how = request.config.file, request.config.run
    run = describe_run(
        name=work.original.name,
        sha256=work.original.sha256,
        prepared=work.prepared,
        plan=work.plan,
        images=seen.digest,
        options=chosen,
        asked={
            **vars(request.planning.section),
            "target": asked.target,
            "opset": asked.opset,
            "runtime": asked.runtime,
            **({"deterministic": how.deterministic} if request.device.type != "cpu" else {}),
        },
        device=request.device,
    )
    request.ranks.check_same("the model as it is calibrated", run.key.parts["graph"], UNLIKE)
    kept = kept_blocks(run, work.prepared, work_dir=how.work_dir, resume=how.resume, ranks=request.ranks)
    checkpoint = until_end.enter_context(kept)
    calibrated = calibrate(
        work.network,
        work.plan,
        work.prepared.statistics,
        seen.inputs,
        chosen,
        device=request.device,
        deterministic=how.deterministic,
        max_memory=request.max_memory,
        progress=progress,
        checkpoint=checkpoint,
        ranks=request.ranks,
    )
    return calibrated, checkpoint.records


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
    made: Candidate, making: Making, quantized: onnx.ModelProto, own: ModelInfo, found: Found | None, tell: Tell
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


def _evaluation(made: Candidate, quantized: onnx.ModelProto) -> Evaluation:
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
