"""``pdq-export cache``: what interrupted and finished runs have kept.

JSON schema of what ``--json`` prints, version 1::

    schema_version  1
    folder          where runs are kept
    runs            [{name, model, bits, created, changed, done, blocks, size}]  the one that was changed last first;
                    times in UTC; done of blocks are finished; size in bytes; model, bits, created and blocks are null
                    where the run's own description is damaged
    removed         names of runs that --clear has removed
"""

import datetime
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdq_export.errors import OptionError, printable

from .command import Frame, Outcome, command

if TYPE_CHECKING:
    from pdq_export.runs import Cleared, Kept

SCHEMA_VERSION = 1
_OLDEST = 36500  # days: dates do not go back for ever
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@command(
    summary="List or clear what runs have kept.",
    example="pdq-export cache\npdq-export cache --clear --older-than 30d",
    json_schema="pdq_export.cli.cache",
)
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--clear", is_flag=True, help="Remove these runs, or all of this user; those at work stay.")
@click.option("--older-than", metavar="AGE", help="Take only runs that nothing has changed for, e.g. 30d, 12h or 90m.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where runs are kept, as for quantize.  [default: the user's cache folder]",
)
def cache(
    frame: Frame, *, names: tuple[str, ...], clear: bool, older_than: str | None, work_dir: Path | None
) -> Outcome:
    """List the runs that can be resumed, or looked at, with quantize --resume; or remove them."""
    from pdq_export.runs import clear_runs, default_root, find_runs

    age = None if older_than is None else _age(older_than)
    if (names or age is not None) and not clear:
        raise OptionError("RUN and --older-than choose what --clear removes; give --clear, too")
    root = work_dir or default_root()
    if clear:
        cleared = clear_runs(root, names, older_than=age)
        return Outcome(
            text=_cleared(cleared), to_json=lambda: _json(root, find_runs(root), [p.name for p in cleared.removed])
        )
    runs = find_runs(root)
    return Outcome(text=_listed(root, runs), to_json=lambda: _json(root, runs, []))


def _age(text: str) -> datetime.timedelta:
    match = re.fullmatch(r"(\d{1,6})([mhd])", text.strip())
    if match is None:
        raise OptionError(f"--older-than {text!r}: expected a number of minutes, hours or days: 90m, 12h or 30d")
    age = datetime.timedelta(**{_UNITS[match[2]]: int(match[1])})
    return min(age, datetime.timedelta(days=_OLDEST))


def _listed(root: Path, runs: "list[Kept]") -> Iterable[RenderableType]:
    if not runs:
        yield f"no runs in {root}"
        return
    table = Table("run", "model", "bits", "changed", "blocks", "size")
    for kept in runs:
        run = kept.run
        cells = (
            kept.path.name,
            *((run.model, run.bits) if run else ("damaged, or of another version", "")),
            f"{kept.changed.astimezone():%Y-%m-%d %H:%M}",
            f"{kept.done} of {run.blocks}" if run else str(kept.done),
            _size(kept.size),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))  # names are whatever a file says: no markup
    yield table
    yield f"{len(runs)} run{'s' * (len(runs) != 1)}, {_size(sum(kept.size for kept in runs))}, in {root}"


def _cleared(cleared: "Cleared") -> Iterable[RenderableType]:
    for path in cleared.in_use:
        yield f"{path.name} stays: a run is at work there"
    yield f"removed {len(cleared.removed)} run{'s' * (len(cleared.removed) != 1)}, {_size(cleared.size)}"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _json(root: Path, runs: "list[Kept]", removed: list[str]) -> str:
    content = {
        "schema_version": SCHEMA_VERSION,
        "folder": str(root),
        "runs": [_described(kept) for kept in runs],
        "removed": removed,
    }
    return json.dumps(content, indent=2) + "\n"


def _described(kept: "Kept") -> dict[str, Any]:
    run = kept.run
    return {
        "name": kept.path.name,
        "model": run.model if run else None,
        "bits": run.bits if run else None,
        "created": run.created if run else None,
        "changed": kept.changed.isoformat(timespec="seconds"),
        "done": kept.done,
        "blocks": run.blocks if run else None,
        "size": kept.size,
    }
