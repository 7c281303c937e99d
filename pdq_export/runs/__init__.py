"""What runs keep so that they can be taken up again: a folder a run, in the user's cache folder or where they say."""

from pdq_export.runs.folder import (
    InUseError,
    RunFolder,
    block_files,
    check_root,
    damaged,
    default_root,
    open_run,
    read_block,
    read_blocks,
)
from pdq_export.runs.header import HEADER, Run, RunKey, read_bounded, read_header
from pdq_export.runs.shelf import Cleared, Kept, clear_runs, find_runs

__all__ = [
    "HEADER",
    "Cleared",
    "InUseError",
    "Kept",
    "Run",
    "RunFolder",
    "RunKey",
    "block_files",
    "check_root",
    "clear_runs",
    "damaged",
    "default_root",
    "find_runs",
    "open_run",
    "read_block",
    "read_blocks",
    "read_bounded",
    "read_header",
]
