"""Where calibration is, told while it runs, and how long the phases of each block take."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from pdq_export.spec import Block

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProgress:
    """Where calibration is: ``step`` of ``steps`` in block ``index`` (from 0) of ``count``; ``loss`` of that step.

    ``phase``: what is done before and after the steps, with how far it is; empty while they are taken.
    """

    block: str
    index: int
    count: int
    step: int
    steps: int
    loss: float
    phase: str = ""


class Journal:
    """Tells ``report`` of phases and steps; ``seconds`` by phase and ``warnings`` are those of the present block."""

    def __init__(self, blocks: Sequence[Block], report: Callable[[BlockProgress], None] | None = None) -> None:
        self._report = report or (lambda _: None)
        first = blocks[0].name if blocks else ""
        self._place = BlockProgress(block=first, index=0, count=len(blocks), step=0, steps=0, loss=0.0)
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    def begin(self, position: int, block: Block, steps: int = 0) -> None:
        """Turn to the block at ``position``, which takes so many steps."""
        logger.info("block %d of %d: %s", position + 1, self._place.count, block.name)
        self._place = dataclasses.replace(self._place, block=block.name, index=position, step=0, steps=steps, loss=0.0)
        self.seconds, self.warnings = {}, []

    def tell(self, phase: str) -> None:
        """Tell what is done now, beside the steps."""
        self._report(dataclasses.replace(self._place, phase=phase))

    def warn(self, message: str) -> None:
        """Log a warning about the block, which is kept with it."""
        logger.warning("%s", message)
        self.warnings.append(message)

    def images(self, what: str) -> Callable[[int, int], None]:
        """What tells how many of all images ``what`` is done for."""
        return lambda done, count: self.tell(f"{what}, {done} of {count} images")

    def step(self, step: int, loss: float) -> None:
        """Tell that so many steps have been taken; phases after them count from there."""
        self._place = dataclasses.replace(self._place, step=step, loss=loss)
        self._report(self._place)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that the context takes to the ``phase``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
