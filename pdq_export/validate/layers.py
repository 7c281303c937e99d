"""Where the error of a quantized file arises: every tensor that stands for one of the FP32 file, beside that.

For each of them the error is the sum of two parts: the layer's own, which is there though the layer's input is the FP32
network's, and what is handed on, which the layer makes of the error of its input. A layer begins behind the quantizers
of its inputs and ends behind that of its output.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.errors import ModelError
from pdq_export.validate.histograms import BINS, Bins, Histogram
from pdq_export.validate.matching import Match, Matching, Quantizer
from pdq_export.validate.runtime import WITHOUT_FUSION, Batch, Session, batch_size, with_outputs

Array = NDArray[np.float32]
_GIVEN = "fp32:"  # what inputs that are the FP32 file's tensors begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorError:
    """How a tensor of the quantized file differs from the FP32 file's, ``match`` says which.

    Signal-to-noise ratios, 10 log10(sum ref^2 / sum (ref - x)^2), None without an error: ``sqnr_db`` in the quantized
    network; ``own_db`` where the layer has the FP32 network's input; ``handed_on_db`` of what the layer makes of the
    error of its input; ``quantizer_db`` of the tensor's quantizer on the FP32 tensor, None without one; ``output_db``
    of the FP32 network's first output where this tensor alone has its own error, on the first batch, if it
    ``reaches_output``. ``cosine``: of both in the quantized network. ``least``, ``largest``: of the FP32 tensor.
    ``clipped``: the share of its numbers that the quantizer cuts off. ``levels_used``: of the quantizer's, in the
    quantized network. ``histogram``: of the FP32 tensor, None without a quantizer.
    """

    match: Match
    sqnr_db: float | None
    own_db: float | None
    handed_on_db: float | None
    quantizer_db: float | None
    cosine: float
    least: float
    largest: float
    clipped: float | None = None
    levels_used: int | None = None
    output_db: float | None = None
    reaches_output: bool = False
    histogram: Histogram | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """``tensors``: in the order of the graph; ``unmatched``: names of the FP32 file's tensors with another shape."""

    images: int
    tensors: tuple[TensorError, ...]
    unmatched: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSessions:
    """The FP32 file, the quantized file and its single layers, each in onnxruntime, with all tensors as outputs.

    The quantized ones compute in float what their pairs of QuantizeLinear and DequantizeLinear say.
    """

    original: Session
    whole: Session
    single: Session
    given: tuple[str, ...]
    matches: tuple[Match, ...]
    output: str

    def run(self, batch: Batch) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        """By FP32 name: tensors of the FP32 file, of the quantized file, and of its layers given FP32 inputs."""
        reference = self.original.run_by_name(batch)
        whole = self.whole.run_by_name(batch)
        own = batch if isinstance(batch, tuple) else (batch,)
        single = self.single.run_by_name((*own, *(reference[name] for name in self.given)))
        names = {match.quantized: match.name for match in self.matches}
        by_name = [{name: found[key] for key, name in names.items()} for found in (whole, single)]
        return reference, by_name[0], by_name[1]


def open_layers(
    original: onnx.ModelProto, quantized: onnx.ModelProto, matching: Matching, inputs: Mapping[str, str]
) -> LayerSessions:
    """Load both files for `measure_layers`. ``quantized``: in pairs. ``inputs``: of both, the second's by the first's.

    Raises ValidationError where onnxruntime does not load them, ModelError where nothing is matched.
    """
    if not matching.matches:
        raise ModelError(
            "no tensor of the quantized file stands for one of the FP32 file, neither by name nor through nodes of the "
            "same name; expected a file that was quantized of it; give the FP32 file that it was made of"
        )
    names = [match.quantized for match in matching.matches]
    content = with_outputs(to_bytes(quantized), names)
    cut, given = _cut(quantized, matching.cuts)
    reference = Session(with_outputs(to_bytes(original), [match.name for match in matching.matches]))
    whole, single = (Session(one, config=WITHOUT_FUSION) for one in (content, with_outputs(to_bytes(cut), names)))
    first, second = tuple(inputs), tuple(inputs.values())
    reference.rename(first, {match.name: match.name for match in matching.matches})
    whole.rename(second, {name: name for name in names})
    single.rename((*second, *(_GIVEN + name for name in given)), {name: name for name in names})
    return LayerSessions(
        original=reference,
        whole=whole,
        single=single,
        given=given,
        matches=matching.matches,
        output=original.graph.output[0].name,
    )


