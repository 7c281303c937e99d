"""Where a command is, for whoever shows it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it comes with torch, which not every command needs
    from pdq_export.calibrate import BlockProgress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a command is.

    ``stage``: load, plan, read, synthesize, check, search, calibrate, sensitivity, export, validate, rerun, time or
    fresh; ``block`` once one is calibrated or tried. ``images``: how many of the ``total`` are done, once there are
    any; rerun, which compares ways of running the file, may go over a few of them first. ``unit``: what is counted so,
    images or steps.
    """

    stage: str
    block: "BlockProgress | None" = None
    images: int | None = None
    total: int | None = None
    unit: str = "images"


ProgressCallback = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class Tell:
    """Tells a callback, where there is one, of stages and of what is done of them."""

    callback: ProgressCallback | None

    def stage(self, stage: str) -> None:
        """A stage begins."""
        self._tell(Progress(stage=stage))

    def block(self, at: "BlockProgress", stage: str = "calibrate") -> None:
        """Calibration, or another stage that goes over the blocks, is there."""
        self._tell(Progress(stage=stage, block=at))

    def images(self, stage: str, done: int, total: int) -> None:
        """So many of the images are done."""
        self._tell(Progress(stage=stage, images=done, total=total))

    def steps(self, stage: str, done: int, total: int) -> None:
        """So many of the steps are done."""
        self._tell(Progress(stage=stage, images=done, total=total, unit="steps"))

    def _tell(self, progress: Progress) -> None:
        if self.callback is not None:
            self.callback(progress)
