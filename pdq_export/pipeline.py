"""`quantize`: the stages in order, from an FP32 ONNX file to a low-bit one with its report."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx

import pdq_export
from pdq_export.calibrate import BlockProgress, Calibrated, calibrate
from pdq_export.calibrate.memory import parse_size
from pdq_export.data import ImageSet, InputSpec, load_images
from pdq_export.errors import DataError, ModelError, OptionError
from pdq_export.export import export_model, required_opset
from pdq_export.files import check_writable, write_atomically
from pdq_export.frontend import check_runs, import_model
from pdq_export.graph.load import check_model, load_model
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch
from pdq_export.graph.prepare import PreparedModel, float32_reference, prepare
from pdq_export.options import CalibrationOptions, choose_options
from pdq_export.plan import make_plan, network_family
from pdq_export.spec import BitWidths, Plan, QuantizedTensor, QuantizedTensors, Role
from pdq_export.validate import ModelInfo, Report, check_loads, validate

logger = logging.getLogger(__name__)

VALIDATION_BATCH = 50
WEIGHTS = ("asymmetric", "symmetric")

Images = str | Path | NDArray[np.float32] | ImageSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where `quantize` is. ``stage``: load, plan, calibrate, export or validate; the rest only while calibrating."""

    stage: str
    block: str | None = None
    block_index: int = 0
    block_count: int = 0
    step: int = 0
    step_count: int = 0
    loss: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """``model``: the quantized file's content. ``tensors``: its integers, scales and zero_points by tensor name."""

    model: onnx.ModelProto
    plan: Plan
    tensors: QuantizedTensors
    report: Report


ProgressCallback = Callable[[Progress], None]


def quantize(
    model: str | Path | onnx.ModelProto,
    *,
    bits: str | BitWidths = "4/4",
    calib: Images,
    eval: Images | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    target: str = "ort",
    opset: int | None = None,
    method: str = "pd-quant",
    preset: str = "balanced",
    weights: str = "asymmetric",
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    max_memory: int | str | None = None,
    progress: ProgressCallback | None = None,
) -> Result:
    """Quantize an FP32 ONNX CNN to ``bits`` (W/A) with PD-Quant and validate the result in onnxruntime.

    ``method``: pd-quant, or one of the methods that it grew from: qdrop, brecq, adaround, nearest. ``preset``: the
    budget, fast, balanced or paper. ``weights``: asymmetric, or symmetric where a runtime needs zero_point 0.
    ``options``: fields of `CalibrationOptions` that win over method, preset and what the graph suggests.
    ``calib`` and ``eval``: images [N, C, H, W], as an array, an `ImageSet`, or a path to an .npz, .npy or folder.
    ``eval`` gives the figures of the report; without it agreement is measured on the calibration images and the
    report says so. ``output``: where the model is written; None writes nothing. ``max_memory``: bytes of host memory,
    or a size like ``4GB``, that calibration shall keep to; it moves data to temporary files and never changes the
    result. Raises PdqError for anything that
    can be wrong with the model, the data or the options, before anything is written.
    """
    choose = functools.partial(choose_options, method=method, preset=preset, overrides=options)
    per_layer = choose().per_layer  # and wrong options are told before any work
    if weights not in WEIGHTS:
        raise OptionError(f"--weights {weights!r}: expected {' or '.join(WEIGHTS)}")
    tell = progress or (lambda _: None)
    bits = bits if isinstance(bits, BitWidths) else BitWidths.parse(bits)
    torch_device = _device(device)
    memory = None if max_memory is None else parse_size(max_memory)
    if output is not None:
        inputs = [Path(p) for p in (model, calib, eval) if isinstance(p, str | Path)]
        check_writable(Path(output), overwrite=overwrite, inputs=inputs)

    tell(Progress(stage="load"))
    original = load_model(model) if isinstance(model, str | Path) else check_model(model)
    reference = float32_reference(original)
    check_loads(reference)
    tell(Progress(stage="plan"))
    planner = functools.partial(make_plan, bits=bits, symmetric_weights=weights == "symmetric", per_layer=per_layer)
    prepared, plan = prepare_and_plan(original, planner, target=target, opset=opset)
    family = network_family(GraphIndex(prepared.model), plan.layers)
    chosen = choose(family=family)
    spec = input_spec(prepared.model)
    network = import_model(free_batch.run(prepared.model))
    calibration = _images(calib, spec, chosen.samples)
    judged = _whole_batches(calibration if eval is None else _images(eval, spec, None), spec)
    check_labels(prepared.model, judged)
    check_runs(network, [_rounded(calibration.head(2).array(), prepared)])
    dry_run(prepared, plan, target)

    calibrated = _calibrate(network, prepared, plan, calibration, chosen, torch_device, memory, tell)
    tell(Progress(stage="export"))
    settings = {
        "bits": str(bits),
        "target": target,
        "method": method,
        "preset": preset,
        "weights": weights,
        "family": family,
        **dataclasses.asdict(chosen),
    }
    quantized = export_model(prepared.model, plan, calibrated.tensors, target=target, metadata=_metadata(settings))
    tell(Progress(stage="validate"))
    report = validate(
        original=reference,
        quantized=quantized,
        images=judged.batches(spec.shape[0] or VALIDATION_BATCH),
        labels=judged.labels,
        simulate=_simulator(calibrated, prepared, torch_device),
        settings={
            **settings,
            "opset": GraphIndex(quantized).opset,
            "device": str(torch_device),
            "calibration": str(calibration),
            "evaluation": str(judged),
            "evaluated_on_calibration_images": eval is None,
        },
        model=_model_info(model, original),
        layers=_layers(plan),
    )
    if output is not None:
        named = dataclasses.replace(report.quantized, name=Path(output).name)
        report = dataclasses.replace(report, quantized=named)
    if output is not None:
        write_atomically(Path(output), quantized.SerializeToString(deterministic=True))
    return Result(model=quantized, plan=plan, tensors=calibrated.tensors, report=report)


