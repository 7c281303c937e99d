"""The verdict of the gates."""

from pdq_export.report.html.blocks import Cell, Section, Table, Text, number
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source


def gates(source: Source, plots: Plots) -> Section | None:
    """Each gate with its limit, and what was found."""
    report = source.report
    if report is None:
        return None
    if not report.gates:
        text = "No gates were asked for: --max-drop, --min-agreement, --min-sqnr, --max-size-ratio and others set them."
        return Section(anchor="gates", title="Gates", blocks=[Text(text=text, tone="muted")])
    rows = [
        [
            Cell(text="passed" if gate.passed else "failed", tone="good" if gate.passed else "bad"),
            Cell(text=gate.asked, tone="command"),
            Cell(text=gate.told, tone="words"),
            number(gate.value, "{:.4g}"),
            number(gate.limit, "{:.4g}"),
            number(gate.error, "± {:.2g}"),
            Cell(text=gate.unit),
        ]
        for gate in report.gates
    ]
    head = ("verdict", "gate", "in words", "found", "limit", "error", "unit")
    return Section(anchor="gates", title="Gates", blocks=[Table(head=head, rows=rows, numeric=(3, 4, 5))])
