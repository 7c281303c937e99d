"""What was asked."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pdq_export.report.html.blocks import Block, Cell, Fold, Section, Table, Text, cells
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source

_FIRST = ("bits", "target", "method", "preset", "weights", "calibration", "evaluation", "device", "seed", "family")
_UNSET, _WORDS = ("", "None", "()", "{}", "[]"), {"True": "yes", "False": "no"}
_ELSEWHERE = ("asked", "made_by", "command")


def asked(source: Source, plots: Plots) -> Section | None:
    """The model, the data and the options."""
    if source.run is not None:
        return Section(anchor="asked", title="What was asked", blocks=list(_of_run(source.run.parts)))
    if source.report is None:
        return None
    return Section(anchor="asked", title="What was asked", blocks=list(_blocks(source)))


def _blocks(source: Source) -> Iterator[Block]:
    report, settings = source.report, source.settings
    assert report is not None
    names = [name for name in _FIRST if settings.get(name) not in (None, "", [], {})]
    rows = [
        [Cell(text="FP32 model"), Cell(text=report.model.name or "in memory")],
        [Cell(text="– SHA-256"), Cell(text=report.model.sha256, tone="code")],
        [Cell(text="quantized model"), Cell(text=report.quantized.name or "in memory")],
        [Cell(text="– SHA-256"), Cell(text=report.quantized.sha256, tone="code")],
        *(
            cells(name.replace("_", " "), source.bits if name == "bits" else value_text(settings[name]))
            for name in names
        ),
    ]
    given = settings.get("asked")
    if isinstance(given, Mapping):
        rows += [
            cells(f"{name.replace('_', ' ')}, as given", value_text(v))
            for name, v in given.items()
            if name not in names
        ]
    yield _table(rows)
    others = [name for name in settings if name not in (*names, *_ELSEWHERE)]
    if others:
        settled = [cells(name, value_text(settings[name])) for name in sorted(others)]
        yield Fold(summary=f"All else as it was settled ({len(settled)})", blocks=[_table(settled, "Filter options")])


def _of_run(parts: Mapping[str, str]) -> Iterator[Block]:
    """What a run depends on, as its key has it: texts of Python values."""
    unset = [name.replace("_", " ") for name, value in parts.items() if value in _UNSET]
    rows = []
    for name, value in parts.items():
        if value in _UNSET:
            continue
        is_hash = re.fullmatch(r"[0-9a-f]{64}", value) is not None
        told = f"{name.replace('_', ' ')}{', SHA-256' if is_hash else ''}"
        rows.append([Cell(text=told), Cell(text=_WORDS.get(value, value), tone="code" if is_hash else "")])
    yield _table(rows, "Filter what the run depends on")
    if unset:
        yield Text(text=f"Not given: {', '.join(unset)}.", tone="muted")


def _table(rows: list[list[Cell]], searched: str = "") -> Table:
    return Table(head=("what", "value"), rows=rows, searched=searched if len(rows) > 10 else "")


def value_text(value: Any) -> str:
    """A setting in words."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {value_text(inner)}" for name, inner in list(value.items())[:50]) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value[:50])) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
