"""What a run warns of, for its report, while whoever listens to the log is told as well."""

import logging
import threading
from types import TracebackType
from typing import Self

_MOST, _LONGEST = 200, 2000
_LIBRARY = logging.getLogger("pdq_export")


class Warned(logging.Handler):
    """Remembers the warnings of this thread while the context lasts; to be used as a context manager."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self._texts: dict[str, None] = {}

    def __enter__(self) -> Self:
        _LIBRARY.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _LIBRARY.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record."""
        if record.thread == self._thread and len(self._texts) < _MOST:
            self._texts.setdefault(record.getMessage()[:_LONGEST])

    @property
    def texts(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(self._texts)