def prepare_and_plan(
    model: onnx.ModelProto, planner: Callable[[onnx.ModelProto], Plan], *, target: str, opset: int | None
) -> tuple[PreparedModel, Plan]:
    """Prepare the model at the opset that the layout needs for what ``planner`` plans."""
    prepared = prepare(model)
    plan = planner(prepared.model)
    needed = required_opset(plan, target, opset)
    own = GraphIndex(prepared.model).opset
    if opset is not None and own > opset:
        raise OptionError(
            f"--opset {opset}: the model's own opset is {own} already; expected {own} or more; export the model with "
            f"opset {opset}"
        )
    if needed > own:
        prepared = prepare(model, opset=needed)
        plan = planner(prepared.model)
    return prepared, plan


def dry_run(prepared: PreparedModel, plan: Plan, target: str) -> None:
    """Export and load with placeholder integers, so that nobody waits for a calibration that cannot be written."""
    index = GraphIndex(prepared.model)
    tensors = {}
    for name, point in plan.points.items():
        integers = None
        shape: tuple[int, ...] = ()
        if point.role is Role.WEIGHT:
            weight = index.constant(name)
            assert weight is not None
            assert point.axis is not None
            integers, shape = np.zeros(weight.shape, np.int16), (weight.shape[point.axis],)
        tensors[name] = QuantizedTensor(
            point=point, scale=np.ones(shape, np.float32), zero_point=np.zeros(shape, np.int32), integers=integers
        )
    check_loads(export_model(prepared.model, plan, tensors, target=target, metadata={}))


def input_spec(model: onnx.ModelProto) -> InputSpec:
    """The image input of a model. Raises ModelError where there is more than one float input."""
    index = GraphIndex(model)
    floats = [name for name in index.inputs if (dtype := index.dtype(name)) is not None and dtype.kind == "f"]
    if len(index.inputs) != 1 or len(floats) != 1:
        raise ModelError(
            f"model: it has {len(index.inputs)} inputs ({', '.join(map(repr, index.inputs))}); expected one float "
            "image input, since calibration images carry no mapping to inputs; fold the others into constants first"
        )
    shape = index.shape(floats[0])
    if shape is None:
        raise ModelError(f"input {floats[0]!r}: its rank is unknown; expected [N, C, H, W]; export it with a shape")
    return InputSpec(name=floats[0], shape=tuple(d if isinstance(d, int) else None for d in shape))


