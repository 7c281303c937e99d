"""Data from a function of the user's own, named ``module:function``. Importing and calling it runs its code."""

import difflib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

from pdq_export.errors import DataError

_NAMED = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)")
_EXPECTED = "expected MODULE:FUNCTION, a function without arguments that returns data, or the path of a file or folder"


def names_function(source: object) -> bool:
    """Whether data are given as ``module:function``; a file or folder of that name is taken for what it is."""
    return isinstance(source, str) and _NAMED.fullmatch(source) is not None and not os.path.lexists(source)


def check_module(source: str) -> None:
    """Raise DataError where Python finds no such module. Runs no code."""
    module = source.partition(":")[0].partition(".")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise _no_module(source, module)


def find_function(source: str) -> Callable[[], Any]:
    """Import the module and return its function. Raises DataError where there is none, or importing it fails."""
    module_name, name = source.split(":")
    check_module(source)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise _no_module(source, error.name) from error
        raise _raised(source, f"importing {module_name!r}", error) from error
    function = getattr(module, name, None)
    if function is None:
        near = difflib.get_close_matches(name, [key for key in vars(module) if not key.startswith("_")], n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else f"; {_EXPECTED}"
        where = f" ({file})" if (file := getattr(module, "__file__", None)) else ""
        raise DataError(f"{source}: module {module_name!r}{where} has no {name!r}{hint}")
    if not callable(function):
        raise DataError(f"{source}: is {type(function).__name__}, which cannot be called; {_EXPECTED}")
    return function  # type: ignore[no-any-return]


def call_function(source: str) -> Any:
    """What the function returns. Raises DataError where it raises, or cannot be found."""
    function = find_function(source)
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _raised(source, "calling it", error) from error


def _no_module(source: str, module: str) -> DataError:
    return DataError(
        f"{source}: no such file or folder, and no module {module!r}; {_EXPECTED}; modules are looked for in the "
        "current folder, in PYTHONPATH and among what is installed"
    )


def _raised(source: str, doing: str, error: BaseException) -> DataError:
    detail = " ".join(str(error).split())[:300]
    told = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
    return DataError(f"{source}: {doing} raised {told}; expected a function that returns data (--verbose shows where)")
