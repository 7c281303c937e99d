"""What the calibration of a run takes, summed over its attempts."""

import dataclasses
import logging
import time
from pathlib import Path

from pdq_export.commands.progress import Progress, ProgressCallback
from pdq_export.errors import PdqError
from pdq_export.files import write_atomically
from pdq_export.runs.header import read_bounded
from pdq_export.spec.plain import from_text, to_text

logger = logging.getLogger(__name__)

_EVERY = 1.0  # seconds
_LONGEST = 200  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seconds:
    """Of the clock, and of the CPU, all threads together."""

    wall: float = 0.0
    cpu: float = 0.0

    def __post_init__(self) -> None:
        if min(self.wall, self.cpu) < 0:
            raise ValueError("expected seconds of 0 or more")


class Clock:
    """Wall and CPU seconds up to the export, of all threads, told by the progress of a run.

    ``file``: notes them once a second, for the attempt that goes on. ``resume``: whether this is that one.
    """

    def __init__(self, file: Path, progress: ProgressCallback | None, *, resume: bool) -> None:
        self._file, self._progress = file, progress
        self._before = _read(file) if resume else _Seconds()
        self._start = self._noted = self._now()
        self.calibration = (0.0, 0.0)

    def __call__(self, at: Progress) -> None:
        """Take the time, and tell whoever else wants to know."""
        now = self._now()
        spent = _Seconds(
            wall=self._before.wall + now.wall - self._start.wall, cpu=self._before.cpu + now.cpu - self._start.cpu
        )
        if at.stage == "export":
            self.calibration = (spent.wall, spent.cpu)
        elif at.stage == "calibrate" and now.wall - self._noted.wall >= _EVERY:
            self._noted = now
            self._note(spent)
        if self._progress is not None:
            self._progress(at)

    def _note(self, spent: _Seconds) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, to_text(spent).encode(), overwrite=True)
        except (PdqError, OSError) as error:
            logger.debug("%s: cannot be written: %s", self._file, error)

    @staticmethod
    def _now() -> _Seconds:
        return _Seconds(wall=time.perf_counter(), cpu=time.process_time())


def _read(file: Path) -> _Seconds:
    try:
        return from_text(_Seconds, read_bounded(file, _LONGEST).decode(), longest=_LONGEST)
    except FileNotFoundError:
        return _Seconds()
    except (ValueError, OSError) as error:
        logger.warning("%s: is damaged (%s); the seconds of earlier attempts are not counted", file, error)
        return _Seconds()
