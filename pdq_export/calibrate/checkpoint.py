"""Finished blocks on the disk: a `Checkpoint` over the folder of a run."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdq_export.calibrate.block_state import BlockRecord, BlockState
from pdq_export.errors import CheckpointError, PdqError, StateError
from pdq_export.runs import RunFolder, block_files, damaged, read_block, read_blocks
from pdq_export.spec import Block
from pdq_export.spec.plain import from_text, parse_json, to_text

logger = logging.getLogger(__name__)

_LONGEST = 1 << 32  # characters of a block's state
_ARRAY = {"dtype", "shape", "data"}
_LARGEST_ITEM = 8  # bytes


class DiskCheckpoint:
    """Loads what the folder holds and keeps what is finished.

    ``largest``: bytes that the arrays of a block's state can take; one that says more is refused before it is unpacked.
    """

    def __init__(self, folder: RunFolder, largest: int = _LONGEST) -> None:
        self._folder, self._largest = folder, largest
        self._failed = False
        self._last = 0  # position of the block that was loaded last
        self.records: dict[str, BlockRecord] = {}  # of the blocks so far

    def load(self, position: int, block: Block) -> BlockState | None:
        """The state of a block. Raises CheckpointError, which names the file, where it is damaged."""
        lines = self._folder.load(position, block.name)
        if lines is None:
            return None
        try:
            record, state = _parse(*lines, self._largest)
        except ValueError as error:
            raise self._folder.damaged(position, error) from error
        self._last = position
        self.records[block.name] = record
        for warning in record.warnings:
            logger.warning("%s", warning)
        return state

    def refused(self, what: StateError) -> CheckpointError:
        """The error, by file, for the state that was loaded last and cannot be used."""
        return self._folder.damaged(self._last, what)

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        """Keep a block; where the disk does not take it, say so once and let the run go on."""
        self.records[block.name] = record
        if self._failed:
            return
        try:
            self._folder.save(position, block.name, to_text(record), state.text)
        except (PdqError, OSError) as error:
            self._failed = True
            logger.warning("finished blocks are not kept from here on: %s", error)


def _parse(record: str, state: str, largest: int) -> tuple[BlockRecord, BlockState]:
    """Raises ValueError for what is none, and for arrays of more than ``largest`` bytes before they are unpacked."""
    size = _stated_size(parse_json(state, longest=_LONGEST, what="its state"))
    if size > largest:
        raise ValueError(f"its arrays take {size:,} bytes; expected at most {largest:,}")
    return (
        from_text(BlockRecord, record, longest=_LONGEST, what="its record"),
        from_text(BlockState, state, longest=_LONGEST, what="its state"),
    )


def _stated_size(plain: Any) -> int:
    """Bytes that all arrays in plain types say that they take, at most."""
    if isinstance(plain, dict) and plain.keys() == _ARRAY:
        shape = plain["shape"]
        sizes = shape if isinstance(shape, list) and all(type(d) is int for d in shape) else []  # others are refused
        return _LARGEST_ITEM * abs(math.prod(sizes))
    inner = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    return sum(_stated_size(value) for value in inner)


def read_kept(folder: Path, largest: int) -> Iterator[tuple[str, BlockRecord, BlockState]]:
    """Name, record and state of the blocks that a run's folder holds, in order; arrays of at most ``largest`` bytes.

    Raises CheckpointError, which names the file, where one is damaged.
    """
    for _, path in block_files(folder):
        header, record, state = read_block(path)
        try:
            yield header.block, *_parse(record, state, largest)
        except ValueError as error:
            raise damaged(path, error) from error


def read_records(folder: Path) -> dict[str, BlockRecord]:
    """Losses and timings of the blocks that a run's folder holds, by block, for reports. Raises CheckpointError."""
    return {
        header.block: from_text(BlockRecord, record, longest=_LONGEST, what=f"the record of {header.block}")
        for header, record, _ in read_blocks(folder)
    }
