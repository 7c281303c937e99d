"""How far a run is: a bar where there is a terminal, an occasional line where there is none."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from pdq_export.errors import printable

if TYPE_CHECKING:
    from pdq_export.calibrate import BlockProgress
    from pdq_export.commands.quantize import Progress

logger = logging.getLogger("pdq_export.cli.progress")

STAGES = {
    "load": "reading the model",
    "plan": "planning",
    "read": "reading images",
    "synthesize": "making images",
    "check": "comparing with the file",
    "search": "choosing bits",
    "calibrate": "calibrating",
    "sensitivity": "trying every tensor",
    "export": "writing the quantized graph",
    "validate": "validating in onnxruntime",
    "rerun": "running the file in other ways",
    "time": "timing the files",
    "fresh": "loading in fresh processes",
    "compare": "comparing layers",
    "rank": "ranking layers",
}
_BAR, _NARROW_BAR, _NARROW = 24, 8, 80  # columns
_LONGEST_NAME = 40
_PLAIN_INTERVAL = 30.0  # seconds between lines where there is no terminal
_ENOUGH_TO_TELL = 0.02  # share of the work after which the time left is more than a guess


class ProgressDisplay:
    """Shows what `pdq_export.quantize` reports; to be used as a context manager and as the callback."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: str | None = None
        self._images = 0
        self._began = 0.0  # the stage, or its present round over images
        self._last_line = 0.0
        self._plain = not console.is_terminal
        self._quiet = quiet
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR if console.width >= _NARROW else _NARROW_BAR),
            # It takes what is left and is cut off; a column that asks for more would make the bar vanish.
            TextColumn(
                "{task.fields[detail]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            expand=True,
            console=console,
            transient=True,
            disable=quiet or self._plain,
        )
        self._task: TaskID = self._bar.add_task("starting", total=None, detail="")

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # rich before 15 ends even a bar that was never shown with an empty line
            self._bar.stop()

    def __call__(self, progress: "Progress") -> None:
        now = self._clock()
        images = progress.images or 0
        if progress.stage != self._stage or images < self._images:
            self._began = now
        self._images = images
        at = progress.block
        done = 0.0 if at is None else fraction(at)
        detail = "" if at is None else describe(at, now - self._began)
        if progress.images is not None and progress.total:
            done = progress.images / progress.total
            detail = describe_images(progress.images, progress.total, now - self._began, progress.unit)
        if self._plain and not self._quiet:
            self._log(progress, detail, now)
        self._stage = progress.stage
        self._bar.update(
            self._task,
            description=STAGES.get(progress.stage, progress.stage),
            total=1.0 if detail else None,
            completed=done,
            detail=detail,
        )

    def _log(self, progress: "Progress", detail: str, now: float) -> None:
        """A line for every stage and every finished block, and where nothing has been said for long."""
        at = progress.block
        finished = at is not None and at.step >= at.steps and not at.phase
        if finished or progress.stage != self._stage or now - self._last_line >= _PLAIN_INTERVAL:
            self._last_line = now
            stage = STAGES.get(progress.stage, progress.stage)
            logger.info("%s%s", stage, f": {detail}" if detail else "")


def fraction(at: "BlockProgress") -> float:
    """Share of the calibration that is done, 0 to 1, counting every block alike."""
    within = min(at.step / at.steps, 1.0) if at.steps else 0.0
    return min((at.index + within) / at.count, 1.0) if at.count else 0.0


def describe(at: "BlockProgress", elapsed: float) -> str:
    """``block 3/12, step 200/500, loss 0.0123, 1:20 left, layer1.0``: what may be cut off for its length comes last."""
    steps = [at.phase] if at.phase else [f"step {at.step}/{at.steps}", f"loss {at.loss:.4g}"]
    parts = [f"block {at.index + 1}/{at.count}", *steps]
    return ", ".join([*parts, *_left(fraction(at), elapsed), shorten(printable(at.block))])


def describe_images(done: int, total: int, elapsed: float, unit: str = "images") -> str:
    """``1,024/10,000 images, 1:20 left``."""
    return ", ".join([f"{done:,}/{total:,} {unit}", *_left(done / total, elapsed)])


def _left(done: float, elapsed: float) -> list[str]:
    """The time left, once ``done``, the share of the work, is enough to tell."""
    return [f"{format_time(elapsed * (1 - done) / done)} left"] if done >= _ENOUGH_TO_TELL else []


def shorten(name: str) -> str:
    """A name of at most 40 characters: the middle of a longer one is left out, as its ends tell more."""
    if len(name) <= _LONGEST_NAME:
        return name
    end = _LONGEST_NAME * 2 // 3
    return f"{name[: _LONGEST_NAME - end - 1]}…{name[-end:]}"


def format_time(seconds: float) -> str:
    """``0:09``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
