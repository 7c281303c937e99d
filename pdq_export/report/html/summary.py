"""What a page says first: what it is of, and the figures that most people come for."""

from collections.abc import Iterator

from pdq_export.errors import percent
from pdq_export.report.html.blocks import Tile
from pdq_export.report.html.source import Source
from pdq_export.report.report import Report
from pdq_export.report.table import format_sizes, images_of


def title(source: Source) -> tuple[str, str]:
    """The page's title, and a line below it."""
    if (run := source.run) is not None:
        done = f"{len(run.blocks)} of {run.count} blocks are kept"
        return f"{run.model}, {run.bits}: a run that is kept", f"{done}; begun {run.created}"
    if (found := source.sensitivity) is not None:
        of = f"on {images_of(found.images, found.calibration)}"
        return f"{found.model.name or 'model'}: what bits of single tensors do", of
    if (report := source.report) is None:
        errors = source.errors
        assert errors is not None
        return f"{errors.quantized or 'quantized model'}, layer by layer", f"beside {errors.model or 'its FP32 model'}"
    bits = "" if source.validates else f", {source.bits}"
    on = images_of(report.images, source.settings.get("evaluation", ""))
    return (
        f"{report.quantized.name or 'quantized model'}{bits}",
        f"beside {report.model.name or 'its FP32 model'}, on {on}",
    )


def tiles(source: Source) -> list[Tile]:
    """The figures at the top."""
    found = [] if source.report is None else list(_of_report(source.report))
    if source.warnings:
        found.append(Tile(name="warnings", value=str(len(source.warnings)), note="at the end of the page", tone="bad"))
    return found


def _of_report(report: Report) -> Iterator[Tile]:
    if report.gates:
        failed = len(report.failed_gates)
        value = f"{failed} of {len(report.gates)} failed" if failed else f"all {len(report.gates)} passed"
        yield Tile(name="gates", value=value, tone="bad" if failed else "good")
    accuracy = report.quantized_accuracy if report.kernels is not None else report.simulated_accuracy
    if accuracy is not None:
        changes = report.top1_changes
        drop = "" if changes is None or not changes.images else f"{0 - changes.drop:+.2f} ± {changes.error:.2f} points"
        yield Tile(name="top-1", value=percent(accuracy.top1, 2), note=drop)
    elif report.outputs:
        against = report.outputs[0].against_float
        if against.argmax_agreement is not None:
            yield Tile(name="classes as FP32's", value=percent(against.argmax_agreement, 2))
        elif against.sqnr_db is not None:
            yield Tile(name="SQNR against FP32", value=f"{against.sqnr_db:.1f} dB")
    before, after = format_sizes(report.model.size, report.quantized.size)
    yield Tile(name="size", value=f"× {report.size_ratio:.3f}", note=f"{after}, from {before}")
    if (latency := report.latency) is not None:
        note = f"{latency.quantized_ms:.3g} ms, from {latency.float_ms:.3g} ms at batch {latency.batch}"
        yield Tile(name="time", value=f"× {latency.ratio.median:.2f}", note=note)
    if report.kernels is not None:
        integer, floating = (sum(counts.values()) for counts in (report.kernels.integer, report.kernels.floating))
        yield Tile(name="layers as integers", value=f"{integer} of {integer + floating}")
