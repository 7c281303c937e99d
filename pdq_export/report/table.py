"""The rows of a report, for whoever shows them: on a terminal, in Markdown."""

import re

from pdq_export.errors import counted, percent
from pdq_export.report.report import Report
from pdq_export.validate import Accuracy, Agreement, LatencyPair

Row = tuple[str, str, str, str]
_RULED_DB = 3.0


def report_rows(report: Report) -> list[Row]:
    """Rows of the table: what, FP32, quantized, difference."""
    measured = report.kernels is not None  # else the file is for another runtime, and its simulation was measured
    stands_for = "" if measured else ", simulated"
    rows = _accuracy(report.float_accuracy, report.quantized_accuracy)
    if not measured:
        rows = _accuracy(report.float_accuracy, report.simulated_accuracy, f" accuracy{stands_for}")
    if rows and report.saturated_layers:
        seen = report.simulated_accuracy
        some = f" of {counted(seen.images, 'image')}" if seen is not None and seen.images < report.images else ""
        rows += _accuracy(report.float_where_simulated, seen, f"{some or ' accuracy'}, simulated")
    several = len(report.outputs) > 1
    for output in report.outputs:
        name = f" ({output.name})" if several else ""
        against_float, against_simulation = output.against_float, output.quantized_simulated
        rows.append((f"argmax agrees with FP32{stands_for}{name}", "", _percent(against_float.argmax_agreement), ""))
        rows.append((f"SQNR against FP32{stands_for}{name}", "", _ratio(against_float), ""))
        if (usual := against_float.median_sqnr_db) is not None and _differs(against_float.sqnr_db, usual):
            rows.append((f"SQNR against FP32, median image{stands_for}{name}", "", f"{usual:.1f} dB", ""))
        if against_simulation is not None:
            agreement = _percent(against_simulation.argmax_agreement)
            rows.append((f"argmax agrees with simulation{name}", "", agreement, ""))
        rows.append((f"relative error against FP32{stands_for}{name}", "", _share(against_float), ""))
    for value in report.metrics:
        rows.append((value.name, f"{value.float_value:.6g}", f"{value.quantized_value:.6g}", f"{0 - value.drop:+.6g}"))
    for part in report.parts:
        rows.append((f"SQNR against FP32 ({part.name})", "", _ratio(part.quantized_float), ""))
    if report.min_onnxruntime:
        rows.append(("lowest version of onnxruntime", "", report.min_onnxruntime, ""))
    if report.kernels is not None:
        integer, floating = (sum(counts.values()) for counts in (report.kernels.integer, report.kernels.floating))
        rows.append(("layers run as integers in onnxruntime", "", f"{integer} of {integer + floating}", ""))
    if (latency := report.latency) is not None:
        rows.append(_latency_row(latency))
    sizes = format_sizes(report.model.size, report.quantized.size)
    rows.append(("size", *sizes, f"× {report.size_ratio:.3f}"))
    return [row for row in rows if row[2]]


def images_of(images: int, evaluation: str) -> str:
    """So many images of data, which may tell their number themselves, as ``SOURCE: N images SHAPE``."""
    source = re.sub(rf": {images} (image|sample)s? ", ": ", evaluation)
    return counted(images, "image") + (f" of {source}" if source else "")


def _accuracy(floating: Accuracy | None, quantized: Accuracy | None, what: str = " accuracy") -> list[Row]:
    if floating is None or quantized is None:
        return []
    rows = [_accuracy_row(f"top-1{what}", floating.top1, quantized.top1)]
    if floating.top5 is not None and quantized.top5 is not None:
        rows.append(_accuracy_row(f"top-5{what}", floating.top5, quantized.top5))
    return rows


def _accuracy_row(name: str, floating: float, quantized: float) -> Row:
    return name, _percent(floating), _percent(quantized), f"{100 * (quantized - floating):+.2f} points"


def _latency_row(latency: LatencyPair) -> Row:
    threads = "one thread" if latency.threads == 1 else f"{latency.threads} threads"
    name = f"latency at batch {latency.batch}, {threads}"
    ratio = latency.ratio
    spread = f"× {ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
    return name, _milliseconds(latency.float_ms), _milliseconds(latency.quantized_ms), spread


def _milliseconds(time: float) -> str:
    return f"{time:#.3g} ms" if time < 100 else f"{time:,.0f} ms"


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share, 2)


def _differs(whole: float | None, median: float) -> bool:
    """Whether single images rule the ratio over all of them."""
    return whole is not None and abs(whole - median) > _RULED_DB


def _ratio(agreement: Agreement) -> str:
    if agreement.sqnr_db is not None:
        return f"{agreement.sqnr_db:.1f} dB"
    return "equal" if agreement.has_signal else "no signal"


def _share(agreement: Agreement) -> str:
    return "" if agreement.relative_error is None else percent(agreement.relative_error)


def format_sizes(floating: int, quantized: int) -> tuple[str, str]:
    """Both in one unit."""
    form = "{:,.1f} MB" if floating >= 10_000_000 else "{:,.0f} kB"
    unit = 1e6 if floating >= 10_000_000 else 1e3
    return form.format(floating / unit), form.format(quantized / unit)
