"""`compare`: where the error of a quantized file arises, layer by layer, beside the FP32 file that it was made of."""

import dataclasses
from pathlib import Path

import onnx

from pdq_export.commands.pairs import File, Model, choose_batch, first_batch, read_samples
from pdq_export.commands.progress import ProgressCallback, Tell
from pdq_export.data import DataSource, check_exists
from pdq_export.errors import ModelError, OptionError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.graph.load import in_memory, read_model
from pdq_export.graph.passes import constants
from pdq_export.report.layers import LayerReport
from pdq_export.validate import BATCH_SIZE, Batch, open_pair
from pdq_export.validate.effects import measure_effects
from pdq_export.validate.layers import LayerSessions, measure_layers, open_layers
from pdq_export.validate.matching import match_tensors
from pdq_export.validate.qoperator import as_pairs
from pdq_export.validate.weights import weight_levels

SAMPLES = 64
_HELD = 96_000_000  # bytes of a batch's tensors; there are three sets of them


@tells_of_memory(calibrates=False)
def compare_models(
    model: Model,
    quantized: Model,
    *,
    data: DataSource,
    samples: int = SAMPLES,
    batch_size: int | None = None,
    progress: ProgressCallback | None = None,
) -> LayerReport:
    """Compare every tensor that a quantized ONNX file and the FP32 file that it was made of both have, worst first.

    Whoever made the files, of pairs (QDQ) or integer operators (QOperator): tensors are matched by name, or through the
    nodes around them. ``data``: as ``eval`` of `quantize`, of which the first ``samples`` are taken. ``batch_size``: by
    default what memory and the files allow. Raises PdqError for anything that can be wrong with files, data or options.
    """
    tell = Tell(progress)
    if type(samples) is not int or samples < 1:
        raise OptionError(f"--samples {samples!r}: expected a whole number, 1 or more")
    check_exists(data)
    tell.stage("load")
    files = [File.of(given, which) for given, which in ((model, "model"), (quantized, "quantized"))]
    pair = open_pair(*(file.content for file in files))
    first, second = _graph(model), as_pairs(_graph(quantized))
    matching = match_tensors(first, second, pair.renamed)
    sessions = open_layers(
        first, second, matching, {value.name: pair.renamed.get(value.name, value.name) for value in pair.inputs}
    )
    tell.stage("read")
    found = read_samples(data, None, pair, choose_batch(pair, batch_size), tell, most=samples)
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
    )


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
