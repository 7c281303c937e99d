"""Plots as SVG for a page: no colours of their own but those of the page, text as text, the same for the same numbers.

matplotlib draws them; colours stand for the page's, by name, so that one picture serves a light and a dark page.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

# By name of the page's custom property; what matplotlib writes of them is taken for nothing else.
_COLOURS = {
    name: f"#0{n}0{n}0{n}"
    for n, name in enumerate(("fg", "muted", "line", "grid", "float", "quantized", "bad", "good"), 1)
}
FG, MUTED, LINE, GRID, FLOAT, QUANTIZED, BAD, GOOD = _COLOURS.values()
_WIDTH = 340  # px: what a phone shows without scrolling
_ROW = 30
_LABELS = 96
_FONT = 11
_LAYER = 14  # px for each layer, where there is one mark a layer
_CARD = (220, 80)
_NAME = (24, 11)  # px of a name such as 4/8
_LETTER = 6.5  # px at most, on average
_BESIDE = 5
_NAMED = 3  # of points that lie together
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pdq-export",
    "text.parse_math": False,
    "text.usetex": False,
    "path.simplify": False,
    "font.size": _FONT,
    "axes.unicode_minus": False,
    "axes.formatter.use_mathtext": False,
}


class Plots:
    """Draws the plots of one page; to be used within `drawing`."""

    def __init__(self) -> None:
        self._count = 0
        self._card: tuple[Figure, Axes] | None = None

    def intervals(self, rows: Sequence[tuple[str, float, float, float]], unit: str) -> str:
        """A point and its bounds a row: name, value, low, high; ``unit``: of the axis."""
        figure, axes = self._rows([name for name, *_ in rows])
        for place, (_, value, low, high) in enumerate(rows):
            colour = FLOAT if not place else QUANTIZED
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([value], [place], "o", color=colour, markersize=7)
        low, high = min(row[2] for row in rows), max(row[3] for row in rows)
        margin = max((high - low) * 0.15, 0.05)
        axes.set_xlim(low - margin, high + margin)
        axes.grid(axis="x", color=LINE, linewidth=0.7)
        axes.set_xlabel(unit, color=MUTED)
        return self._svg(figure)

    def bars(self, rows: Sequence[tuple[str, float, str]], unit: str) -> str:
        """A bar a row, from 0: name, value, what is written beside it."""
        figure, axes = self._rows([name for name, *_ in rows])
        most = max(value for _, value, _ in rows) or 1.0
        for place, (_, value, text) in enumerate(rows):
            axes.barh([place], [value], height=0.6, color=FLOAT if not place else QUANTIZED)
            axes.text(value + most * 0.02, place, text, va="center", color=FG)
        axes.set_xlim(0, most * 1.45)
        axes.set_xlabel(unit, color=MUTED)
        return self._svg(figure)

    def marks(self, series: Sequence[tuple[str, str, Sequence[float | None]]], unit: str, *, log: bool = False) -> str:
        """A mark for each layer, from left to right: name, colour and values of each series."""
        count = max(len(values) for _, _, values in series)
        width = max(_WIDTH, 60 + _LAYER * count)
        figure, axes = self._figure(width, 220, left=48, bottom=34, top=22)
        for number, (name, colour, values) in enumerate(series):
            known = [(place, value) for place, value in enumerate(values, 1) if value is not None]
            axes.plot(
                [place for place, _ in known],
                [value for _, value in known],
                "osD^"[number % 4],
                color=colour,
                markersize=5,
                label=name,
            )
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_in_bytes)
        axes.set_xlim(0, count + 1)
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.set_xlabel("position in the table below", color=MUTED, loc="left")
        axes.text(0, 1.03, unit, transform=axes.transAxes, color=MUTED)
        axes.minorticks_off()
        return self._svg(figure)

    def trade_off(
        self,
        series: Sequence[tuple[str, str, Sequence[tuple[float, float, str]]]],
        unit: str = "estimated loss",
        *,
        log: bool = True,
    ) -> str:
        """What files lose or give against bytes: colour, matplotlib's style, and bytes, value and name of each point.

        Bytes are logarithmic, values with ``log``; ``unit``: of the values.
        """
        figure, axes = self._figure(_WIDTH, 240, left=56, bottom=34, top=22)
        for colour, style, points in series:
            axes.plot(
                [size for size, _, _ in points], [loss for _, loss, _ in points], style, color=colour, markersize=6
            )
        axes.set_xscale("log")
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter(_in_bytes)
        axes.margins(x=0.15)
        axes.set_xticks(_few([size for _, _, points in series for size, _, _ in points]))
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        self._name_points(axes, [point for _, _, points in series for point in points if point[2]])
        axes.set_xlabel("size of the file", color=MUTED, loc="left")
        axes.text(0, 1.03, unit, transform=axes.transAxes, color=MUTED)
        axes.minorticks_off()
        return self._svg(figure)

    def _name_points(self, axes: "Axes", points: Sequence[tuple[float, float, str]]) -> None:
        """Names beside points, of which those that would cover each other are told at one place."""
        groups: list[tuple[Any, list[tuple[float, float, str]]]] = []
        for point in points:
            at = axes.transData.transform(point[:2])
            near = (
                group
                for place, group in groups
                if abs(at[0] - place[0]) < _NAME[0] and abs(at[1] - place[1]) < _NAME[1]
            )
            group = next(near, None)
            if group is None:
                groups.append((at, [point]))
            else:
                group.append(point)
        for place, group in groups:
            name = _told([name for *_, name in group])
            beyond = place[0] + _BESIDE + _LETTER * len(name) > _WIDTH
            side, away = ("right", -_BESIDE) if beyond else ("left", _BESIDE)
            axes.annotate(name, group[0][:2], (away, 3), textcoords="offset points", color=FG, ha=side)

    def curve(self, values: Sequence[float]) -> str:
        """A line from left to right, from 0 up, for a card."""
        figure, axes = self._card_axes()
        top = max(values) or 1.0
        (line,) = axes.plot(range(len(values)), values, color=QUANTIZED, linewidth=1.5)
        axes.set_xlim(-0.5, max(len(values) - 0.5, 0.5))
        axes.set_ylim(0, top * 1.05)
        return self._drawn(figure, line)

    def histogram(self, parts: Sequence[Any], grid: Sequence[float], span: tuple[float, float]) -> str:
        """Histograms over one another, the first of floats, with the ``grid`` of integers; for a card.

        Heights are square roots of counts, each part in relation to its second highest bin: one alone, such as that
        of zeros, is cut off.
        """
        figure, axes = self._card_axes()
        drawn: list[Artist] = []
        if grid:
            xs = [x for at in grid for x in (at, at, float("nan"))]
            drawn += axes.plot(xs, [0, 1, float("nan")] * len(grid), color=GRID, linewidth=0.8)
        for position, part in enumerate(parts):
            most = sorted(part.counts)[-2:][0] or max(part.counts) or 1
            heights = [min((count / most) ** 0.5 * 0.9, 1) for count in part.counts]
            edges = [part.start + part.width * at for at in range(len(heights) + 1)]
            filled = position == 0
            colour = FLOAT if filled else QUANTIZED
            drawn.append(
                axes.stairs(heights, edges, fill=filled, color=colour, linewidth=1.2, alpha=0.55 if filled else 1)
            )
        axes.set_xlim(*span)
        axes.set_ylim(0, 1)
        return self._drawn(figure, *drawn)

    def _rows(self, names: Sequence[str]) -> tuple["Figure", "Axes"]:
        figure, axes = self._figure(_WIDTH, 40 + _ROW * len(names), left=_LABELS, bottom=34, top=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, colors=FG)
        return figure, axes

    def _figure(self, width: int, height: int, *, left: int, bottom: int, top: int) -> tuple["Figure", "Axes"]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + 12) / width, 1 - (bottom + top) / height))
        axes.patch.set_visible(False)
        axes.tick_params(colors=MUTED, length=3)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(MUTED)
        return figure, axes

    def _card_axes(self) -> tuple["Figure", "Axes"]:
        if self._card is None:
            self._card = self._figure(*_CARD, left=0, bottom=0, top=0)
            self._card[1].set_position((0, 0, 1, 1))
            self._card[1].set_axis_off()
        return self._card

    def _drawn(self, figure: "Figure", *artists: Any) -> str:
        try:
            return self._svg(figure)
        finally:
            for artist in artists:
                artist.remove()

    def _svg(self, figure: "Figure") -> str:
        import matplotlib

        self._count += 1
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context({"svg.hashsalt": f"pdq-export {self._count}"}):  # ids are of this plot alone
            figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
        return _plain(stream.getvalue())


def _told(names: Sequence[str]) -> str:
    """Names of points that lie together: all of a few, or the first, the last and how many there are."""
    return ", ".join(names) if len(names) <= _NAMED else f"{names[0]} … {names[-1]} ({len(names)})"


def _whole_numbers() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _few(sizes: Sequence[float]) -> list[float]:
    """Two figures of the least, a middle and the largest size, for ticks of an axis that may span no power of ten."""
    low, high = min(sizes), max(sizes)
    return sorted({float(f"{size:.2g}") for size in (low, (low * high) ** 0.5, high)})


def _in_bytes(value: float, _: object) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


@contextlib.contextmanager
def drawing() -> Iterator[Plots]:
    """A context in which matplotlib draws as the page needs it; its settings are what they were afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _SETTINGS.items():
            matplotlib.rcParams[name] = value
        yield Plots()


_REWRITES = (
    (re.compile(r"^.*?(?=<svg )", re.DOTALL), ""),  # what only a file has
    (re.compile(r"<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r"<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>"), ""),
    (re.compile(r'(width|height)="([\d.]+)pt"'), r'\1="\2"'),  # a point of matplotlib's is a pixel of the page
    (re.compile(r' id="(?!m|p)[^"]*"'), ""),  # of groups; markers and clips are found by theirs
    (re.compile(r' id="(matplotlib|patch|PatchCollection|PathCollection)[^"]*"'), ""),
    (re.compile(r"font: ([\d.]+px) [^;\"]*"), r"font-size: \1"),
    (re.compile(r"font-family: [^;\"]*;? ?"), ""),
    (re.compile(r"(\d+\.\d\d)\d+(?=[^<>]*>)"), r"\1"),  # of coordinates: those of texts are read
    (re.compile(r"\s+"), " "),
    (re.compile(r"> <"), "><"),
)


def _plain(svg: str) -> str:
    for pattern, replacement in _REWRITES:
        svg = pattern.sub(replacement, svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