def measure_layers(
    sessions: LayerSessions,
    batches: Iterable[Batch],
    *,
    progress: Callable[[int], None] | None = None,
) -> LayerErrors:
    """Run both files over the samples, one batch at a time, and measure the error of every matched tensor.

    ``progress`` is told how many samples are done. Raises ValidationError where a file does not run.
    """
    meters = {match.name: _Meter(match) for match in sessions.matches}
    images = 0
    for batch in batches:
        reference, whole, single = sessions.run(batch)
        for name, meter in meters.items():
            meter.update(reference[name], whole[name], single[name])
        images += batch_size(batch)
        if progress is not None:
            progress(images)
    return LayerErrors(
        images=images,
        tensors=tuple(meter.result() for meter in meters.values() if meter.fits),
        unmatched=tuple(name for name, meter in meters.items() if not meter.fits),
    )


def _cut(model: onnx.ModelProto, cuts: Mapping[str, str]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy in which nodes read the FP32 file's tensors, as further inputs, for those that stand for them."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    given: dict[str, None] = {}
    for node in made.graph.node:
        for position, name in enumerate(node.input):
            if name in cuts:
                node.input[position] = _GIVEN + cuts[name]
                given[cuts[name]] = None
    float_type = onnx.TensorProto.FLOAT
    made.graph.input.extend(onnx.helper.make_tensor_value_info(_GIVEN + name, float_type, None) for name in given)
    return made, tuple(given)


def to_bytes(model: onnx.ModelProto) -> bytes:
    """The file's content."""
    return bytes(model.SerializeToString())


class _Meter:
    """Adds up a `TensorError` over batches."""

    def __init__(self, match: Match) -> None:
        self._match, self._sums = match, np.zeros(7)
        self._least, self._largest = math.inf, -math.inf
        self._count = self._clipped = 0
        quantizer = match.quantizer
        self._used = None if quantizer is None else np.zeros(quantizer.levels, bool)
        self._bins = None if quantizer is None else Bins.around(*quantizer.range, quantizer.levels)
        self._histogram = np.zeros(BINS, np.int64)
        self.fits = True

    def update(self, reference: Array, whole: Array, single: Array) -> None:
        self.fits = self.fits and reference.shape == whole.shape == single.shape and reference.size > 0
        if not self.fits:
            return
        ref, all_of_it, own = (x.astype(np.float64).reshape(-1) for x in (reference, whole, single))
        errors = (all_of_it - ref, own - ref, all_of_it - own)
        squares = [float(error @ error) for error in errors]
        self._sums[:6] += np.array([ref @ ref, *squares, ref @ all_of_it, all_of_it @ all_of_it])
        self._least, self._largest = min(self._least, float(ref.min())), max(self._largest, float(ref.max()))
        self._count += ref.size
        if (quantizer := self._match.quantizer) is not None:
            self._add_integers(quantizer, reference, whole)

    def _add_integers(self, quantizer: Quantizer, reference: Array, whole: Array) -> None:
        assert self._used is not None
        assert self._bins is not None
        near = reference.astype(np.float32, copy=False)
        error = (quantizer.dequantize(quantizer.integers(near)) - near).astype(np.float64).reshape(-1)
        self._sums[6] += error @ error
        low, high = quantizer.range
        half = quantizer.scale / 2
        self._clipped += int(((near < low - half) | (near > high + half)).sum())
        self._histogram += self._bins.count(near)
        self._used[(quantizer.integers(whole) - quantizer.qmin).astype(np.int64).reshape(-1)] = True

    def result(self) -> TensorError:
        signal, whole, own, handed_on, product, energy, quantizing = map(float, self._sums)
        quantized = self._used is not None
        norms = math.sqrt(signal * energy)
        return TensorError(
            match=self._match,
            sqnr_db=decibels(signal, whole),
            own_db=decibels(signal, own),
            handed_on_db=decibels(signal, handed_on),
            quantizer_db=decibels(signal, quantizing) if quantized else None,
            cosine=product / norms if norms else float(signal == energy),
            least=self._least,
            largest=self._largest,
            clipped=self._clipped / max(self._count, 1) if quantized else None,
            levels_used=int(self._used.sum()) if self._used is not None else None,
            histogram=None if self._bins is None else self._bins.histogram(self._histogram),
        )


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise), None without noise; without a signal it is as little as can be."""
    if not noise:
        return None
    tiny = np.finfo(np.float64).tiny
    return 10 * (math.log10(max(signal, tiny)) - math.log10(noise))
