"""Data from a function of the user's own, named ``module:function``. Importing and calling it runs its code."""

import os
from typing import Any

from pdq_export.errors import DataError
from pdq_export.user_code import UserFunction, is_named

_EXPECTED = "expected MODULE:FUNCTION, a function without arguments that returns data, or the path of a file or folder"


def names_function(source: object) -> bool:
    """Whether data are given as ``module:function``; a file or folder of that name is taken for what it is."""
    return isinstance(source, str) and is_named(source) and not os.path.lexists(source)


def user_function(source: str) -> UserFunction:
    """The function that is named, whose errors are DataErrors."""
    return UserFunction(
        source=source,
        error=DataError,
        kind="a function that returns data",
        expected=_EXPECTED,
        instead="no such file or folder, and ",
    )


def call_function(source: str) -> Any:
    """What the function returns. Raises DataError where it raises, or cannot be found."""
    named = user_function(source)
    function = named.find()
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise named.raised("calling it", error) from error
