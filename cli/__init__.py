"""The command line: ``pdq-export quantize``, ``inspect``, ``convert``, ``init``, ``show-config`` and ``example``.

Modules of this folder import one another relatively: it is installed as ``pdq_export.cli``, but lies at the top of the
tree as ``cli``. Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from .app import app, main

__all__ = ["app", "main"]
