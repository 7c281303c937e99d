"""What came of the runs of a sweep, and the table of them as CSV, Markdown, JSON and a page.

Schema, version 1::

    schema_version  1
    runs            one a run, in the order of the sweep: {key, model, varied, change, report, error,
                    calibration_seconds, calibration_cpu_seconds, figures}, see `Finished`; report: as
                    `pdq_export.report.report` has it, null where error says why there is none; figures: those of the
                    table, {float_top1, top1, agreement, sqnr_db, size, size_ratio, latency_ratio, gates_failed,
                    deviation, warnings, seconds}, of the first output; deviation: of onnxruntime from
                    the simulation, in the output where it is largest, null where it is no more than rounding; warnings:
                    their number
"""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pdq_export.errors import percent
from pdq_export.report.markdown import markdown_table
from pdq_export.validate.parity import NOTICED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A run of a sweep that has ended: its ``report``, as the schema of reports has it, or the ``error``.

    ``varied`` and ``change``: see `pdq_export.config.sweep.SweepRun`. Seconds up to the export: of the clock, and of
    the CPU, all threads together; of a run that was interrupted the sum of its attempts, as far as they were noted.
    """

    key: str
    model: str
    varied: Mapping[str, Any]
    change: str
    report: Mapping[str, Any] | None = None
    error: str | None = None
    calibration_seconds: float | None = None
    calibration_cpu_seconds: float | None = None

    def __str__(self) -> str:
        values = (f"{name} {_written(value)}" for name, value in self.varied.items())
        return ", ".join([Path(self.model).name, *values, *filter(None, [self.change])])

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the table, by column; None where one was not measured."""
        report = self.report or {}
        accuracy, outputs = report.get("accuracy", {}), report.get("outputs") or [{}]
        measured = report.get("kernels") is not None
        found = accuracy.get("quantized" if measured else "simulated") or {}
        compared = outputs[0].get("quantized_float" if measured else "simulated_float") or {}
        return {
            "float_top1": (accuracy.get("float") or {}).get("top1"),
            "top1": found.get("top1"),
            "agreement": compared.get("argmax_agreement"),
            "sqnr_db": compared.get("sqnr_db"),
            "size": (report.get("quantized") or {}).get("size"),
            "size_ratio": report.get("size_ratio"),
            "latency_ratio": ((report.get("latency") or {}).get("ratio") or {}).get("median"),
            "gates_failed": sum(not gate["passed"] for gate in report.get("gates", []))
            if report.get("gates")
            else None,
            "deviation": self._deviation,
            "warnings": len(report.get("warnings") or ()) or None,
            "seconds": self.calibration_seconds,
        }

    @property
    def _deviation(self) -> float | None:
        """How far onnxruntime is off the simulation, as on processors whose kernels saturate; None where it is not."""
        found = [output.get("deviation") or 0.0 for output in (self.report or {}).get("outputs") or []]
        return largest if (largest := max(found, default=0.0)) > NOTICED else None

    @property
    def warnings(self) -> list[str]:
        """What the run has warned of."""
        return list((self.report or {}).get("warnings") or ())

    @property
    def failed_gates(self) -> list[str]:
        """The gates that failed, by what was asked."""
        gates = (self.report or {}).get("gates", [])
        return [f"{gate['option']} {gate['told']}" for gate in gates if not gate["passed"]]


_SHARES = ("float_top1", "top1", "agreement", "deviation")
_HEADS = {
    "float_top1": "FP32 top-1",
    "top1": "top-1",
    "agreement": "agrees",
    "sqnr_db": "SQNR dB",
    "size": "bytes",
    "size_ratio": "× size",
    "latency_ratio": "× latency",
    "gates_failed": "gates failed",
    "deviation": "off simulation",
    "warnings": "warnings",
    "seconds": "s",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepTable:
    """The runs of a sweep that have ended, in its order; ``count``: of all that it has, None where they are these."""

    runs: tuple[Finished, ...]
    count: int | None = None

    @property
    def failed(self) -> tuple[Finished, ...]:
        """Those without a result."""
        return tuple(run for run in self.runs if run.error is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """What changes from run to run: the model, options, and the name of a change."""
        names = dict.fromkeys(name for run in self.runs for name in run.varied)
        return ("model", *names, *(["change"] if any(run.change for run in self.runs) else []))

    def to_csv(self) -> str:
        """One line a run: what it is, all figures in full, the SHA-256 of its file, and why there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.columns, *_HEADS, "sha256", "key", "error"])
        for run in self.runs:
            sha256 = (run.report or {}).get("quantized", {}).get("sha256")
            writer.writerow([*self._named(run), *run.figures.values(), sha256, run.key, run.error])
        return text.getvalue()

    def to_markdown(self) -> str:
        """The same for people; columns in which no run has a figure are left out."""
        return "\n".join(markdown_table(*self.cells())) + "\n" if self.runs else ""

    def to_html(self) -> bytes:
        """The same as a page for a browser, with a plot of what files take and give for each model."""
        from pdq_export.report.html.sweep import to_html  # with jinja2, and matplotlib behind it

        return to_html(self)

    def to_json(self) -> str:
        """The runs with their whole reports, as the schema has it."""
        content = [{**dataclasses.asdict(run), "figures": run.figures} for run in self.runs]
        return json.dumps({"schema_version": 1, "runs": content}, indent=2) + "\n"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows, as text."""
        shown = self.shown
        failed = ["failed"] if self.failed else []
        rows = []
        for run in self.runs:
            figures = (_told(name, run.figures[name]) for name in shown)
            rows.append([*self._named(run), *figures, *([run.error or ""] if failed else [])])
        return [*self.columns, *(_HEADS[name] for name in shown), *failed], rows

    @property
    def shown(self) -> tuple[str, ...]:
        """The figures that any run has, by name: after the `columns` those of `cells`."""
        return tuple(name for name in _HEADS if any(run.figures[name] is not None for run in self.runs))

    def _named(self, run: Finished) -> Iterator[str]:
        for name in self.columns:
            values = {**run.varied, "model": run.model, "change": run.change}
            yield _written(values.get(name))


def _written(value: Any) -> str:
    """The value of an option as a file has it, without quotes and brackets; nothing where it was not given."""
    if isinstance(value, tuple | list):
        return ", ".join(map(_written, value)) or "none"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _told(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in _SHARES:
        return percent(value, 2)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if name.endswith("_ratio") else f"{value:.1f}"
