"""What to try next where a file loses much: how it was made, and which of its layers lose."""

import dataclasses
import logging
import math
from collections.abc import Callable

from pdq_export.advice import HowMade, Remedy
from pdq_export.commands.compare import compare_layers
from pdq_export.commands.pairs import Model
from pdq_export.commands.progress import Tell
from pdq_export.data import Data
from pdq_export.errors import PdqError, counted, percent
from pdq_export.report import Report, find_loss, saturation_costs, saturation_remedy
from pdq_export.report.bits import Estimate, SearchReport
from pdq_export.report.layers import LayerReport
from pdq_export.report.remedies import find_remedies

logger = logging.getLogger(__name__)

_MUCH_LESS, _LESS = 0.5, 0.9
_AGAIN = "other bits for all layers, which are estimated to lose"
_SPARE = 1.01  # of an estimated size
IMAGES = 16  # that layers are compared on after a loss: a fraction of the time that measuring the file takes


def compare_few(
    original: Model, quantized: Model, samples: Data, made: HowMade, tell: Tell, batch: int | None
) -> LayerReport:
    """The layers of a file on the first of these samples, or on the ``batch`` that the files fix.

    Raises PdqError as `compare_layers` does.
    """
    count = max(IMAGES, batch or 1)
    return compare_layers(original, quantized, data=samples.head(count), samples=count, made=made, tell=tell)


def with_next_steps(report: Report, made: HowMade, compare: Callable[[], LayerReport] | None) -> Report:
    """The report with what to try next, where the file loses more than a point; else as it is.

    ``compare``: compares the layers of a file that onnxruntime runs, on few images, and knows the same ``made``. It is
    called after such a loss alone, and where it fails the report is without what it would have said.
    """
    loss = find_loss(report)
    if loss is None:
        return report
    layers = report.layer_errors  # where a page is asked for, they are compared anyhow
    if layers is None and compare is not None:
        try:
            layers = compare()
        except PdqError as error:
            logger.warning("layers are not compared, and what to try next says nothing of them: %s", error)
    found = find_remedies((), {}, made=made, size=report.quantized.size).next if layers is None else layers.remedies
    saturated = saturation_remedy(report, made.settings)
    remedies = [*([] if saturated is None else [saturated]), *found]
    return dataclasses.replace(
        report,
        loss=loss if layers is None else f"{loss}; layers compared on {counted(layers.images, 'image')}",
        remedies=tuple(sorted(remedies, key=lambda one: one is saturated and not saturation_costs(report))),
    )


def larger_budget(
    search: SearchReport, most: int | None, size: int, raised: Estimate | None = None
) -> tuple[Remedy, ...]:
    """A budget for which bits that are found again lose much less, by the estimates; none where none do.

    ``most``: bytes that were allowed, None where none were asked for. ``size``: of the file. ``raised``: what is
    found within a larger budget of another kind, where it was one.
    """
    if most is None and search.steps:  # found by accuracy: the size is what a budget can be given of
        most = size
    if most is None:
        if raised is None or not raised.loss < _LESS * search.chosen.loss:
            return ()
        why = f"{_AGAIN} {percent(1 - raised.loss / search.chosen.loss, 0)} less"
        return (Remedy(line=raised.name, bytes=raised.size - search.chosen.size, why=why),)
    larger = [one for one in search.frontier if one.size > most and one.loss < search.chosen.loss]
    enough = [one for one in larger if one.loss <= _MUCH_LESS * search.chosen.loss] or larger[-1:]
    if not enough:
        return ()
    one = min(enough, key=lambda estimate: estimate.size)
    asked = math.ceil(one.size * _SPARE)
    why = f"{_AGAIN} {percent(1 - one.loss / search.chosen.loss, 0)} less"
    return (Remedy(line=f"--max-size {asked}", bytes=asked - size, why=why),)
