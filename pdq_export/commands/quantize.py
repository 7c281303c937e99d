"""`quantize`: the stages in order, from an FP32 ONNX file to a low-bit one with its report."""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx

from pdq_export.calibrate import BlockProgress, Calibrated, calibrate
from pdq_export.calibrate.equalization import channel_factors
from pdq_export.calibrate.memory import parse_size, trim_heap
from pdq_export.calibrate.precision import settled_torch
from pdq_export.config.method import choose_options
from pdq_export.data import Source, check_exists
from pdq_export.errors import OptionError, first_few
from pdq_export.exhaustion import tells_of_memory
from pdq_export.export import MIN_OPSET
from pdq_export.fidelity import BATCHES, Fidelity, Probe, UserFile, as_seen
from pdq_export.files import Draft
from pdq_export.frontend import check_batch, check_runs, import_network
from pdq_export.graph.edit import with_constants
from pdq_export.graph.load import check_model, load_model
from pdq_export.graph.lookup import GraphIndex, opset_version
from pdq_export.graph.passes import equalize
from pdq_export.graph.prepare import PreparedModel
from pdq_export.graph.save import check_output, in_order, model_files
from pdq_export.numerics.ramp import ramp_qparams
from pdq_export.parity import Evidence, judge_parity
from pdq_export.plan import PlanOptions, network_family, without_tail
from pdq_export.plan.summary import summarize_layers
from pdq_export.samples import Samples, check_labels, read_samples
from pdq_export.spec import BitWidths, Plan, QuantizedTensors, Ramp
from pdq_export.stages import (
    collect_settings,
    dry_run,
    file_metadata,
    input_specs,
    prepare_and_plan,
)
from pdq_export.targets import find_target
from pdq_export.validate import (
    BATCH_SIZE,
    Batch,
    ModelInfo,
    Report,
    validate,
    with_outputs,
)
from pdq_export.verdict import warn_lost_parts, warn_useless

logger = logging.getLogger(__name__)

