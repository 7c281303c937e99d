"""What a run did and how good its result is, as frozen dataclasses and as JSON.

`quantize` and `validate` write the same; what only one of them knows is empty, or null, in the other's.

Schema, version 1 (null stands for "not measured", for sqnr_db for "no difference" or no signal)::

    schema_version  1
    versions        {package: version}
    model           {name, sha256, size}    the user's model; size in bytes
    quantized       {name, sha256, size}    the model that was written
    size_ratio      quantized.size / model.size
    settings        {...}                   options as they were settled, by name, but for those that say how images
                                            are read (preprocess.toml has a part in that) and how the run goes about
                                            it; asked: those that were given, how images are read among them;
                                            made_by: {model, calibration: {input: SHA-256}, device, threads,
                                            versions, ranks where there were several}; calibration_outliers: positions
                                            of calibration images that were left out; synthesis: {method, images,
                                            steps, layers, loss}, where these images were made (made_by has it, too);
                                            loading: {unpacking, portable}, bytes that unpacking weights takes at the
                                            peak of loading, and would take in the form that every onnxruntime loads;
                                            evaluation_images_seen_in_calibration: how many, and
                                            evaluated_on_calibration_images: whether all; of `validate`: {command:
                                            "validate", evaluation, batch_size, preprocess: {option: value} of those
                                            given, renamed: {name: the quantized file's}, confidence}
    images          number of evaluated images
                    (a file that onnxruntime cannot run, since its target is another runtime, is not measured: its
                    accuracy, quantized_float, quantized_simulated, deviation and kernels are null, parts is empty, and
                    images are those that the simulation saw)
    accuracy        {float, quantized, simulated, float_where_simulated, quantized_where_simulated}, each {images, top1,
                    top5} of the first output; null without labels; the last three are of the images that the simulation
                    saw
    top1_changes    {images, lost, gained}  of images where top-1 of FP32 and of the quantized model differ: lost are
                                            those that FP32 has right; null without labels
    outputs         one per graph output: {name, quantized_float, quantized_simulated, simulated_float, deviation,
                    quantized_name}, each of the three {images, argmax_agreement, chance_agreement, sqnr_db,
                    relative_error, median_relative_error, max_relative_error, counted, positions, argmax_error,
                    sqnr_error_db}, see Agreement, errors are null without a signal; quantized_name: null where it is
                    the same;
                    deviation: of onnxruntime from the simulation, as `pdq_export.validate.deviation` measures it;
                    where nodes behind the quantized part stay as they are (see floating), the tensors that they
                    read stand for the outputs that they compute
    kernels         {integer: {op_type: count}, floating: {op_type: count}, floating_nodes: [name],
                    between_pairs: {op_type: count}}, see KernelCount
    saturated_layers  [name]                layers whose integer kernels saturate on this processor, where that makes
                                            the quantized model's results differ from the simulation's
    session_config  {key: value}            session options without which onnxruntime does not load the quantized file
    latency         {batch, threads, float_ms, quantized_ms, ratio, clips, clip_ratio, load, cores, note}, see
                                            LatencyPair: what onnxruntime takes for a batch in
                                            the user's model and in the quantized one, here; each
                                            ratio {median, low, high}; note: what is lost, and
                                            what to do;
                                            null where the file is for another runtime, or was not timed
    min_onnxruntime version                 the lowest onnxruntime that computes what the quantized file says, as
                                            measured; null where the file is for other runtimes
    layers          [{...}]                 one per weighted layer: {node, op_type, weight_shape,
                                            weight_bits, input_bits, activation_bits, excluded, scope,
                                            weight_bytes}; null bits stand for float; weight_bytes: of the written
                                            file, what is there for the layer's weight alone; scope: path of the
                                            module, where it is known
    floating        [{node, op_type, reason}]  what computes in float, as `pdq_export.commands.inspect` tells it
    parts           [{output, name, quantized_float}]  of outputs that are several things in one tensor, such as boxes
                                            and scores; name: the part as a slice of the output
    predictions     {output: [tensor]}      where the prediction difference of an output was measured: its scores, or
                                            the last tensors before it that can be differentiated
    uncompared      {output: reason}        outputs that cannot be compared with FP32's
    not_finite      [output]                those of them with NaN, or infinity where FP32's have none
    metrics         [{name, float_value, quantized_value}]  numbers of --metric
    search          {budget, measure, chosen, uniform, frontier, uniforms, note, steps, tensors}  of --bits auto, else
                    null: chosen and uniform, the best equal bits within the budget or null, are {name, size, loss,
                    avg_weight, avg_activation, gap, bit_ops} with the bytes that were expected and the sum of what
                    single tensors were estimated to do to the prediction, in what measure says, without what blocks
                    that learn make up for; gap: the share of the loss (with --max-drop as the goal, of the size) by
                    which others could be less, 0 where none are; bit_ops: over those of 8/8, null where no budget
                    counts them; frontier: the least loss at other sizes; uniforms: equal bits for all layers; note: why
                    activations have the bits that they have;
                    steps: with --max-drop as the goal every calibration that was made for it, {size, loss, avg_weight,
                    drop, error, images, held, bounds}: top-1 lost on images held back, in points, or where bounds is
                    true no more than the share of images whose class changes, which bounds it;
                    tensors: {measure, estimate, images, widths, groups}, as `pdq_export.report.sensitivity` has them,
                    with the bits that were found as planned_bits
    gates           [{option, value, limit, unit, error, p_value, passed, told}]  see `pdq_export.gates.Gate`
    loss            what is lost, in words, where that is more than a point (`pdq_export.report.loss`), else null
    remedies        [{line, bytes, share, why}]  what to try next then, what helps most for its cost first; line:
                                            options of quantize beside those that were given, or words; bytes: by how
                                            much the file grows; share: of the error of the output that it takes away,
                                            as far as measurements of layers tell
    warnings        [text]                  what the run has warned of
    changed         {images, changed, samples: [{number, float_class, quantized_class, label, margin}], names: {class:
                    name}}  of class scores in the first output, see `ChangedPredictions`; null where there are none
    blocks          [{block, steps, losses, seconds: {phase: seconds}}]  how each was calibrated, see `BlockCourse`
    weights         [{layer, bits, qmin, qmax, elements, integers, floats}]  see `WeightHistogram`; each histogram
                    {start, width, counts}; empty where no page was asked for
    layer_errors    {...}                   what `pdq-export compare` writes, of the first images; null where no page
                                            was asked for, or the files could not be compared so

A key that this version does not know is no error to its reader, and one that is missing is as if nothing were known of
it: the version is for changes of what there is.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pdq_export
from pdq_export.advice import Remedy
from pdq_export.gates import Gate, Limits, judge
from pdq_export.report.bits import SearchReport
from pdq_export.report.course import BlockCourse
from pdq_export.report.latency import is_slower, latency_note
from pdq_export.report.layers import LayerReport
from pdq_export.validate import Accuracy, KernelCount, LatencyPair, Measurements, MetricValue, Top1Changes
from pdq_export.validate.changes import ChangedPredictions
from pdq_export.validate.histograms import WeightHistogram

SCHEMA_VERSION = 1
_PIECE = 2**24  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model: its name, the SHA-256 of its bytes and their number."""

    name: str
    sha256: str
    size: int

    @classmethod
    def of(cls, name: str, *contents: bytes) -> "ModelInfo":
        """From the bytes of the file, and of its external data where there is any."""
        return cls._of(name, contents)

    @classmethod
    def of_files(cls, path: Path, *others: Path) -> "ModelInfo":
        """From a file and those of its external data, read piece by piece. Raises OSError."""

        def pieces() -> Iterator[bytes]:
            for file in (path, *others):
                with file.open("rb") as stream:
                    while piece := stream.read(_PIECE):
                        yield piece

        return cls._of(path.name, pieces())

    @classmethod
    def _of(cls, name: str, pieces: Iterable[bytes]) -> "ModelInfo":
        digest, size = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
        return cls(name=name, sha256=digest.hexdigest(), size=size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Measurements):
    """A run and what was measured; the schema is in the module's docstring."""

    model: ModelInfo
    quantized: ModelInfo
    saturated_layers: tuple[str, ...] = ()
    latency: LatencyPair | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = ()
    floating: tuple[Mapping[str, Any], ...] = ()
    predictions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    metrics: tuple[MetricValue, ...] = ()
    gates: tuple[Gate, ...] = ()
    loss: str | None = None
    remedies: tuple[Remedy, ...] = ()
    warnings: tuple[str, ...] = ()
    changed: ChangedPredictions | None = None
    blocks: tuple[BlockCourse, ...] = ()
    weights: tuple[WeightHistogram, ...] = ()
    layer_errors: LayerReport | None = None
    search: SearchReport | None = None

    @classmethod
    def of(cls, measured: Measurements, **run: Any) -> Self:
        """The report on what was measured; ``run``: the fields that say on what, and how that was made."""
        fields = {field.name: getattr(measured, field.name) for field in dataclasses.fields(Measurements)}
        return cls(**fields, versions=versions(), **run)

    @property
    def size_ratio(self) -> float:
        """Size of the quantized model over that of the user's."""
        return self.quantized.size / max(self.model.size, 1)

    @property
    def latency_note(self) -> str | None:
        """Where bits cost time in onnxruntime and gain nothing, and what to do; None where they do not.

        Of a run whose options are known; those of a file that was only validated are not.
        """
        return (
            None
            if self.latency is None or self.settings.get("command") == "validate"
            else latency_note(self.latency, self.settings, self.kernels, self.layers)
        )

    @property
    def is_slower(self) -> bool:
        """Whether onnxruntime takes longer for the quantized model than for the user's."""
        return is_slower(self.latency)

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """The gates that failed."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def judged(self, limits: Limits) -> Self:
        """The same with the verdict of every gate that is asked for. Raises OptionError as `judge` does."""
        ratio = None if self.latency is None else self.latency.ratio
        gates = judge(limits, self, size_ratio=self.size_ratio, latency=ratio, metrics=self.metrics)
        return dataclasses.replace(self, gates=gates)

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, as the schema has it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": dict(self.versions),
            "model": dataclasses.asdict(self.model),
            "quantized": dataclasses.asdict(self.quantized),
            "size_ratio": self.size_ratio,
            "settings": dict(self.settings),
            "images": self.images,
            "accuracy": {
                "float": _plain(self.float_accuracy),
                "quantized": _plain(self.quantized_accuracy),
                "simulated": _plain(self.simulated_accuracy),
                "float_where_simulated": _plain(self.float_where_simulated),
                "quantized_where_simulated": _plain(self.quantized_where_simulated),
            },
            "top1_changes": _plain(self.top1_changes),
            "outputs": [dataclasses.asdict(output) for output in self.outputs],
            "kernels": None if self.kernels is None else _plain_kernels(self.kernels),
            "saturated_layers": list(self.saturated_layers),
            "session_config": dict(self.session_config),
            "latency": None
            if self.latency is None
            else {**dataclasses.asdict(self.latency), "note": self.latency_note},
            "min_onnxruntime": self.min_onnxruntime,
            "layers": [dict(layer) for layer in self.layers],
            "floating": [dict(node) for node in self.floating],
            "parts": [dataclasses.asdict(part) for part in self.parts],
            "predictions": {output: list(tensors) for output, tensors in self.predictions.items()},
            "uncompared": dict(self.uncompared),
            "not_finite": list(self.not_finite),
            "metrics": [dataclasses.asdict(value) for value in self.metrics],
            "gates": [dataclasses.asdict(gate) for gate in self.gates],
            "loss": self.loss,
            "remedies": [dataclasses.asdict(remedy) for remedy in self.remedies],
            "warnings": list(self.warnings),
            "changed": None if self.changed is None else dataclasses.asdict(self.changed),
            "blocks": [dataclasses.asdict(block) for block in self.blocks],
            "weights": [dataclasses.asdict(weight) for weight in self.weights],
            "layer_errors": None if self.layer_errors is None else self.layer_errors.to_dict(),
            "search": None if self.search is None else dataclasses.asdict(self.search),
        }

    def to_json(self) -> str:
        """The report as JSON text. Raises ValueError for NaN and infinity, which JSON does not know."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace").decode()  # a name's byte that is no UTF-8 becomes JSON's escape


def versions() -> dict[str, str]:
    """Versions of what decides the result; onnxruntime has several distributions, so it is asked itself."""
    import onnxruntime

    return {"pdq-export": pdq_export.__version__, "onnxruntime": str(onnxruntime.__version__), **_installed()}


@functools.cache  # every run asks twice, and each answer is a file to read
def _installed() -> dict[str, str]:
    found = {}
    for package in ("numpy", "onnx", "scipy", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plain(measured: Accuracy | Top1Changes | None) -> dict[str, Any] | None:
    return None if measured is None else dataclasses.asdict(measured)


def _plain_kernels(kernels: KernelCount) -> dict[str, Any]:
    return {
        "integer": dict(kernels.integer),
        "floating": dict(kernels.floating),
        "floating_nodes": list(kernels.floating_nodes),
        "between_pairs": dict(kernels.between_pairs),
    }
