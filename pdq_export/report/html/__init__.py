"""A report as one page for a browser: it works from a file, asks nobody for anything, and shows names as they are."""

from collections.abc import Mapping

from pdq_export.report.html.source import KeptRun, Source
from pdq_export.report.layers import LayerReport
from pdq_export.report.report import Report
from pdq_export.report.sensitivity import WrittenSensitivity

__all__ = ["KeptRun", "Source", "to_html"]


def to_html(
    told: Report | LayerReport | WrittenSensitivity | KeptRun, *, pictures: Mapping[int, str] | None = None
) -> bytes:
    """The page; the same for the same arguments and versions of libraries.

    ``pictures``: data URIs of samples whose class changes, by their number.
    """
    from pdq_export.report.html.render import render  # with jinja2, and matplotlib behind it

    if isinstance(told, Report):
        return render(Source(report=told, pictures=pictures or {}))
    if isinstance(told, WrittenSensitivity):
        return render(Source(sensitivity=told))
    return render(Source(run=told) if isinstance(told, KeptRun) else Source(layer_errors=told))
