"""Samples whose predicted class changes."""

import re

from pdq_export.report.html.blocks import Block, Card, Cards, Cell, Section, Table, Text, number
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source
from pdq_export.validate.changes import ChangedPredictions, ChangedSample

_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_HEAD = ("number", "label", "FP32", "quantized", "FP32's margin")


def changed(source: Source, plots: Plots) -> Section | None:
    """Pictures where there are some, else a table."""
    found = None if source.report is None else source.report.changed
    if found is None:
        return None
    share = f"{found.changed:,} of {found.images:,} images have another class than in FP32"
    shown = f"; the {len(found.samples)} of which FP32 is surest" if found.changed > len(found.samples) else ""
    blocks: list[Block] = [Text(text=f"{share}{shown}{', those first' if found.samples else ''}.", tone="muted")]
    pictures = {number: uri for number, uri in source.pictures.items() if _PICTURE.fullmatch(uri)}
    if pictures:
        blocks.append(Cards(cards=[_card(found, one, pictures.get(one.number, "")) for one in found.samples]))
    elif found.samples:
        rows = [_row(found, one) for one in found.samples]
        blocks.append(Table(head=_HEAD, rows=rows, numeric=(0, 4), searched="Filter samples"))
    return Section(anchor="changed", title="Predictions that change", blocks=blocks)


def _card(found: ChangedPredictions, one: ChangedSample, picture: str) -> Card:
    label = "" if one.label is None else f"label: {_name(found, one.label)}"
    lost, gained = (one.label is not None and one.label == of for of in (one.float_class, one.quantized_class))
    return Card(
        title=f"{_name(found, one.float_class)} → {_name(found, one.quantized_class)}",
        lines=[line for line in (label, f"number {one.number}, margin {one.margin:.2g}") if line],
        picture=picture,
        tone="bad" if lost else "good" if gained else "",
    )


def _row(found: ChangedPredictions, one: ChangedSample) -> list[Cell]:
    label = "" if one.label is None else _name(found, one.label)
    classes = (_name(found, one.float_class), _name(found, one.quantized_class))
    return [number(one.number, "{:d}"), *(Cell(text=text) for text in (label, *classes)), number(one.margin, "{:.3g}")]


def _name(found: ChangedPredictions, of: int) -> str:
    name = found.names.get(str(of))
    return f"{of} ({name})" if name else str(of)
