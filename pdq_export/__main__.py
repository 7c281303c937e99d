"""``python -m pdq_export``, the same as ``pdq-export``."""

from pdq_export.cli import main

main()
