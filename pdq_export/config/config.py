"""All options of a run together, by name: made from what is given, flattened, and told apart from defaults."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pdq_export.config.gates import GatesSection
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import Option, did_you_mean, find_options, refused
from pdq_export.config.search import SearchSection
from pdq_export.config.sections import (
    CalibrationSection,
    DataSection,
    FileSection,
    MethodSection,
    PlanSection,
    PreprocessSection,
    RunSection,
)
from pdq_export.errors import OptionError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every option of a run, in sections; `make_config` makes one from flat names.

    Raises OptionError for a value that its option does not take.
    """

    plan: PlanSection = dataclasses.field(default_factory=PlanSection)
    search: SearchSection = dataclasses.field(default_factory=SearchSection)
    file: FileSection = dataclasses.field(default_factory=FileSection)
    calibration: MethodSection = dataclasses.field(default_factory=CalibrationSection)
    data: DataSection = dataclasses.field(default_factory=DataSection)
    preprocess: PreprocessSection = dataclasses.field(default_factory=PreprocessSection)
    run: RunSection = dataclasses.field(default_factory=RunSection)
    gates: GatesSection = dataclasses.field(default_factory=GatesSection)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            section = getattr(self, field.name)
            kind: Any = field.default_factory
            if not isinstance(section, kind):
                raise OptionError(
                    f"section {field.name} is {type(section).__name__}; expected {kind.__name__}; Config.of takes "
                    "options by name"
                )
            values = {one.name: checked(one, getattr(section, one.name)) for one in find_options(kind)}
            object.__setattr__(self, field.name, dataclasses.replace(section, **values))

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """A configuration with these options, by name, as `quantize` takes them; the others have their defaults.

        Raises OptionError for an unknown name, with the nearest, and for a value that its option does not take.
        """
        return typing.cast(Self, make_config(fields, kind=cls))


def options_of(config: type = Config, *, command: str = "") -> dict[str, Option]:
    """The options of a configuration by name, or those that a command takes."""
    return {one.name: one for one in find_options(config) if not command or command in one.declared.commands}


def flatten(config: Any) -> dict[str, Any]:
    """The values of a configuration by the names of its options."""
    flat: dict[str, Any] = {}
    for one in find_options(type(config)):
        holder = config
        for name in one.path:
            holder = getattr(holder, name)
        flat[one.name] = getattr(holder, one.name)
    return flat


def make_config(
    fields: Mapping[str, Any],
    *,
    base: Config | None = None,
    command: str = "",
    kind: type[Config] | None = None,
) -> Config:
    """A configuration with ``fields``, by name; what they do not give is that of ``base``, or the default.

    ``command``: takes only the options of that command. ``kind``: of the configuration, by default that of ``base``.
    Values may be what Python callers like to give: paths, `BitWidths`, mappings of rules. Raises OptionError for an
    unknown name, with the nearest, and for a wrong value.
    """
    kind = kind or (Config if base is None else type(base))
    given = _checked(fields, options_of(kind, command=command))
    config: Config = nested({**({} if base is None else flatten(base)), **given}, kind)
    return config


def make_section(fields: Mapping[str, Any], kind: type) -> Any:
    """One section of a configuration with ``fields``, by name, as `make_config` takes them. Raises the same."""
    return nested(_checked(fields, options_of(kind)), kind)


def _checked(fields: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    for name in fields:
        check_name(name, known)
    return {name: checked(known[name], value) for name, value in fields.items()}


def check_name(name: object, known: Iterable[str], where: str = "option ") -> None:
    """Raise OptionError, which starts with ``where``, for a name that is not ``known``, with the nearest that is."""
    if name not in (known := list(known)):
        near = did_you_mean(name, known) or f"; expected one of {', '.join(known)}"
        raise OptionError(f"{where}{name!r} is unknown{near}")


def checked(one: Option, value: Any, found: str = "") -> Any:
    """``value`` as the option stores it. Raises OptionError for one that it does not take; ``found``: its beginning."""
    adapted = one.adapted(value)
    if not one.accepts(adapted):
        raise _refused(one, value, found)
    return float(adapted) if one.kind is float and adapted is not None else adapted


def _refused(one: Option, value: Any, found: str = "") -> OptionError:
    found = found or refused(one, value)
    near = did_you_mean(value, one.declared.choices) if isinstance(value, str) else ""
    return OptionError(f"{found} expected {one.expected(value)}{near}")


def nested(flat: Mapping[str, Any], config: type = Config) -> Any:
    """The configuration of flat, checked values; what is not there has its default."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if isinstance(field.default_factory, type):
            fields[field.name] = nested(flat, field.default_factory)
        elif field.name in flat:
            fields[field.name] = flat[field.name]
    return config(**fields)


def overrides(config: Config) -> dict[str, Any]:
    """What was given of `CalibrationOptions`, to win over method, preset and the graph's family."""
    flat = flatten(config)
    return {one.name: flat[one.name] for one in find_options(CalibrationOptions) if flat[one.name] is not None}


def recorded(config: Config) -> dict[str, Any]:
    """What was asked for and has influence on the file, by name, without what is the default."""
    flat = flatten(config)
    return {
        one.name: flat[one.name]
        for one in find_options(type(config))
        if one.declared.recorded and flat[one.name] != one.default
    }
