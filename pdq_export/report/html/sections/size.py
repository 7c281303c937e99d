"""Size and latency."""

from pdq_export.report.html.blocks import Block, Figure, Figures, Section, Text
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source
from pdq_export.report.table import format_sizes


def size(source: Source, plots: Plots) -> Section | None:
    """A bar for each file, and where they were timed what a batch takes."""
    report = source.report
    if report is None:
        return None
    names = ("FP32", "quantized")
    sizes, texts = (report.model.size, report.quantized.size), format_sizes(report.model.size, report.quantized.size)
    unit, bytes_ = ("MB", 1e6) if texts[0].endswith("MB") else ("kB", 1e3)
    rows = [(name, size / bytes_, text) for name, size, text in zip(names, sizes, texts, strict=True)]
    told = f"size: {texts[0]} in FP32, {texts[1]} quantized"
    figures = [Figure(svg=plots.bars(rows, unit), label=told, caption=f"Size of the file: × {report.size_ratio:.3f}.")]
    blocks: list[Block] = [Figures(figures=figures)]
    if (latency := report.latency) is None:
        blocks.append(Text(text="Latency was not measured.", tone="muted"))
        return Section(anchor="size", title="Size and latency", blocks=blocks)
    times = (latency.float_ms, latency.quantized_ms)
    rows = [(name, time, f"{time:.3g} ms") for name, time in zip(names, times, strict=True)]
    ratio = latency.ratio
    caption = (
        f"onnxruntime on this machine, batch {latency.batch}, {latency.threads} thread{'s' * (latency.threads != 1)}: "
        f"× {ratio.median:.2f}, quartiles {ratio.low:.2f} to {ratio.high:.2f}."
    )
    told = f"latency: {times[0]:.3g} ms in FP32, {times[1]:.3g} ms quantized"
    figures.append(Figure(svg=plots.bars(rows, "ms, median"), label=told, caption=caption))
    if report.latency_note is not None:
        blocks.append(Text(text=report.latency_note))
    return Section(anchor="size", title="Size and latency", blocks=blocks)
