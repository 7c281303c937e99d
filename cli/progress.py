"""How far a run is: a bar where there is a terminal, an occasional line where there is none."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from pdq_export.pipeline import Progress

logger = logging.getLogger("pdq_export.cli.progress")

STAGES = {
    "load": "reading the model",
    "plan": "planning",
    "calibrate": "calibrating",
    "export": "writing the quantized graph",
    "validate": "validating in onnxruntime",
}
_PLAIN_INTERVAL = 30.0  # seconds between lines where there is no terminal
_ENOUGH_TO_TELL = 0.02  # share of the work after which the time left is more than a guess


class ProgressDisplay:
    """Shows what `pdq_export.quantize` reports; to be used as a context manager and as the callback."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: str | None = None
        self._calibration_began: float | None = None
        self._last_line = 0.0
        self._plain = not console.is_terminal
        self._quiet = quiet
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
            disable=quiet or self._plain,
        )
        self._task: TaskID = self._bar.add_task("starting", total=None, detail="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: "Progress") -> None:
        now = self._clock()
        if progress.stage != "calibrate" or self._calibration_began is None:
            self._calibration_began = now  # the first report comes when its first block has been prepared
        began = self._calibration_began if progress.stage == "calibrate" else None
        detail = "" if began is None else describe(progress, now - began)
        if self._plain and not self._quiet:
            self._log(progress.stage, detail, now)
        self._stage = progress.stage
        self._bar.update(
            self._task,
            description=STAGES.get(progress.stage, progress.stage),
            total=None if began is None else 1.0,
            completed=0.0 if began is None else fraction(progress),
            detail=detail,
        )

    def _log(self, stage: str, detail: str, now: float) -> None:
        if stage != self._stage or now - self._last_line >= _PLAIN_INTERVAL:
            self._last_line = now
            logger.info("%s%s", STAGES.get(stage, stage), f": {detail}" if detail else "")


def fraction(progress: "Progress") -> float:
    """Share of the calibration that is done, 0 to 1, counting every block alike."""
    within = min(progress.step / progress.step_count, 1.0) if progress.step_count else 0.0
    return min((progress.block_index + within) / progress.block_count, 1.0) if progress.block_count else 0.0


def describe(progress: "Progress", elapsed: float) -> str:
    """``block 3/12, step 200/500, loss 0.0123, 1:20 left, layer1.0``: what may be cut off for its length comes last."""
    parts = []
    if progress.block_count:
        parts.append(f"block {progress.block_index + 1}/{progress.block_count}")
    if progress.step_count:
        parts.append(f"step {progress.step}/{progress.step_count}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    done = fraction(progress)
    if done >= _ENOUGH_TO_TELL:
        parts.append(f"{format_time(elapsed * (1 - done) / done)} left")
    if progress.block:
        parts.append(progress.block)
    return ", ".join(parts)


def format_time(seconds: float) -> str:
    """``0:09``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
