"""`compare`: where the error of a quantized file arises, layer by layer, beside the FP32 file that it was made of."""

import dataclasses
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.advice import HowMade
from pdq_export.commands.convert import convert
from pdq_export.commands.known import growth_of, read_equalized, read_how_made
from pdq_export.commands.pairs import File, Model, choose_batch, first_batch, read_samples, warn_of_pair
from pdq_export.commands.progress import ProgressCallback, Tell
from pdq_export.commands.settle import asked_preprocess, settle
from pdq_export.config.config import Config
from pdq_export.config.option import COMPARE
from pdq_export.config.signature import takes_options
from pdq_export.data import DataSource, Preprocess, check_exists
from pdq_export.errors import ModelError, OptionError, PdqError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.graph.load import in_memory, read_model
from pdq_export.graph.passes import constants
from pdq_export.report.layers import LayerReport
from pdq_export.validate import BATCH_SIZE, Batch, Pair, is_qonnx, open_pair
from pdq_export.validate.effects import measure_effects
from pdq_export.validate.layers import LayerSessions, measure_layers, open_layers
from pdq_export.validate.matching import Matching, match_tensors
from pdq_export.validate.qoperator import as_pairs
from pdq_export.validate.rescaled import find_scaled, taken_back
from pdq_export.validate.weights import weight_levels

SAMPLES = 64
_HELD = 96_000_000  # bytes of a batch's tensors; there are three sets of them


@tells_of_memory(calibrates=False)
@takes_options(COMPARE)
def compare_models(
    model: Model,
    quantized: Model,
    *,
    data: DataSource,
    samples: int = SAMPLES,
    batch_size: int | None = None,
    config: Config | str | Path | None = None,
    progress: ProgressCallback | None = None,
    **fields: Any,
) -> LayerReport:
    """Compare every tensor that a quantized ONNX file and the FP32 file that it was made of both have, worst first.

    Whoever made the files, of pairs (QDQ) or integer operators (QOperator), and of QONNX where pdq-export did: tensors
    are matched by name, or through the nodes around them. ``data``: as ``eval`` of `quantize`, of which the first
    ``samples`` are taken. ``batch_size``: by default what memory and the files allow. With ``config`` options, that say
    how images are read, come from a `Config` or the path of a TOML file; ``fields`` win over it. Raises PdqError for
    anything that can be wrong with files, data or options.
    """
    preprocess = asked_preprocess(settle(config, fields, command=COMPARE))
    return compare_layers(
        model,
        quantized,
        data=data,
        samples=samples,
        batch_size=batch_size,
        preprocess=preprocess,
        tell=Tell(progress),
        warns=True,
    )


