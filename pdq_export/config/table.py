"""README's tables of options, between markers: ``python -m pdq_export.config.table README.md`` writes them again."""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pdq_export.config.config import Config, options_of
from pdq_export.config.option import Option
from pdq_export.config.toml import default_text

_MARKED = re.compile(r"(<!-- table of (?P<name>[\w -]+): [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)


def tables(config: type = Config) -> Mapping[str, str]:
    """The tables by name: of the options that have a flag, gates apart, and of those that are set by ``--set``."""
    options = options_of(config).values()
    return {
        "options": _table("option", (one for one in options if one.declared.flag and one.path[:1] != ("gates",))),
        "gates": _table("option", (one for one in options if one.path[:1] == ("gates",))),
        "numbers of the method": _table("name", (one for one in options if not one.declared.flag)),
    }


def renewed(text: str, config: type = Config) -> str:
    """A Markdown text with the tables between its markers as they are now."""
    made = tables(config)
    return _MARKED.sub(lambda found: f"{found[1]}{made[found['name']]}{found[3]}", text)


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


def main(paths: Iterable[str]) -> None:
    """Write the tables of these files again, in place."""
    for path in map(Path, paths):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
