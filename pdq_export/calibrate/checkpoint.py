"""Finished blocks on the disk: a `Checkpoint` over the folder of a run."""

import logging
from pathlib import Path

from pdq_export.calibrate.block_state import BlockRecord, BlockState
from pdq_export.errors import PdqError
from pdq_export.runs import RunFolder, read_blocks
from pdq_export.spec import Block
from pdq_export.spec.plain import from_text, to_text

logger = logging.getLogger(__name__)

_LONGEST = 1 << 32  # characters of a block's state


class DiskCheckpoint:
    """Loads what the folder holds and keeps what is finished; ``kept``: how many blocks it has, of all."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._failed = False
        self.kept = 0

    def load(self, position: int, block: Block) -> BlockState | None:
        """The state of a block. Raises CheckpointError, which names the file, where it is damaged."""
        lines = self._folder.load(position, block.name)
        if lines is None:
            return None
        try:
            state = from_text(BlockState, lines[1], longest=_LONGEST, what="its state")
        except ValueError as error:
            raise self._folder.damaged(position, error) from error
        self.kept += 1
        return state

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        """Keep a block; where the disk does not take it, say so once and let the run go on."""
        if self._failed:
            return
        try:
            self._folder.save(position, block.name, to_text(record), to_text(state))
        except (PdqError, OSError) as error:
            self._failed = True
            logger.warning("finished blocks are not kept from here on: %s", error)
        else:
            self.kept += 1


def read_records(folder: Path) -> dict[str, BlockRecord]:
    """Losses and timings of the blocks that a run's folder holds, by block, for reports. Raises CheckpointError."""
    return {
        header.block: from_text(BlockRecord, record, longest=_LONGEST, what=f"the record of {header.block}")
        for header, record, _ in read_blocks(folder)
    }
