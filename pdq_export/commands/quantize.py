"""`quantize`: the stages in order, from an FP32 ONNX file to a low-bit one with its report."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from pdq_export.calibrate import BlockProgress
from pdq_export.calibrate.memory import trim_heap
from pdq_export.calibrate.precision import settled_torch
from pdq_export.calibrate.shares import check_enough
from pdq_export.commands.allotting import take_bits
from pdq_export.commands.calibrating import CalibratedWork, calibrate_ready, make_ready
from pdq_export.commands.dry_run import dry_run, tell_loading
from pdq_export.commands.find_bits import Finder
from pdq_export.commands.find_smallest import check_held, find_smallest
from pdq_export.commands.finishing import Result, finish
from pdq_export.commands.judging import Metrics, Observed, batch_slices
from pdq_export.commands.progress import Progress, ProgressCallback, Tell
from pdq_export.commands.request import Request
from pdq_export.commands.search import Found
from pdq_export.commands.seen import check_alike
from pdq_export.commands.synthetic import make_samples
from pdq_export.commands.warned import Warned
from pdq_export.config.config import Config
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import QUANTIZE
from pdq_export.config.sections import AUTO, FileSection
from pdq_export.config.signature import takes_options
from pdq_export.data import DataSource, InputSpec, Samples, known_labels, read_samples
from pdq_export.data.synthetic import asks_synthetic
from pdq_export.exhaustion import tells_of_memory
from pdq_export.fidelity import Fidelity, UserFile
from pdq_export.gates import NO_LABELS, check_outputs
from pdq_export.normalization import read_alike, warn_of_normalization
from pdq_export.ranks import Ranks
from pdq_export.search.allotment import Allotment
from pdq_export.search.asked import asks_smallest
from pdq_export.validate import BATCH_SIZE, Batch, Session
from pdq_export.work import (
    Model,
    PlannedModel,
    Work,
    begin_work,
    check_known_labels,
    check_work,
    import_planned,
    open_model,
)

__all__ = ["Progress", "ProgressCallback", "Result", "quantize"]

logger = logging.getLogger(__name__)


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
        del work, fidelity, session
    else:
        del session
        tell.stage("calibrate")
        ready = make_ready(request, work, fidelity, chosen)
        del work, fidelity
        made = calibrate_ready(ready, tell.block, until_end)
        del ready
    return finish(made, allotment, found, tell, warned)


def _check_count(request: Request, chosen: CalibrationOptions, samples: Samples) -> None:
    """Refuse ranks with nothing to do and too few images held back, and warn of a single image."""
    if len(samples.calibration) == 1:
        logger.warning(
            "%s: one image to calibrate on: scales and rounding fit it alone, and others can lose everything; take a "
            "hundred or more, as the model will meet them",
            samples.calibration.source,
        )
    check_enough(request.ranks, chosen, len(samples.calibration))
    if samples.held is not None:
        assert request.config.gates.max_drop is not None  # what images are held back for
        check_held(request.config.gates.max_drop, samples)


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
) -> tuple[CalibratedWork, Allotment, Found]:
    """The smallest file that keeps --max-drop on the images held back, calibrated, with its bits and all steps."""
    finder = Finder.of(work, request.config, chosen, tell)
    tell.stage("search")
    heard: set[str] = set()

    def calibrate_as(config: Config, progress: Callable[[BlockProgress], None]) -> CalibratedWork:
        changed = request.planned_as(config)
        again, checked = _planned_again(changed, work.original, work.samples, session, tell, heard)
        tell.stage("calibrate")
        ready = make_ready(changed, again, checked, chosen)
        del again, checked
        return calibrate_ready(ready, progress, until_end)

    return find_smallest(finder, fidelity.reference(), calibrate_as, device=request.device, tell=tell)


def _check(work: Work, fidelity: Fidelity, asked: FileSection) -> None:
    """Refuse what would not compute what the file does, and what could not be written or run in the end."""
    check_work(work, fidelity)
    dry_run(work.prepared, work.plan, asked.target, loading=work.loading, runtime=asked.runtime, inputs=fidelity.probe)
    tell_loading(work.loading, asked.target)


def _check_gates(request: Request, work: Work, fidelity: Fidelity) -> None:
    """Refuse gates that there is nothing to judge by, and metrics that fail, before anybody waits for calibration."""
    judged, size = work.samples.judged, work.batch or BATCH_SIZE
    instead = "a budget, such as --max-size 0.15" if asks_smallest(request.config) else NO_LABELS
    request.limits.check_labels(judged.source, labelled=judged.labels is not None, instead=instead)
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
