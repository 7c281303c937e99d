"""What Python callers may give for options, brought to the types of the fields."""

import os
from collections.abc import Iterable
from typing import Any


def texts(value: Any) -> Any:
    """One text, or several in a list, as a tuple of them."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def paths(value: Any) -> Any:
    """One path, or several in a list, as a tuple of texts."""
    found = texts((value,) if isinstance(value, os.PathLike) else () if value is None else value)
    return tuple(map(path, found)) if isinstance(found, tuple) else found


def path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
