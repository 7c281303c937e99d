"""What was warned of."""

from pdq_export.report.html.blocks import Items, Section
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source


def told(source: Source, plots: Plots) -> Section | None:
    """Every warning, in the order in which they came."""
    if not source.warnings:
        return None
    return Section(anchor="warnings", title="Warnings", blocks=[Items(items=source.warnings)])
