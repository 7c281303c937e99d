"""Memory that runs out, told as an error with its remedy: every library says it in another way."""

import errno
import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from pdq_export.errors import PdqError, ResourceError

logger = logging.getLogger(__name__)

_GPU = re.compile(r"cuda|cublas|cudnn|\bhip")
# Lower case. Of torch on CPUs and GPUs, onnxruntime's arenas, C++ (GNU and LLVM, Microsoft's) and the C library.
_TOLD = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "failed to allocate memory"),
    *(
        "out of memory",
        "std::bad_alloc",
        "bad allocation",
        "alloc_failed",
        "unable to allocate",
        "bad_array_new_length",
        "could not create a primitive",  # all that oneDNN says
    ),
)
_CALIBRATE = (
    "give --max-memory SIZE, which moves data to files, or take fewer images (--samples N) or fewer of them at a time "
    "(--set batch_size=N)"
)
_CALIBRATE_ON_GPU = "take fewer images at a time (--set batch_size=N), end what else uses the GPU, or give --device cpu"
_OTHERWISE = "end other programs, or use a machine with more memory"

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def tells_of_memory(*, calibrates: bool) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """Decorate a function so that it raises ResourceError where memory runs out in it.

    ``calibrates``: whether the remedies of calibration help.
    """

    def decorate(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        @functools.wraps(function)
        def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                told = next((e for e in _chain(error) if is_exhaustion(e)), None)
                if told is None or isinstance(error, ResourceError):
                    raise
                logger.debug("memory ran out here", exc_info=error)
                message = _message(told, calibrates)
                notes = [note for e in _chain(error) for note in getattr(e, "__notes__", ())]
            # Out of the handler: the frames that the error keeps alive hold what has filled the memory.
            raise ResourceError("; ".join([message, *notes]))

        return wrapped

    return decorate


def is_exhaustion(error: BaseException) -> bool:
    """Whether an exception, of whichever library, says that memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch's
        return True
    # The errors of onnxruntime and of C++ share no base class. Ours name files and nodes, which may be called anything.
    theirs = isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] == "onnxruntime"
    return theirs and not isinstance(error, PdqError) and any(words in str(error).lower() for words in _TOLD)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: stages turn whatever a library raises into errors of their own."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _message(error: BaseException, calibrates: bool) -> str:
    detail = " ".join(str(error).split())[:200].rstrip(".")
    on_gpu = _GPU.search(str(error).lower()) is not None
    where = "the GPU's memory" if on_gpu else "memory"
    remedy = (_CALIBRATE_ON_GPU if on_gpu else _CALIBRATE) if calibrates else _OTHERWISE
    return f"{where} ran out{f' ({detail})' if detail else ''}; expected enough for the model and its images; {remedy}"
