"""What a page is made of: sections of a few kinds of blocks, plain data that the template shows and escapes."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

Tone = Literal["", "good", "bad", "muted", "code", "command", "nowrap", "words"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = ""
    kind: str = dataclasses.field(default="text", init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
    """A list of paragraphs."""

    items: Sequence[str]
    kind: str = dataclasses.field(default="items", init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command line to copy, or several."""

    text: str
    kind: str = dataclasses.field(default="command", init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """``value``: what a column is sorted by where it is of numbers; None stands last. ``bits``, and ``heat`` from 0 to
    9, colour it.
    """

    text: str
    value: float | None = None
    tone: Tone = ""
    bits: int | None = None
    heat: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """``numeric``: the columns, by position, whose cells have values. ``searched``: what is typed in to filter rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[int] = ()
    searched: str = ""
    kind: str = dataclasses.field(default="table", init=False)


Colour = Literal["float", "quantized", "bad", "line"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """``svg``: of `plots`, and of nobody else: it is not escaped. ``label``: for those who do not see it.

    ``legend``: names of what is drawn in which colour.
    """

    svg: str
    label: str
    caption: str = ""
    legend: Sequence[tuple[str, Colour]] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures side by side where there is room."""

    figures: Sequence[Figure]
    kind: str = dataclasses.field(default="figures", init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A small figure or picture with a title and lines below it; ``picture``: a data URI of letters,
    digits and + / = alone, which is not escaped.
    """

    title: str
    lines: Sequence[str] = ()
    svg: str = ""
    picture: str = ""
    tone: Tone = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cards:
    """Cards side by side; ``searched``: as of a table."""

    cards: Sequence[Card]
    searched: str = ""
    kind: str = dataclasses.field(default="cards", init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that are shown when they are asked for."""

    summary: str
    blocks: Sequence["Block"]
    kind: str = dataclasses.field(default="fold", init=False)


Block = Text | Items | Command | Table | Figures | Cards | Fold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """``anchor``: its place in the page's address, of letters and dashes."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure at the top of the page."""

    name: str
    value: str
    note: str = ""
    tone: Tone = ""


def number(value: float | None, form: str = "{:.1f}", tone: Tone = "") -> Cell:
    """A cell with a number; empty for None."""
    return Cell(text="" if value is None else form.format(value), value=value, tone=tone)


def cells(*texts: str) -> list[Cell]:
    """Cells of texts alone."""
    return [Cell(text=text) for text in texts]