def compare_layers(
    model: Model,
    quantized: Model,
    *,
    data: DataSource,
    samples: int,
    tell: Tell,
    batch_size: int | None = None,
    preprocess: Preprocess | None = None,
    made: HowMade | None = None,
    warns: bool = False,
) -> LayerReport:
    """What `compare_models` does, for other commands; ``made``: what they know of the file's making.

    ``warns``: whether users hear that the files are no pair.
    """
    if type(samples) is not int or samples < 1:
        raise OptionError(f"--samples {samples!r}: expected a whole number, 1 or more")
    check_exists(data)
    tell.stage("load")
    first, written = _graph(model), _graph(quantized)
    if is_qonnx(first):
        raise ModelError(f"{_name(model) or 'model'}: has Quant nodes of QONNX; expected the FP32 file")
    if warns:
        warn_of_pair(first, written, (_name(model) or "model", _name(quantized) or "quantized"))
    runs = _without_quant(quantized, written)
    pair = open_pair(*(File.of(given, which).content for given, which in ((model, "model"), (runs, "quantized"))))
    second = as_pairs(written if runs is quantized else _graph(runs))
    layers = _Layers(original=first, quantized=second, pair=pair, equalized=read_equalized(written))
    tell.stage("read")
    found = read_samples(data, False, pair, choose_batch(pair, batch_size), tell, most=samples, preprocess=preprocess)
    matching, sessions = layers.without_scaled(first_batch(found, pair.batch or 1))
    size = pair.batch or batch_size or _fitting(sessions, first_batch(found, 1))
    tell.stage("compare")
    errors = measure_layers(
        sessions, found.batches(size), progress=lambda done: tell.images("compare", done, len(found))
    )
    tell.stage("rank")
    effects = measure_effects(
        first,
        sessions,
        first_batch(found, size),
        progress=lambda done: tell.images("rank", done, len(sessions.matches)),
    )
    tensors = tuple(
        dataclasses.replace(one, output_db=effects.get(one.match.name), reaches_output=one.match.name in effects)
        for one in errors.tensors
    )
    return LayerReport.of(
        dataclasses.replace(errors, tensors=tensors),
        weight_levels(second, matching),
        evaluation=str(found),
        model=_name(model),
        quantized=_name(quantized),
        made=made or read_how_made(written),
        growth=growth_of(written),
        size=written.ByteSize(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layers:
    """Both files, the second in pairs, as they are matched and opened layer by layer.

    ``equalized``: the tensors of which the second says that equalization has scaled them.
    """

    original: onnx.ModelProto
    quantized: onnx.ModelProto
    pair: Pair
    equalized: frozenset[str] = frozenset()

    def open(self, changed: Container[str] = ()) -> tuple[Matching, LayerSessions]:
        """Raises ModelError where nothing matches."""
        renamed = self.pair.renamed
        matching = match_tensors(self.original, self.quantized, renamed, changed=changed)
        inputs = {value.name: renamed.get(value.name, value.name) for value in self.pair.inputs}
        return matching, open_layers(self.original, self.quantized, matching, inputs)

    def without_scaled(self, sample: Batch) -> tuple[Matching, LayerSessions]:
        """The same without tensors that equalization has scaled, as the file says, or else as ``sample`` tells."""
        if self.equalized:
            return self.open(self.equalized)
        apart, sessions = self.open()
        reference, whole, own = sessions.run(sample)
        names = find_scaled(reference, whole) - {value.name for value in self.original.graph.output}
        if not names:
            return apart, sessions
        together, others = self.open(names)
        reference_together, _, own_together = others.run(sample)
        scaled = taken_back(names, apart, _errors(reference, own), together, _errors(reference_together, own_together))
        return self.open(scaled) if scaled else (apart, sessions)


def _errors(reference: Mapping[str, NDArray[np.float32]], own: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """The sum of squares of each difference; infinite where shapes differ."""
    return {
        name: float(np.square(own[name].astype(np.float64) - x).sum()) if own[name].shape == x.shape else math.inf
        for name, x in reference.items()
    }


def _without_quant(quantized: Model, structure: onnx.ModelProto) -> Model:
    """The file with the same integers that onnxruntime runs: of QONNX that of the target ort.

    Raises ModelError where pdq-export did not write it.
    """
    if not is_qonnx(structure):
        return quantized
    try:
        return convert(quantized, "ort")
    except PdqError as error:
        raise ModelError(
            f"{_name(quantized) or 'quantized'}: has Quant nodes of QONNX, which are compared as what --target ort "
            f"writes of them; expected a file that pdq-export wrote: {error}"
        ) from error


def _graph(given: Model) -> onnx.ModelProto:
    """All of it in memory, without Constant nodes. Raises ModelError where it is too large for one message."""
    made = onnx.ModelProto()
    made.CopyFrom(read_model(given) if isinstance(given, str | Path) else in_memory(given))
    try:
        made.ByteSize()
    except Exception as error:
        raise ModelError(f"{_name(given)}: over 2 GB; expected less; compare a smaller network") from error
    return constants.run(made)


def _name(given: Model) -> str:
    return str(given) if isinstance(given, str | Path) else given.graph.name


def _fitting(sessions: LayerSessions, sample: Batch) -> int:
    """How many samples a batch may have so that its tensors take little memory."""
    reference, _, _ = sessions.run(sample)
    held = sum(array.nbytes for array in reference.values())
    return max(1, min(BATCH_SIZE, _HELD // max(held, 1)))
