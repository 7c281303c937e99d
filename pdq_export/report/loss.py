"""Whether a file loses enough for its user to be told what to try next.

More than a point of top-1 where there are labels. Without them a point is not measured: then it is an argmax that is
FP32's on less than 95 % of the images, since a point goes with 93 to 96 % where both were measured
(benchmarks/RESULTS.md, "A point of top-1"). Where there are no classes it is an error of more than a tenth of FP32's
output, 20 dB, on half of the images: a point goes with 13 dB, but an argmax forgives what changes no class, and numbers
that are used as they are have no such margin.
"""

from collections.abc import Mapping
from typing import Any

from pdq_export.advice import Remedy
from pdq_export.errors import counted, percent
from pdq_export.report.report import Report

_POINTS = 1.0
_AGREEMENT = 0.95
_ERROR = 0.1


def find_loss(report: Report) -> str | None:
    """What a file loses, in words, with what can be chance; None where that is no more than a point."""
    if (changes := report.top1_changes) is not None:
        if changes.drop <= _POINTS:
            return None
        return f"top-1 falls by {changes.drop:.2f} points, ± {changes.error:.2f} on {counted(changes.images, 'image')}"
    several = len(report.outputs) > 1
    for output in report.outputs:
        found, where = output.against_float, f"output {output.name!r}: " if several else ""
        if found.argmax_agreement is not None:
            if found.argmax_agreement < _AGREEMENT:
                told = f"argmax agrees with FP32's {percent(found.argmax_agreement, 1)} of the time"
                return (
                    f"{where}{told}, on {counted(found.images, 'image')}, and a point of accuracy goes with about 95 %"
                )
        elif (error := found.median_relative_error) is not None and error > _ERROR:
            return f"{where}the error is {percent(error, 0)} of FP32's output, or more, on half of the images"
    return None


def saturation_remedy(report: Report, settings: Mapping[str, Any]) -> Remedy | None:
    """What helps where kernels saturate on this processor and the simulation, which does not, is another.

    ``settings``: of the run that made the file.
    """
    if not report.saturated_layers or settings.get("reduce_range", True):
        return None
    here, seen = report.quantized_where_simulated, report.simulated_accuracy
    would = ""
    if here is not None and seen is not None:
        saturated, exact = (percent(found.top1, 2) for found in (here, seen))
        would = f"; of {counted(seen.images, 'image')} top-1 is {saturated} here, and {exact} where nothing saturates"
    why = f"integer kernels saturate on this processor, and not on those with VNNI{would}"
    return Remedy(line="--reduce-range", why=why)


def saturation_costs(report: Report) -> bool:
    """Whether the simulation, where nothing saturates, is better than the file; also where neither is known."""
    here, seen = report.quantized_where_simulated, report.simulated_accuracy
    if here is not None and seen is not None:
        return seen.top1 > here.top1
    for output in report.outputs:
        file, simulated = output.quantized_float, output.simulated_float
        if file is None or simulated is None:
            return True
        for name in ("argmax_agreement", "sqnr_db"):
            one, other = getattr(file, name), getattr(simulated, name)
            if one is not None and other is not None and other > one:
                return True
    return not report.outputs
