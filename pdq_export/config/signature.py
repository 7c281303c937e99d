"""Options in the help and the signature of functions that take them as ``**fields``."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pdq_export.config.config import options_of
from pdq_export.config.option import Option
from pdq_export.config.toml import default_text

Call = TypeVar("Call", bound=Callable[..., Any])


def takes_options(command: str) -> Callable[[Call], Call]:
    """Document the options of a command in a function that takes them as ``**fields``: in its help and signature."""
    options = options_of(command=command)

    def decorate(function: Call) -> Call:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        names = {one.name for one in own}
        known = [one for one in options.values() if one.name not in names]
        function.__signature__ = signature.replace(parameters=[*own, *map(_parameter, known)])  # type: ignore[attr-defined]
        if function.__doc__ is not None:
            function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\nOptions, by keyword:\n\n{_listed(known)}"
        return function

    return decorate


def _parameter(one: Option) -> inspect.Parameter:
    kind = one.kind | None if one.optional else one.kind
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=kind)


def _listed(options: Iterable[Option]) -> str:
    wrap = functools.partial(textwrap.fill, width=100, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(wrap(f"``{one.name}``: {one.declared.help} (default: {default_text(one)}).") for one in options)
