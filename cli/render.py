"""The table at the end of a run, and names that are safe to print."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from pdq_export.errors import printable

if TYPE_CHECKING:
    from pdq_export.advice import Remedy
    from pdq_export.report import Report
    from pdq_export.report.bits import SearchReport

_NARROW_ACTIVATIONS = "1.31"  # what export/runtimes.py gives for activations below 8 bits in types of their own


REMEDIES = 6  # lines of what to try next; a report has them all


def report_table(report: "Report", *, bits: str) -> Table:
    """FP32 beside the quantized model: accuracy, agreement, kernels, size."""
    from pdq_export.report.table import report_rows

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("FP32", bits, ""):
        table.add_column(name, justify="right")
    for row in report_rows(report):
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def gate_lines(report: "Report") -> Iterable[str]:
    """A line for each gate, with its verdict."""
    return (f"{'passed' if gate.passed else 'FAILED'}: {gate}" for gate in report.gates)


def remedy_lines(remedies: Sequence["Remedy"], *, most: int, loss: str | None = None) -> Iterable[str]:
    """What to try next, ``most`` lines of it; ``loss``: what for."""
    if not remedies:
        return
    what = "what to try next, what helps most for its cost first (options of quantize, beside those that were given):"
    yield f"{loss}; {what}" if loss else what
    yield from (f"  {remedy}" for remedy in remedies[:most])


def session_note(config: Mapping[str, str]) -> str:
    """Which session options onnxruntime needs to load a file."""
    options = ", ".join(f"{key}={value}" for key, value in config.items())
    return f"onnxruntime loads it with the session option {options} (SessionOptions.add_session_config_entry)"


def version_note(min_onnxruntime: str) -> str:
    """Which versions of onnxruntime run a file, and what those before need, where it is to be had by an option."""
    text = f"onnxruntime {min_onnxruntime} and newer compute what it says"
    if min_onnxruntime != _NARROW_ACTIVATIONS:
        return text
    return f"{text}; older ones do with SessionOptions.enable_mem_reuse = False alone, and are wrong or crash without"


def operations_line(operations: float) -> str:
    """The bit operations of a plan, over those of 8/8."""
    return f"bit operations: × {operations:.3f} of those of 8/8"


def search_lines(search: "SearchReport") -> Iterable[str]:
    """What --bits auto has found, from a report or an inspection."""
    found = search.chosen
    average = f"{found.avg_weight:.2f}"
    if found.avg_activation is not None:
        average += f"/{found.avg_activation:.2f}"
    yield f"bits within {search.budget}: {average} on average{_beside_equal(search)}"
    for step in search.steps:
        yield (
            f"about {step.size:,} bytes: {step.points} points lost, ± {step.error:.2f} on {step.images:,} images "
            f"held back, {'within' if step.held else 'not surely within'} what may be lost"
        )
    if search.note:
        yield search.note


def _beside_equal(search: "SearchReport") -> str:
    """How bits compare with equal ones for all layers that keep the same; nothing where there is no fair comparison."""
    found, equal = search.chosen, search.equal
    if equal is None:
        return "" if search.steps else "; no equal bits keep the budget"
    if equal.loss <= 0:
        return ""
    best = f"the best equal bits {search.within} ({equal.size:,} bytes)"
    if equal.loss == found.loss:
        return f", equal for all layers, {equal.name}: none that differ promise less"
    return f", × {found.loss / equal.loss:.2f} of the estimated loss of {equal.name}, {best}"