# The simulation takes most of the time of a validation, and a thousand images tell how near onnxruntime is to it.
SIMULATED_IMAGES = 1024
_LOOKED_AT_AGAIN = 64  # images, where onnxruntime is off the simulation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where `quantize` is.

    ``stage``: load, plan, read, calibrate, export or validate; ``block`` once one is calibrated. ``images``: how many
    of the ``total`` are read from a folder, for calibration and then for evaluation, or validated, once there are any.
    """

    stage: str
    block: BlockProgress | None = None
    images: int | None = None
    total: int | None = None


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


ProgressCallback = Callable[[Progress], None]


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
    calibration shall keep to; it moves data to temporary files and never changes the result. Raises PdqError for
    anything that can be wrong with the model, the data or the options, before anything is written, and
    ValidationError where onnxruntime computes something else than what was calibrated.
    """
    choose = functools.partial(choose_options, method=method, preset=preset, overrides=options)
    per_layer = choose().per_layer  # and wrong options are told before any work
    tell = progress or (lambda _: None)
    chosen_target = find_target(target)
    asked = PlanOptions.of(
        bits,
        layer_bits=layer_bits,
        exclude=exclude,
        exclude_op=exclude_op,
        first_last=first_last,
        weights=weights,
        wide_residuals=wide_residuals,
        reduce_range=reduce_range,
        per_layer=per_layer,
    )
    planning = chosen_target.settle(asked)
    torch_device = _device(device)
    memory = None if max_memory is None else parse_size(max_memory)
    check_exists(calib)
    check_exists(eval)
    if simulated_images < 1:
        raise OptionError(f"--simulated-images {simulated_images}: expected 1 or more")
    if output is not None or report is not None:
        read = tuple(path for path in (calib, eval) if isinstance(path, str | Path))
        path = None if isinstance(model, onnx.ModelProto) else model
        check_output(output, overwrite=overwrite, model=path, inputs=read, external=external_data, report=report)

    tell(Progress(stage="load"))
    original = load_model(model) if isinstance(model, str | Path) else check_model(model)
    info, own_opset = _model_info(model, original), max(opset_version(original), MIN_OPSET)
    file = UserFile.of(original)
    tell(Progress(stage="plan"))
    prepared, plan = prepare_and_plan(original, planning, target=target, opset=opset)
    del original
    index = GraphIndex(prepared.model)
    family = network_family(index, (*plan.layers, *plan.excluded))
    chosen = choose(family=family)
    specs = input_specs(prepared.model)
    batch = specs[0].shape[0]
    core = without_tail(prepared.model, plan.tail)
    network = import_network(core)
    check_batch(network, core)
    tell(Progress(stage="read"))
    samples = read_samples(
        calib,
        eval,
        specs,
        chosen.samples,
        told=lambda done, total: tell(Progress(stage="read", images=done, total=total)),
    )
    scores, *_ = check_runs(network, as_seen(samples.calibration.head(2).inputs(), prepared.model))
    if samples.judged.labels is not None and not plan.tail:
        check_labels(prepared.model.graph.output[0].name, scores.numpy(), samples.judged)
    compared = [value.name for value in core.graph.output]
    fidelity = _fidelity(file, samples, batch, compared)
    fidelity.check_finite()
    fidelity.check_model(prepared.model)
    fidelity.check_network(network, prepared, core)
    if plan.tail:
        _tell_tail(plan, compared)
    dry_run(prepared, plan, target, inputs=fidelity.probe)
    trim_heap()  # of large models several copies were made so far

    tell(Progress(stage="calibrate"))
    inputs = as_seen(samples.calibration.inputs(), prepared.model)
    equalized: list[str] = []
    if chosen.equalize_channels:
        prepared, network, equalized = _equalize(prepared, plan, network, inputs)
        fidelity.check_model(prepared.model, what="equalizing channels", remedy="--set equalize_channels=false")
        fidelity.check_network(network, prepared, core)
    reference, optimize = fidelity.reference_for(prepared.model)
    del fidelity, file
    calibrated = calibrate(
        network,
        plan,
        prepared.statistics,
        inputs,
        chosen,
        device=torch_device,
        max_memory=memory,
        progress=lambda at: tell(Progress(stage="calibrate", block=at)),
    )
    del inputs
    tell(Progress(stage="export"))
    settings = collect_settings(planning, chosen, target=target, method=method, preset=preset, family=family)
    quantized = chosen_target.export(
        with_constants(prepared.model, calibrated.biases),
        plan,
        calibrated.tensors,
        metadata=file_metadata(settings),
        own_opset=own_opset,
        max_opset=opset,
    )
    tell(Progress(stage="validate"))
    size, inner = batch or BATCH_SIZE, compared if plan.tail else ()
    simulate = _simulator(calibrated, prepared, torch_device)
    every = math.ceil(len(samples.judged) / size / max(simulated_images // size, 1))
    files: list[Path] = []
    with Draft() as draft:
        own: ModelInfo | None = None
        if output is not None:
            written = model_files(output, quantized, external=external_data)
            own = ModelInfo.of(Path(output).name, *written.values())
            draft.add(in_order(written))
            files += written
            del written
        measured = validate(
            original=reference,
            quantized=quantized,
            images=samples.judged.batches(size),
            labels=samples.judged.labels,
            simulate=simulate,
            simulate_every=every,
            compared=inner,
            optimize=optimize,
            settings={
                **settings,
                "opset": GraphIndex(quantized).opset,
                "device": str(torch_device),
                **samples.settings(),
                "equalized_tensors": equalized,
            },
            model=info,
            layers=[dataclasses.asdict(layer) for layer in summarize_layers(index, plan)],
            floating=[
                dataclasses.asdict(node)
                for node in chosen_target.find_floating(index, _with_fitted_ramps(plan, calibrated.tensors))
            ],
            predictions=calibrated.predictions,
            parts=plan.parts,
            places=network.meta["images"],
            progress=lambda done: tell(Progress(stage="validate", images=done, total=len(samples.judged))),
        )
        evidence = Evidence(
            quantized=with_outputs(quantized.SerializeToString(), inner),
            floating=with_outputs(reference, inner),
            optimize=optimize,
            few=list(samples.judged.head(max(size, _LOOKED_AT_AGAIN // size * size)).batches(size)),
            simulated=itertools.islice(samples.judged.batches(size), 0, None, every),
            simulate=simulate,
        )
        parity = judge_parity(measured, plan, evidence)
        del evidence
        measured = dataclasses.replace(measured, quantized=own or measured.quantized, saturated_layers=parity.saturated)
        if report is not None:
            draft.add({Path(report): measured.to_json().encode()})
            files.append(Path(report))
        warn_useless(measured, samples.judged)
        warn_lost_parts(measured, samples.judged)
        parity.tell()
        draft.place(overwrite=overwrite)
    return Result(model=quantized, plan=plan, tensors=calibrated.tensors, report=measured, files=tuple(files))


def _equalize(
    prepared: PreparedModel, plan: Plan, network: fx.GraphModule, inputs: Sequence[torch.Tensor]
) -> tuple[PreparedModel, fx.GraphModule, list[str]]:
    """The same model and network with the channels before depthwise layers in one range, and the tensors concerned."""
    pairs = equalize.find_pairs(prepared.model, plan.points, {layer.node for layer in plan.layers})
    tensors = [pair.tensor for pair in pairs]
    if not pairs:
        return prepared, network, tensors
    logger.info("channels of %d tensors are brought to one range: %s", len(tensors), ", ".join(tensors))
    factors = channel_factors(network, tensors, inputs)
    model, statistics = equalize.run(prepared.model, prepared.statistics, pairs, factors)
    network = import_network(without_tail(model, plan.tail))
    return PreparedModel(model=model, statistics=statistics), network, tensors


def _with_fitted_ramps(plan: Plan, tensors: QuantizedTensors) -> Plan:
    """The plan without the ramps for which calibration has found no scale of their source."""

    def fits(ramp: Ramp) -> bool:
        source = tensors[ramp.source]
        return ramp_qparams(float(source.scale), int(source.zero_point), ramp.knee) is not None

    return dataclasses.replace(plan, ramps={name: ramp for name, ramp in plan.ramps.items() if fits(ramp)})


def _tell_tail(plan: Plan, compared: Sequence[str]) -> None:
    logger.warning(
        "behind the quantized part, %d of the nodes stay in float as they are: %s; calibration and validation "
        "compare %s",
        len(plan.tail),
        first_few([f"{node!r} ({reason})" for node, reason in plan.tail.items()]),
        " and ".join(map(repr, compared)),
    )


def _model_info(model: str | Path | onnx.ModelProto, original: onnx.ModelProto) -> ModelInfo:
    name = "" if isinstance(model, onnx.ModelProto) else Path(model).name
    return ModelInfo.of(name, original.SerializeToString(deterministic=True))


def _fidelity(file: UserFile, samples: Samples, batch: int | None, names: Sequence[str]) -> Fidelity:
    """What holds models against the file, on a few images of calibration and, where these are others, of evaluation."""
    judged = () if samples.shared == len(samples.judged) else (samples.judged,)
    probes = [
        Probe.of(tuple(data.head(BATCHES * (batch or 1)).inputs()), batch, data.source)
        for data in (samples.calibration, *judged)
    ]
    return Fidelity(file, probes, names)


def _simulator(
    calibrated: Calibrated, prepared: PreparedModel, device: torch.device
) -> Callable[[Batch], list[NDArray[np.float32]]]:
    @torch.no_grad()
    def simulate(batch: Batch) -> list[NDArray[np.float32]]:
        inputs = as_seen(batch if isinstance(batch, tuple) else (batch,), prepared.model)
        outputs: Sequence[torch.Tensor] = calibrated.simulation(*(x.to(device) for x in inputs))
        return [output.cpu().numpy() for output in outputs]

    return simulate


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise OptionError(
            f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu or install a "
            "CUDA build of torch"
        )
    return device
