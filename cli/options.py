"""Options of the commands, made of the configuration's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pdq_export.config.config import Config, check_name, options_of
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import Option
from pdq_export.config.toml import default_text
from pdq_export.errors import OptionError

from .paths import ConfigPath, ModelPath, OutputPath

Command = TypeVar("Command", bound=Callable[..., Any])
_TYPES = {int: click.INT, float: click.FLOAT}


def pair_arguments(function: Command) -> Command:
    """Give a click command an FP32 file, a quantized one and ``--data``, as ``model``, ``quantized`` and ``data``."""
    decorators = (
        click.argument("model", type=ModelPath(), metavar="FP32.onnx"),
        click.argument("quantized", type=ModelPath("a quantized model"), metavar="QUANT.onnx"),
        click.option(
            "--data",
            required=True,
            metavar="PATH",
            help="Images: .npz, .npy, a folder, or MODULE:FUNCTION, as --eval of quantize takes them.",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def config_options(command: str, config: type = Config) -> Callable[[Command], Command]:
    """Give a click command ``--config`` and the options of ``config`` that the command takes, under their names.

    And ``--unset``, and ``--set`` for those without a flag. What is not given arrives as None or (), see `given`.
    """
    known = options_of(config, command=command)

    def decorate(function: Command) -> Command:
        if not all(one.declared.flag for one in known.values()):
            function = click.option(
                "--set",
                "assignments",
                multiple=True,
                metavar="NAME=VALUE",
                help="Set any other option of the method, e.g. temperature=1; again for more.",
            )(function)
        for one in reversed(known.values()):
            if one.declared.flag:
                function = click_option(one)(function)
        function = click.option(
            "--unset",
            type=Unset(known),
            multiple=True,
            metavar="NAME",
            help="Take the default of an option, whatever the file says; again for more.",
        )(function)
        return click.option(
            "--config",
            "config_file",
            type=ConfigPath(path_type=Path),
            metavar="FILE.toml",
            help="Take options from a file, as pdq-export init writes it; those given here win over it.",
        )(function)

    return decorate


def click_option(one: Option, *, default: str | None = None, help: str | None = None) -> Callable[[Command], Command]:
    """The option on the command line; ``default`` and ``help``: where a command has others."""
    text = f"{help or one.declared.help}{'; again for more' if one.kind is tuple else ''}."
    shown = default_text(one) if default is None else default
    if one.kind is not tuple and shown not in ("off", "none"):
        text += f"  [default: {shown}]"
    if one.kind is bool:
        positive = one.flag.removeprefix("--no-").removeprefix("--")
        off = f"--{positive}" if one.flag.startswith("--no-") else f"--no-{positive}"
        return click.option(f"{one.flag}/{off}", one.name, default=None, help=text)
    return click.option(
        *filter(None, (one.declared.short, one.flag)),
        one.name,
        type=OutputPath() if one.declared.writes else _TYPES.get(one.kind, click.STRING),
        multiple=one.kind is tuple or one.name in _SETS,
        callback=_once if one.name in _SETS else None,
        metavar=one.metavar,
        help=text,
    )


# Of others the last counts, as everywhere: a line is tried again with an option behind it. Of these both may be meant.
_SETS = ("calib", "eval")


def _once(context: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """The value of an option that has one. Raises OptionError for several."""
    if len(values) > 1:
        flag = max(param.opts, key=len)
        told = " and ".join(f"{flag} {value}" for value in values[:2])
        raise OptionError(f"{told}: {flag} is given {len(values)} times; expected it once")
    return values[0] if values else None


# Generic in new releases of click alone.
if TYPE_CHECKING:
    _OptionType = click.ParamType[Option]
else:
    _OptionType = click.ParamType


class Unset(_OptionType):
    """The name of an option, as in ``--unset exclude``."""

    name = "option"

    def __init__(self, known: Mapping[str, Option]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Option:
        """Raise OptionError for a name that the command does not have."""
        if isinstance(value, Option):
            return value
        name = str(value).strip().removeprefix("--").replace("-", "_")
        check_name(name, self._known, f"--unset {value!r}: ")
        return self._known[name]


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments that were given, what --set sets, and the defaults of those that were unset."""
    fields = {name: value for name, value in arguments.items() if value is not None and value != ()}
    assignments = fields.pop("assignments", ())
    for one in fields.pop("unset", ()):
        if one.name in fields:
            raise OptionError(f"--unset {one.name}: {one.flag} is given as well; expected one of them")
        fields[one.name] = one.default
    return fields | _parse_assignments(assignments, fields)


def _parse_assignments(assignments: Sequence[str], given: Mapping[str, Any]) -> dict[str, str]:
    """``NAME=VALUE`` of --set; names and values are checked where all options are."""
    settings: dict[str, str] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise OptionError(f"--set {text!r}: expected NAME=VALUE, for example temperature=1")
        if name not in CalibrationOptions.__dataclass_fields__ and name in (known := options_of()):
            raise OptionError(f"--set {text!r}: {name} is no number of the method; expected {known[name].flag}")
        check_name(name, options_of(CalibrationOptions), f"--set {text!r}: ")
        if name in settings or name in given:
            raise OptionError(f"--set {text!r}: {name} is set twice; give it once")
        settings[name] = value.strip()
    return settings
