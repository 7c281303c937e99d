"""Functions of the user's own, named ``module:function``. Importing and calling them runs their code."""

import dataclasses
import importlib
import importlib.util
import re
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pdq_export.errors import PdqError
from pdq_export.nearby import near_names
from pdq_export.process import modules_here

_NAMED = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)")
_LONGEST = 300  # characters of what somebody else's exception says


def is_named(text: str) -> bool:
    """Whether a text reads as ``module:function``."""
    return _NAMED.fullmatch(text) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserFunction:
    """``source``: module:function. ``error``: what is raised where it cannot be had, with what ``begins`` the message.

    ``kind``: what it should be, such as a function that returns data; ``expected``: all that might have been given.
    ``instead``: what has been looked for before it, in vain.
    """

    source: str
    error: type[PdqError]
    kind: str
    expected: str
    begins: str = ""
    instead: str = ""

    def check_module(self) -> None:
        """Raise the error where Python finds no such module. Runs no code."""
        if self._spec() is None:
            raise self._no_module(self.source.partition(":")[0].partition(".")[0])

    def files(self) -> list[Path]:
        """The file of the module, or the folders of the package, as far as Python finds them. Runs no code."""
        found = self._spec()
        if found is None:
            return []
        if found.submodule_search_locations is not None:
            return list(map(Path, found.submodule_search_locations))
        return [Path(found.origin)] if found.has_location and found.origin is not None else []

    def _spec(self) -> ModuleSpec | None:
        """Of the module, or of the package that it is in."""
        try:
            with modules_here():
                return importlib.util.find_spec(self.source.partition(":")[0].partition(".")[0])
        except (ImportError, ValueError):
            return None

    def find(self) -> Callable[..., Any]:
        """Import the module and return its function. Raises the error where there is none, or importing it fails."""
        if not is_named(self.source):
            raise self._wrong(self.expected)
        module_name, name = self.source.split(":")
        self.check_module()
        try:
            with modules_here():
                module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
                raise self._no_module(error.name) from error
            raise self.raised(f"importing {module_name!r}", error) from error
        function: Callable[..., Any] | None = getattr(module, name, None)
        if function is None:
            near = near_names(name, (key for key in vars(module) if not key.startswith("_")))
            hint = f"did you mean {module_name}:{near[0]}?" if near else self.expected
            where = f" ({file})" if (file := getattr(module, "__file__", None)) else ""
            raise self._wrong(f"module {module_name!r}{where} has no {name!r}; {hint}")
        if not callable(function):
            raise self._wrong(f"is {type(function).__name__}, which cannot be called; {self.expected}")
        return function

    def raised(self, doing: str, error: BaseException) -> PdqError:
        """The error for an exception of the user's code."""
        detail = " ".join(str(error).split())[:_LONGEST]
        told = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
        return self._wrong(f"{doing} raised {told}; expected {self.kind}{self._place(error)}")

    def _place(self, error: BaseException) -> str:
        """The line of the user's code that an exception has passed last, in parentheses."""
        if isinstance(error, SyntaxError) and error.filename:
            return f" ({error.filename}, line {error.lineno})"
        own = [path.resolve() for path in self.files()]
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            file = Path(frame.filename).resolve()
            if any(file == path or path in file.parents for path in own):
                return f" ({file}, line {frame.lineno}; --verbose shows more)"
        return " (--verbose shows where)"

    def _no_module(self, module: str) -> PdqError:
        return self._wrong(
            f"{self.instead}no module {module!r}; {self.expected}; modules are looked for in the current folder, in "
            "PYTHONPATH and among what is installed"
        )

    def _wrong(self, told: str) -> PdqError:
        return self.error(f"{self.begins}{self.source}: {told}")
