"""Versions of what decides the result."""

from collections.abc import Mapping

from pdq_export.report.html.blocks import Section, Table, cells
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source


def versions(source: Source, plots: Plots) -> Section | None:
    """Those that measured, and those that the file was made with where they differ."""
    if source.report is None:
        return None
    measured = source.report.versions
    made_by = source.settings.get("made_by")
    made = made_by.get("versions") if isinstance(made_by, Mapping) else None
    rows = [cells(name, version) for name, version in measured.items()]
    if isinstance(made, Mapping):
        rows += [cells(f"{name}, when it was made", str(v)) for name, v in made.items() if measured.get(name) != v]
    if source.report.min_onnxruntime:
        rows.append(cells("lowest onnxruntime for the file", source.report.min_onnxruntime))
    rows += [cells(f"session option {key}", value) for key, value in source.report.session_config.items()]
    return Section(anchor="versions", title="Versions", blocks=[Table(head=("what", "version"), rows=rows)])
