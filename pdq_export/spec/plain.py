"""Dataclasses to and from plain types, the one place where what somebody else may have written is read.

A dataclass is its own schema: the annotations of its fields say types and ranges (`Bits`, `Stored`, ...), and pydantic
holds the text to them, strictly: no text for a number, no 1 for true, no unknown field. What needs several fields at
once a dataclass checks in ``__post_init__``, with a ValueError.
"""

import functools
import json
import typing
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

_MOST_DIGITS = 10  # of an integer
_WORDS = (  # of pydantic's messages
    ("Input should be", "expected"),
    ("less than or equal to", "at most"),
    ("greater than or equal to", "at least"),
    ("valid array", "valid list"),
)

T = TypeVar("T")


def to_plain(value: Any, *, defaults: bool = True) -> Any:
    """A dataclass as dict, list, str, int, float, bool and None, in the order of its fields.

    Without ``defaults``, fields that have their default are left out.
    """
    kind: Any = type(value)
    return _adapter(kind).dump_python(value, mode="json", exclude_defaults=not defaults)


def to_text(value: Any, *, defaults: bool = True) -> str:
    """A dataclass as JSON, in one line; equal values give equal text. Raises ValueError for numbers that are none."""
    return json.dumps(to_plain(value, defaults=defaults), separators=(",", ":"), allow_nan=False)


def from_text(
    kind: type[T],
    text: str,
    *,
    longest: int,
    what: str | None = None,
    extra: Literal["forbid", "ignore"] = "forbid",
    digits: int = _MOST_DIGITS,
) -> T:
    """Read a ``kind`` from JSON of at most ``longest`` characters, called ``what`` in messages.

    ``extra``: what is done about unknown fields. ``digits``: that an integer may have. Raises
    ValueError, which says where in it what was found and what was expected. Nothing in ``text`` is trusted.
    """
    what, schema = what or f"the {kind.__name__}", typing.cast(Any, kind)
    parse_json(text, longest=longest, what=what, digits=digits)  # refuses what pydantic's parser would let pass
    try:
        found: T = _adapter(schema).validate_json(text, strict=True, extra=extra)
    except ValidationError as error:
        raise ValueError(_told(error, what)) from error
    return found


def parse_json(text: str, *, longest: int, what: str, digits: int = _MOST_DIGITS) -> Any:
    """The JSON in ``text`` without duplicate names, endless numbers, NaN or infinity. Raises ValueError."""
    if len(text) > longest:
        raise ValueError(f"{what} has {len(text):,} characters; expected at most {longest:,}")

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} in {what}; expected finite numbers")

    def parse_int(text: str) -> int:
        if len(text) > digits:
            raise ValueError(f"an integer of {len(text)} digits; expected at most {digits}")
        return int(text)

    try:
        return json.loads(text, parse_int=parse_int, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error


def unique(pairs: list[tuple[str, T]]) -> dict[str, T]:
    """A dict of pairs with different names. Raises ValueError where one is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice; expected each once")
    return found


def shown(value: Any) -> str:
    """A value for a message: containers by their kind, since they may be large."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _told(error: ValidationError, what: str) -> str:
    """The first thing that is wrong: where, what was found, what was expected."""
    first = error.errors(include_url=False)[0]
    where = _place(first["loc"]) or what
    expected = first["msg"].removeprefix("Value error, ")
    for theirs, ours in _WORDS:
        expected = expected.replace(theirs, ours)
    if first["type"] == "missing":
        return f"{where}: is missing"
    if first["type"] == "value_error" and not first["loc"]:  # of several fields at once
        return expected
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown"
    return f"{where} is {shown(first['input'])}; {expected[0].lower()}{expected[1:]}"


def _place(location: tuple[int | str, ...]) -> str:
    """A path as people write it: points[3].bits. What somebody else has named is cut."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:100]}" if text else part[:100]
    return text
