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
        # Where nobody has set up logging, Python prints warnings to stderr, but not past a handler such as this one.
        first = next(one for one in _LIBRARY.handlers if isinstance(one, Warned))
        if first is self and logging.lastResort is not None and not _has_listeners(record):
            logging.lastResort.handle(record)

    @property
    def texts(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(self._texts)


def _has_listeners(record: logging.LogRecord) -> bool:
    """Whether a handler of somebody else gets the record."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        if any(not isinstance(one, Warned) for one in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
