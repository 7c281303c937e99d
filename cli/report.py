"""``pdq-export report``: the page of a report, for a browser."""

import shlex
from pathlib import Path

import click

from pdq_export.config.config import options_of

from .command import Frame, Outcome, command
from .options import click_option
from .paths import OutputPath

_OPTIONS = options_of()


@command(
    summary="Write a report, or a run, as a page for a browser.",
    example="pdq-export report report.json -o report.html",
)
@click.argument("source", type=click.Path(path_type=Path), metavar="REPORT.json|RUN")
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    metavar="OUT.html",
    help="The page to write.  [default: ./REPORT.html, under the source's name]",
)
@click_option(_OPTIONS["overwrite"], help="Replace the page where it exists")
def report(frame: Frame, *, source: Path, output: Path | None, overwrite: bool | None) -> Outcome:
    """Write one self-contained page of what --report, or --json of compare or sensitivity, wrote, or of a run's folder.

    The page needs no network. It shows what the source has: a report that was written together with a page (--report
    OUT.json --report OUT.html) has everything but the pictures; a run, as pdq-export cache lists them, how its blocks
    were learned.
    """
    with frame.work():
        # Imported here: it takes seconds.
        from pdq_export.commands.report import write_page

        name = source.resolve().name if source.is_dir() else source.stem
        written = write_page(source, output or Path(f"{name}.html"), overwrite=bool(overwrite))
    size = written.stat().st_size
    return Outcome(text=[f"wrote {shlex.quote(str(written))}, {size / 1e3:,.0f} kB"])
