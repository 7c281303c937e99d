"""What stays in float, and why."""

from pdq_export.report.html.blocks import Block, Section, Table, Text, cells
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source


def floating(source: Source, plots: Plots) -> Section | None:
    """As the plan tells it, and as onnxruntime runs the file."""
    report = source.report
    if report is None:
        return None
    blocks: list[Block] = []
    if report.floating:
        fields = ("node", "op_type", "reason")
        rows = [cells(*(str(node.get(field, "")) for field in fields)) for node in report.floating]
        blocks.append(Table(head=("node", "operator", "reason"), rows=rows, searched="Filter nodes"))
    elif not source.validates:
        blocks.append(Text(text="Nothing: everything between inputs and outputs is computed in integers."))
    if report.kernels is not None and report.kernels.floating_nodes:
        rows = [cells(name) for name in report.kernels.floating_nodes]
        blocks.append(Text(text="Layers that onnxruntime runs in float:"))
        blocks.append(Table(head=("layer",), rows=rows))
    elif report.kernels is not None and source.validates:
        blocks.append(Text(text="No layer runs in float in onnxruntime."))
    if report.kernels is not None and report.kernels.between_pairs:
        told = ", ".join(f"{name} × {count}" for name, count in report.kernels.between_pairs.items())
        blocks.append(Text(text=f"In float between two pairs: {told}."))
    return Section(anchor="floating", title="What stays in float", blocks=blocks) if blocks else None
