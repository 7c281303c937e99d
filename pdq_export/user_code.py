"""Functions of the user's own, named on the command line or in a file as MODULE:FUNCTION."""

import importlib
from collections.abc import Callable
from typing import Any

from pdq_export.errors import OptionError


def find_function(text: str, option: str) -> Callable[..., Any]:
    """What ``MODULE:NAME`` names; ``option`` begins the messages.

    Raises OptionError where there is no such module or name in it, where importing the module fails, and for what
    cannot be called.
    """
    where = f"{option} {text!r}:"
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise OptionError(f"{where} expected MODULE:FUNCTION, such as metrics:mean_iou for a function of metrics.py")
    if module.endswith(".py") or "/" in module:
        raise OptionError(
            f"{where} {module!r} is a path; expected the name of a module, as import takes it: in the folder of a file "
            "metrics.py, metrics:mean_iou"
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise OptionError(
                f"{where} there is no module {error.name!r}; expected one that is installed, or a file in the current "
                "folder; or set PYTHONPATH"
            ) from error
        raise OptionError(f"{where} importing {module} fails: {error}; install what it needs") from error
    except (Exception, SystemExit) as error:
        raise OptionError(f"{where} importing {module} fails: {type(error).__name__}: {error}; mend it") from error
    for part in name.split("."):
        if not hasattr(found, part):
            others = [other for other, value in vars(found).items() if callable(value) and not other.startswith("_")]
            known = f"it has {', '.join(others[:8])}" if others else "it has no functions"
            raise OptionError(f"{where} {module} has no {part!r}; {known}; check the name")
        found = getattr(found, part)
    if not callable(found):
        raise OptionError(f"{where} is {type(found).__name__}; expected a function")
    function: Callable[..., Any] = found
    return function
