"""`inspect_model`: what `quantize` would do with a model, before any calibration and without images.

JSON schema of `Inspection.to_dict`, version 2 (null stands for "not known")::

    schema_version    2
    model             {name, sha256, size}    the file as it is; size in bytes
    opset             of the file
    inputs, outputs   [{name, dtype, shape}]  shape: per axis a number, the name of a dynamic axis, or null
    settings          {name: value} of the options that inspect takes, under [plan], [file] and [calibration] in a file
                      of options; opset: of the file to write
    family            plain, grouped or depthwise: which of the paper's networks it is like
    hyper_parameters  {temperature, lambda_c, rounding_weight} that the family gets
    batch_norm        {in_file, statistics, layers}  nodes in the file; layers with statistics; all layers
    layers            [{node, op_type, weight_shape, weight_bits, input_bits, activation_bits, excluded, scope, bytes}]
                      null bits stand for float; scope: path of the module, where the file tells it besides the name;
                      bytes: of the file, for the layer's weight and bias and what unpacks them, those of a weight that
                      several layers share with the first of them; null where the file cannot be written
    blocks            [{name, layers, inputs, outputs}]  node and tensor names; reconstructed together
    tensors           [{tensor, role, bits}]  activations and carriers: what is quantized besides weights
    floating          [{node, op_type, reason}]  what computes in float in onnxruntime with target ort; with tensorrt
                      only what is excluded or cannot be calibrated, since TensorRT's builder decides on the rest
    min_onnxruntime   the lowest onnxruntime that runs the file; null where it cannot be written, or for other runtimes
    loading           {unpacking, portable}  bytes that unpacking its weights takes at the peak of loading, as it would
                      be written and in the form that every onnxruntime loads; null where the target does not pack them
    size              {float, quantized, ratio} in bytes, quantized to about 0.1 %; null where it cannot be written
    kernels           {integer: {op_type: count}, floating: {op_type: count}} of layers, as onnxruntime chooses them;
                      null where the target is another runtime
    saturating        [node]  layers whose integer kernels saturate on x86 processors without VNNI, unless reduce_range
    unsupported       [message]  nodes that calibration cannot compute and that a quantized layer depends on
    problems          [message]  everything else that quantize would refuse
    bit_ops           the sum over layers of multiplications x W x A of the input, over that of 8/8, as --max-bit-ops
                      counts them; null where the model does not run on random inputs
    search            with --bits auto how the bits that were found compare, as in a report; else null
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdq_export.calibrate.precision import settled_torch
from pdq_export.commands.allotting import plan_widest, take_bits
from pdq_export.commands.find_bits import Finder
from pdq_export.commands.making import file_metadata, made_by, settings
from pdq_export.commands.progress import ProgressCallback, Tell
from pdq_export.commands.rehearsal import rehearse
from pdq_export.commands.sensitivity import begin_measuring, images_to_measure
from pdq_export.commands.settle import choose, plan_options, settle
from pdq_export.config.config import Config, options_of
from pdq_export.config.method import FAMILIES
from pdq_export.config.option import INSPECT
from pdq_export.config.sections import AUTO
from pdq_export.config.signature import takes_options
from pdq_export.data import DataSource
from pdq_export.errors import ValidationError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.export.loading import Loading
from pdq_export.fidelity import UserFile, open_file
from pdq_export.graph.lookup import Dimension, GraphIndex, opset_version
from pdq_export.plan.floating import FloatNode
from pdq_export.plan.saturation import saturating_layers
from pdq_export.plan.summary import LayerSummary, summarize_layers
from pdq_export.report import ModelInfo
from pdq_export.report.bits import SearchReport
from pdq_export.spec import Plan, Role
from pdq_export.targets import find_target
from pdq_export.validate import KernelCount, Session
from pdq_export.validate.equivalence import FLOAT32
from pdq_export.work import Model, PlannedModel, read_any

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or output: per axis a size, the name of a dynamic axis, or None; None altogether for unknown rank."""

    name: str
    dtype: str | None
    shape: tuple[Dimension, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `quantize` would do; the fields are those of the JSON schema in the module's docstring."""

    model: ModelInfo
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    settings: Mapping[str, Any]
    family: str
    batch_norm_nodes: int
    layers_with_statistics: int
    layers: tuple[LayerSummary, ...]
    plan: Plan
    floating: tuple[FloatNode, ...]
    loading: Loading | None
    min_onnxruntime: str | None
    quantized_size: int | None
    layer_bytes: Mapping[str, int]
    kernels: KernelCount | None
    saturating: tuple[str, ...]
    unsupported: tuple[str, ...]
    problems: tuple[str, ...]
    bit_ops: float | None
    search: SearchReport | None

    def to_dict(self) -> dict[str, Any]:
        """The result in plain types, as the schema has it."""
        size, kernels = None, None
        if self.quantized_size is not None:
            ratio = self.quantized_size / max(self.model.size, 1)
            size = {"float": self.model.size, "quantized": self.quantized_size, "ratio": ratio}
        if self.kernels is not None:
            kernels = {"integer": dict(self.kernels.integer), "floating": dict(self.kernels.floating)}
        return {
            "schema_version": SCHEMA_VERSION,
            "model": dataclasses.asdict(self.model),
            "opset": self.opset,
            "inputs": [dataclasses.asdict(value) for value in self.inputs],
            "outputs": [dataclasses.asdict(value) for value in self.outputs],
            "settings": dict(self.settings),
            "family": self.family,
            "hyper_parameters": dict(FAMILIES[self.family]),
            "batch_norm": {
                "in_file": self.batch_norm_nodes,
                "statistics": self.layers_with_statistics,
                "layers": len(self.layers),
            },
            "layers": [
                {**dataclasses.asdict(layer), "bytes": self.layer_bytes.get(layer.node)} for layer in self.layers
            ],
            "blocks": [
                {
                    "name": block.name,
                    "layers": [layer.node for layer in block.layers],
                    "inputs": list(block.inputs),
                    "outputs": list(block.outputs),
                }
                for block in self.plan.blocks
            ],
            "tensors": [
                {"tensor": point.tensor, "role": point.role.value, "bits": point.bits}
                for point in self.plan.points.values()
                if point.role is not Role.WEIGHT
            ],
            "floating": [dataclasses.asdict(node) for node in self.floating],
            "min_onnxruntime": self.min_onnxruntime,
            "loading": None if self.loading is None else self.loading.to_dict(),
            "size": size,
            "kernels": kernels,
            "saturating": list(self.saturating),
            "unsupported": list(self.unsupported),
            "problems": list(self.problems),
            "bit_ops": self.bit_ops,
            "search": None if self.search is None else dataclasses.asdict(self.search),
        }

    def to_json(self) -> str:
        """The result as JSON text in ASCII: names of tensors may hold any character."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


@tells_of_memory(calibrates=False)
@settled_torch()
@takes_options(INSPECT)
def inspect_model(
    model: Model,
    *,
    example_input: Any = None,
    calib: DataSource | None = None,
    config: Config | str | Path | None = None,
    progress: ProgressCallback | None = None,
    **fields: Any,
) -> Inspection:
    """Plan a model and write it with placeholder integers; arguments as in `pdq_export.quantize`.

    ``calib`` is needed for bits "auto" alone, which are those that `quantize` finds with the same options, by the same
    images. Raises PdqError where the model cannot be read or planned; what would only stop the later stages is in
    ``unsupported`` and ``problems``.
    """
    given = {"calib": calib} if isinstance(calib, str | Path) else {}
    settled, found = settle(config, {**fields, **given}, command=INSPECT), None
    target = settled.file.target
    source = images_to_measure(settled, calib) if settled.plan.bits == AUTO else None
    file, session = _open(model, example_input, settled.file.opset)
    if source is None:
        settled, _ = take_bits(settled, file)
    else:
        settled, found = _find_bits(settled, file, session, source, Tell(progress))
    options = plan_options(settled, choose(settled))
    planned = PlannedModel.of(file, options, settled.file)
    family = planned.family
    info = planned.info
    told = settings(settled, options, choose(settled, family=family), family)
    made = made_by(info, dict.fromkeys(planned.index.inputs, info.sha256), "cpu")  # as long as that of a file
    trial = rehearse(planned, session, settled.file, file_metadata(settled, told, made))
    index, plan, original = planned.index, planned.plan, GraphIndex(file.parse())
    statistics, layers = planned.prepared.statistics, (*plan.layers, *plan.excluded)
    return Inspection(
        model=info,
        opset=original.opset,
        inputs=tuple(_tensor(original, name) for name in original.inputs if not original.is_constant(name)),
        outputs=tuple(_tensor(original, name) for name in original.outputs),
        settings={
            **{name: told[name] for name in options_of(type(settled), command=INSPECT) if name in told},
            "opset": index.opset,
        },
        family=family,
        batch_norm_nodes=sum(node.op_type == "BatchNormalization" for node in original.graph.node),
        layers_with_statistics=sum(layer.output in statistics for layer in layers),
        layers=summarize_layers(index, plan),
        plan=plan,
        floating=find_target(target).find_floating(index, plan),
        loading=planned.loading if find_target(target).layout.packs else None,
        min_onnxruntime=trial.min_onnxruntime,
        quantized_size=trial.quantized_size,
        layer_bytes=trial.layer_bytes,
        kernels=trial.kernels,
        saturating=() if trial.kernels is None else trial.kernels.as_integers(saturating_layers(plan)),
        unsupported=trial.unsupported,
        problems=trial.problems,
        bit_ops=trial.bit_ops,
        search=found,
    )


def _find_bits(
    config: Config, file: UserFile, session: Session | str, source: DataSource, tell: Tell
) -> tuple[Config, SearchReport]:
    """The configuration with bits found by images; how they compare. Raises ValidationError where none can run."""
    if isinstance(session, str):
        raise ValidationError(session)
    tell.stage("plan")
    planned = plan_widest(file, config)
    chosen = choose(config, family=planned.family)
    work = begin_measuring(planned, session, config, source, chosen.samples, tell)
    finder = Finder.of(work, config, chosen, tell)
    tell.stage("search")
    changed, _, found = finder.find()
    return changed, found.report


def _open(model: Model, example_input: Any, opset: int | None) -> tuple[UserFile, Session | str]:
    """The file, and a session of it, or why onnxruntime has none. Raises ModelError."""
    read, name = read_any(model, example_input, opset=opset)
    try:
        return open_file(read, name)
    except ValidationError as error:
        content = read.SerializeToString(deterministic=True)
        file = UserFile(name=name, content=content, runnable=content, precision=FLOAT32, opset=opset_version(read))
        return file, str(error)


def _tensor(index: GraphIndex, name: str) -> TensorInfo:
    dtype = index.dtype(name)
    return TensorInfo(name=name, dtype=None if dtype is None else str(dtype), shape=index.shape(name))
