"""Tables of options in README.md and docs/: ``python -m pdq_export.config.table`` writes them again, between markers.

README has those that are used most, docs/options.md all.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pdq_export.config.config import Config, options_of
from pdq_export.config.option import Option
from pdq_export.config.toml import default_text

_MARKED = re.compile(r"(<!-- table of (?P<name>[\w -]+): [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\]\((?=[\w-]+\.md)")
DOCS = "docs"
MOST_USED = (
    "calib",
    "eval",
    "output",
    "report",
    "bits",
    "target",
    "preset",
    "layer_bits",
    "reduce_range",
    "max_drop",
)


def tables(config: type = Config) -> Mapping[str, str]:
    """The tables by name; links in them are those of pages in ``docs``.

    They are of the options that have a flag, gates apart, of those that are set by ``--set``, and of the most used.
    """
    known = options_of(config)
    options = known.values()
    return {
        "options": _table("option", (one for one in options if one.declared.flag and one.path[:1] != ("gates",))),
        "gates": _table("option", (one for one in options if one.path[:1] == ("gates",))),
        "numbers of the method": _table("name", (one for one in options if not one.declared.flag)),
        "the most used options": _table("option", (known[name] for name in MOST_USED)),
    }


def renewed(text: str, config: type = Config, *, pages: str = "") -> str:
    """A Markdown text with the tables between its markers as they are now; ``pages``: where it finds those of docs."""
    made = tables(config)

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}{_LINK.sub(f']({pages}', made[found['name']])}{found[3]}"

    return _MARKED.sub(table, text)


def with_tables(root: Path) -> Mapping[Path, str]:
    """README and the pages below ``root`` that have tables, by path, with their tables as they are now."""
    paths = [root / "README.md", *sorted((root / DOCS).glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return {
        path: renewed(text, pages="" if path.parent == root / DOCS else f"{DOCS}/")
        for path, text in texts.items()
        if _MARKED.search(text)
    }


def _table(head: str, options: Iterable[Option]) -> str:
    rows = [f"| {head} | meaning | default |", "|---|---|---|"]
    for one in options:
        name = " ".join(filter(None, (one.flag, one.metavar))) if one.declared.flag else one.name
        again = "again for more" if one.kind is tuple else ""
        meaning = "; ".join(filter(None, (one.declared.help, again, one.declared.more)))
        rows.append(f"| {_code(name)} | {_escaped(meaning)} | {_escaped(default_text(one))} |")
    return "\n".join(rows) + "\n"


def _code(text: str) -> str:
    return f"`{_escaped(text)}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main(root: str = ".") -> None:
    """Write the tables of README and of the pages in ``docs`` again, in place."""
    for path, text in with_tables(Path(root)).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
