"""What runs keep so that they can be taken up again: a folder a run, in the user's cache folder or where they say."""

from pdq_export.runs.folder import InUseError, RunFolder, check_root, default_root, open_run, read_blocks
from pdq_export.runs.header import Run, RunKey
from pdq_export.runs.shelf import Cleared, Kept, clear_runs, find_runs

__all__ = [
    "Cleared",
    "InUseError",
    "Kept",
    "Run",
    "RunFolder",
    "RunKey",
    "check_root",
    "clear_runs",
    "default_root",
    "find_runs",
    "open_run",
    "read_blocks",
]
