"""How an option is declared: one dataclass field with everything that there is to say about it beside it."""

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pdq_export.errors import OptionError
from pdq_export.nearby import near_names

_KEY = "option"
_LONGEST = 200  # characters of a value in a message
_WHOLE = 2**63  # whole numbers are below
QUANTIZE, INSPECT, VALIDATE, COMPARE, SENSITIVITY = "quantize", "inspect", "validate", "compare", "sensitivity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """What is said about an option besides its name, type and default.

    ``help``: one sentence or two, without a full stop at the end where one. ``more``: what the tables in docs add, in
    Markdown. ``choices``: the values that there are. ``metavar``: what stands for the value, ``W/A`` or ``N``.
    ``unset``: what None stands for. ``least``, ``most``: bounds that are allowed, ``above``: one that is not.
    ``expects``: what is expected, where type, choices and bounds do not say it. ``short``: as in ``-o``.
    ``flag``: whether the option has a flag of its own on the command line; without it, it is set by ``--set``.
    ``commands``: which commands take it. ``recorded``: whether the written file says it: not where it has no influence
    on the file. ``is_path``: whether it names a file or folder; ``writes``: whether a file to write. ``pattern``: what
    its text looks like. ``adapt``: brings what Python callers may give to the field's type.
    """

    help: str
    more: str = ""
    choices: tuple[str, ...] = ()
    metavar: str = ""
    unset: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    expects: str = ""
    short: str = ""
    flag: bool = True
    commands: tuple[str, ...] = (QUANTIZE,)
    recorded: bool = True
    is_path: bool = False
    writes: bool = False
    pattern: str = ""
    adapt: Callable[[Any], Any] | None = None


def option(default: Any, help: str, **declared: Any) -> Any:
    """A dataclass field that is an option; ``declared``: fields of `Declaration`."""
    return dataclasses.field(default=default, metadata={_KEY: Declaration(help=help, **declared)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """An option as it stands in a configuration: ``path`` are the sections that it lies in."""

    name: str
    path: tuple[str, ...]
    kind: type
    optional: bool
    default: Any
    declared: Declaration

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        """What stands for the value: ``a|b|c``, ``W/A``, ``N``; nothing for a switch."""
        if self.declared.metavar or self.kind is bool:
            return self.declared.metavar
        return "|".join(self.declared.choices) or {int: "N", float: "X"}.get(self.kind, "TEXT")

    def expected(self, value: Any = None) -> str:
        """What the values are, in words, for messages about ``value``."""
        if type(value) is int and self.kind in (int, float) and not -_WHOLE <= value < _WHOLE:
            return f"{self.expected()}, of 64 bits"
        declared = self.declared
        if declared.expects:
            return declared.expects
        if declared.choices:
            *first, last = declared.choices
            return f"one of {', '.join(declared.choices)}" if len(first) > 1 else f"{first[0]} or {last}"
        bounds = within(self.kind, declared)
        if self.kind is int and bounds and value is not None and type(value) is not int:
            return f"{_KINDS[int]}, {bounds}"
        return bounds or _KINDS[self.kind]

    def adapted(self, value: Any) -> Any:
        """``value`` in the type of the field, as far as it is one of those that Python callers may give."""
        return value if self.declared.adapt is None else self.declared.adapt(value)

    def accepts(self, value: Any) -> bool:
        """Whether ``value``, adapted, has the type of the field, is one of its choices and within its bounds."""
        if value is None:
            return self.optional
        if self.kind is tuple:
            items = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
            return items and (not self.declared.writes or all(map(_is_file_name, value)))
        if not (type(value) is self.kind or (self.kind is float and type(value) is int)):
            return False
        if self.declared.choices:
            return value in self.declared.choices
        if self.declared.pattern:
            return re.fullmatch(self.declared.pattern, str(value), re.ASCII) is not None
        if self.declared.writes:
            return _is_file_name(str(value))
        if self.declared.is_path:
            return value != ""
        return not isinstance(value, int | float) or is_within(value, self.declared)


_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list of texts",
}


def _is_file_name(text: str) -> bool:
    return text not in ("", "-") and not text.endswith(("/", os.sep))


def shown(value: object) -> str:
    """A value in a message, however large it is or deeply nested."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no numbers of thousands of digits
        return "a number of thousands of digits"
    except RecursionError:
        return "deeply nested"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_within(value: float, declared: Declaration) -> bool:
    """Whether a number is finite, and of 64 bits if it is whole, and within the bounds that are declared."""
    return (
        (-_WHOLE <= value < _WHOLE if isinstance(value, int) else math.isfinite(value))
        and (declared.least is None or value >= declared.least)
        and (declared.most is None or value <= declared.most)
        and (declared.above is None or value > declared.above)
    )


def within(kind: type, declared: Declaration) -> str:
    """The bounds that are declared, in words; nothing where there are none."""
    if declared.above is not None:
        most = "" if declared.most is None else f", at most {declared.most:g}"
        return f"a number above {declared.above:g}{most}"
    if declared.least is None:
        return ""
    if declared.most is not None:
        return f"a number from {declared.least:g} to {declared.most:g}"
    return f"{declared.least:g} or more" if kind is int else f"{declared.least:g} or a number above"


def find_options(config: type) -> tuple[Option, ...]:
    """All options of a configuration in the order of their declaration, those of its sections among them.

    Raises TypeError for a field that is neither option nor section, or a name that two sections have.
    """
    declared: Any = config  # which mypy does not take for hashable
    return _find_options(declared, ())


@functools.cache  # every run asks dozens of times
def _find_options(config: type, path: tuple[str, ...]) -> tuple[Option, ...]:
    found: list[Option] = []
    for field in dataclasses.fields(config):
        declared = field.metadata.get(_KEY)
        if declared is not None:
            kind, optional = _kind(field.type)
            found.append(
                Option(
                    name=field.name, path=path, kind=kind, optional=optional, default=field.default, declared=declared
                )
            )
        elif isinstance(field.default_factory, type):
            section: Any = field.default_factory
            found += _find_options(section, (*path, field.name))
        else:
            raise TypeError(
                f"{config.__name__}.{field.name} is no option; declare it with option(), or make it a section: "
                "default_factory=ITS_CLASS"
            )
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{config.__name__}: {', '.join(sorted(twice))} stand in two sections; expected names of one")
    return tuple(found)


def _kind(annotation: Any) -> tuple[type, bool]:
    """The type of a field, and whether it may be None."""
    if isinstance(annotation, types.UnionType):
        (kind,) = (part for part in annotation.__args__ if part is not types.NoneType)
        return _kind(kind)[0], True
    return typing.get_origin(annotation) or annotation, False


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest names, in whichever case, or nothing where none is near."""
    near = near_names(name, known, most=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def refused(one: Option, value: object) -> str:
    """How a message about a wrong value begins: as it is given, by its flag or by --set."""
    return f"{one.flag} {shown(value)}:" if one.declared.flag else f"{one.name} is {shown(value)};"


def check_bounds(values: Any) -> None:
    """Raise OptionError for a number or a choice in a dataclass of options that its declaration does not allow."""
    for one in find_options(type(values)):
        value = getattr(values, one.name)
        if not one.accepts(value):
            raise OptionError(f"{refused(one, value)} expected {one.expected(value)}")
