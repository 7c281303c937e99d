"""What is tried where a device's memory runs out, before a run ends."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pdq_export.exhaustion import is_exhaustion

Result = TypeVar("Result")


def with_relief(compute: Callable[[], Result], measures: Sequence[Callable[[], bool]]) -> Result:
    """What ``compute`` gives, which is asked again as long as memory runs out and one of the ``measures`` frees some.

    The measures are tried in their order, each as often as it says that it has done something. ``compute`` must not
    have changed anything when it fails. Raises its last error where nothing is left to try.
    """
    while True:
        try:
            return compute()
        except Exception as error:
            if not is_exhaustion(error):
                raise
            failed = error.with_traceback(None)
        # Out of the handler: the frames that the error keeps alive hold what has filled the memory.
        if not any(measure() for measure in measures):
            raise failed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