def _images(source: Images, spec: InputSpec, limit: int | None) -> ImageSet:
    if isinstance(source, ImageSet):
        return source.check(spec) if limit is None else source.check(spec).head(limit)
    if isinstance(source, np.ndarray):
        return ImageSet.from_array(source, expected=spec, limit=limit)
    return load_images(source, expected=spec, limit=limit)


def _whole_batches(images: ImageSet, spec: InputSpec) -> ImageSet:
    """Without the images that do not fill a batch, where the model fixes its size."""
    batch = spec.shape[0] or 1
    left_over = len(images) % batch
    if left_over == len(images):
        raise DataError(f"{images.source}: {len(images)} images; expected at least {batch}, the model's batch size")
    if left_over:
        logger.warning("the model's batch size is %d: the last %d images are not evaluated", batch, left_over)
    return images.head(len(images) - left_over)


def check_labels(model: onnx.ModelProto, images: ImageSet) -> None:
    """Raise DataError for a label that the model's first output, where it is [N, K], has no class for."""
    index = GraphIndex(model)
    shape = index.shape(index.outputs[0])
    if images.labels is None or shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        return
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= shape[1]:
        raise DataError(
            f"{images.source}: labels span [{low}, {high}]; expected 0 to {shape[1] - 1}, as output "
            f"{index.outputs[0]!r} has {shape[1]} classes; remap the labels or leave them out"
        )


def _model_info(model: str | Path | onnx.ModelProto, original: onnx.ModelProto) -> ModelInfo:
    name = "" if isinstance(model, onnx.ModelProto) else Path(model).name
    return ModelInfo.of(name, original.SerializeToString(deterministic=True))


def _layers(plan: Plan) -> list[dict[str, Any]]:
    """For the report: bits of every layer's weight and input."""
    return [
        {
            "node": layer.node,
            "op_type": layer.op_type,
            "weight_bits": plan.points[layer.weight].bits,
            "input_bits": plan.points[source].bits if (source := plan.source(layer.input)) else None,
        }
        for layer in plan.layers
    ]


def _calibrate(
    network: fx.GraphModule,
    prepared: PreparedModel,
    plan: Plan,
    images: ImageSet,
    options: CalibrationOptions,
    device: torch.device,
    max_memory: int | None,
    tell: ProgressCallback,
) -> Calibrated:
    def report(at: BlockProgress) -> None:
        tell(
            Progress(
                stage="calibrate",
                block=at.block,
                block_index=at.index,
                block_count=at.count,
                step=at.step,
                step_count=at.steps,
                loss=at.loss,
            )
        )

    x = _rounded(images.array(), prepared)
    return calibrate(
        network, plan, prepared.statistics, [x], options, device=device, max_memory=max_memory, progress=report
    )


def _rounded(images: NDArray[np.float32], prepared: PreparedModel) -> torch.Tensor:
    """Images in float32 as a model with a float16 input sees them."""
    index = GraphIndex(prepared.model)
    half = index.dtype(index.inputs[0]) == np.float16
    return torch.from_numpy(images.astype(np.float16).astype(np.float32) if half else images)


def _simulator(
    calibrated: Calibrated, prepared: PreparedModel, device: torch.device
) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    @torch.no_grad()
    def simulate(batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        outputs: Sequence[torch.Tensor] = calibrated.simulation(_rounded(batch, prepared).to(device))
        return [output.cpu().numpy() for output in outputs]

    return simulate


def _metadata(settings: Mapping[str, Any]) -> Mapping[str, str]:
    return {
        "pdq_export.version": pdq_export.__version__,
        "pdq_export.bits": settings["bits"],
        "pdq_export.target": settings["target"],
        "pdq_export.seed": str(settings["seed"]),
        "pdq_export.options": json.dumps(settings, sort_keys=True),
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise OptionError(
            f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu or install a "
            "CUDA build of torch"
        )
    return device
