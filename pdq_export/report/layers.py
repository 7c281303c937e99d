"""Where the error of a quantized file arises, tensor by tensor, worst first, with what would help, and its JSON schema.

``{"schema_version": 1, "images", "evaluation", "model", "quantized", "tensors": [...], "left_out": [...],
"weights": [...], "remedies": [...]}``, each tensor as `LayerRow` has it: ``tensor`` and ``node`` of the FP32 file,
``op_type``,
``layers``; in dB, null without an error, ``output_db`` (of the FP32 network's first output, where this tensor alone has
its own error), ``own_db`` (the layer has the FP32 network's input), ``handed_on_db`` (of what the layer makes of the
error of its input), ``sqnr_db`` (both, in the quantized network), ``quantizer_db`` (of the tensor's quantizer alone);
``cosine``; ``range`` of the FP32 tensor and
``quantizer_range``; ``clipped``, the share beyond the latter; ``levels_used`` of ``levels``; ``weight_bits``,
``weight_levels_used``; ``remedy``, what would help that tensor, of ``line``, ``bytes``, ``share`` and ``why`` as
`pdq_export.advice.Remedy` has it; and
``histogram`` of the FP32 tensor, null without a quantizer: ``start``, ``width`` and ``counts`` of its bins, 64 of them
over the quantizer's range. Each of the ``weights`` as `WeightHistogram` has it, on the axis of its integers.
``remedies``: what to try next, what helps most for its cost first.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pdq_export.advice import HowMade, Remedy
from pdq_export.report.remedies import Growth, find_remedies
from pdq_export.validate.histograms import Histogram, WeightHistogram
from pdq_export.validate.layers import LayerErrors, TensorError
from pdq_export.validate.weights import WeightLevels

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A tensor that both files have; the module's docstring says what its fields are."""

    tensor: str
    node: str
    op_type: str
    layers: tuple[str, ...]
    output_db: float | None
    own_db: float | None
    handed_on_db: float | None
    sqnr_db: float | None
    quantizer_db: float | None
    cosine: float
    range: tuple[float, float]
    quantizer_range: tuple[float, float] | None
    clipped: float | None
    levels_used: int | None
    levels: int | None
    weight_bits: int | None
    weight_levels_used: int | None
    remedy: Remedy | None
    histogram: Histogram | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What `compare_models` has found: ``tensors``, worst first; ``left_out``: those whose shapes differ; ``weights``:
    of layers, in the order of the file. ``remedies``: what to try next, in the order in which it can be given together.
    """

    images: int
    evaluation: str
    model: str
    quantized: str
    tensors: tuple[LayerRow, ...]
    left_out: tuple[str, ...] = ()
    weights: tuple[WeightHistogram, ...] = ()  # in the order of the quantized file
    remedies: tuple[Remedy, ...] = ()

    @classmethod
    def of(
        cls,
        errors: LayerErrors,
        weights: Sequence[WeightLevels],
        *,
        evaluation: str,
        model: str = "",
        quantized: str = "",
        made: HowMade | None = None,
        growth: Growth | None = None,
        size: int | None = None,
    ) -> "LayerReport":
        """Compose it, and say what would help; ``made``, ``growth`` and ``size`` as in `find_remedies`."""
        by_layer = {one.layer: one for one in weights}
        worst_first = sorted(errors.tensors, key=badness)
        remedies = find_remedies(worst_first, by_layer, made=made, growth=growth, size=size)
        return cls(
            images=errors.images,
            evaluation=evaluation,
            model=model,
            quantized=quantized,
            tensors=tuple(_row(one, by_layer, remedies.by_tensor.get(one.match.name)) for one in worst_first),
            left_out=errors.unmatched,
            weights=tuple(one.histogram for one in weights),
            remedies=remedies.next,
        )

    def to_json(self) -> str:
        """The report as JSON with a newline at the end."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, as the schema has it."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def badness(one: TensorError) -> tuple[bool, float, float]:
    """The key that sorts the worst first: by what its own error does to the output, or, without one, by that error."""
    own, output = (math.inf if value is None else value for value in (one.own_db, one.output_db))
    return not one.reaches_output, output, own


def _row(one: TensorError, weights: Mapping[str, WeightLevels], remedy: Remedy | None) -> LayerRow:
    match, quantizer = one.match, one.match.quantizer
    own = [weights[name] for name in match.layers if name in weights]
    return LayerRow(
        tensor=match.name,
        node=match.node,
        op_type=match.op_type,
        layers=match.layers,
        output_db=one.output_db,
        own_db=one.own_db,
        handed_on_db=one.handed_on_db,
        sqnr_db=one.sqnr_db,
        quantizer_db=one.quantizer_db,
        cosine=one.cosine,
        range=(one.least, one.largest),
        quantizer_range=None if quantizer is None else quantizer.range,
        clipped=one.clipped,
        levels_used=one.levels_used,
        levels=None if quantizer is None else quantizer.levels,
        weight_bits=min((weight.bits for weight in own), default=None),
        weight_levels_used=min((weight.levels for weight in own), default=None),
        remedy=remedy,
        histogram=one.histogram,
    )
