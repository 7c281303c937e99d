"""The page's sections put into its template; everything but our own style, script and plots is escaped."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

import pdq_export
from pdq_export.errors import printable
from pdq_export.report.html.blocks import Section, Tile
from pdq_export.report.html.plots import drawing
from pdq_export.report.html.sections import SECTIONS
from pdq_export.report.html.source import Source
from pdq_export.report.html.summary import tiles, title

_FOLDER = Path(__file__).parent
_LONGEST = 1000  # characters of a text; names may be of any length
_LONGEST_COMMAND = 100_000  # of a command, which is of no use in part


class _Whole(str):
    """A text of any length that `_shown` leaves as it is; what shows it escapes it as any other."""


def render(source: Source) -> bytes:
    """The page, in UTF-8."""
    with drawing() as plots:
        found = [section for make in SECTIONS if (section := make(source, plots)) is not None]
    return page(*title(source), tiles(source), found)


def page(heading: str, subtitle: str, tiles: Sequence[Tile], sections: Sequence[Section]) -> bytes:
    """Any page, in UTF-8: a heading with a line below it, figures at the top, sections."""
    script, style = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        finalize=_shown,
    )
    environment.filters["whole"] = lambda text: _Whole(_shown(text, longest=_LONGEST_COMMAND))
    content = environment.get_template("page.html.jinja").render(
        title=heading,
        subtitle=subtitle,
        tiles=tiles,
        sections=sections,
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        style=style,
        footer=f"Written by pdq-export {pdq_export.__version__}.",
    )
    return content.encode(errors="replace")


def _shown(value: Any, *, longest: int = _LONGEST) -> Any:
    """Texts without characters that nobody sees, and of a length that a page can have; what is safe stays as it is."""
    if type(value) is not str:
        return value
    text = value if len(value) <= longest else f"{value[:longest]}…"
    return "\n".join(printable(line) for line in text.split("\n"))
