"""A sweep: models, and options that change from run to run, as a TOML file asks for them.

The section ``[sweep]`` has ``models``, a list of values for every option that changes, by its name, and under
``[sweep.changes.NAME]`` options that change together. All other sections are those of a configuration, of every run.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdq_export.config.config import Config, check_name, checked, flatten, make_config, options_of, overrides
from pdq_export.config.method import LEFT_OUT, CalibrationOptions, choose_options, with_effect
from pdq_export.config.option import Option, shown
from pdq_export.config.toml import TomlFile, read_toml, read_value
from pdq_export.errors import OptionError

_SECTION, _MODELS, _CHANGES = "sweep", "models", "changes"
OWN = ("overwrite", "resume", "work_dir")  # options that a sweep settles itself, besides what names a file to write


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep: a ``model``'s path and a configuration.

    ``varied``: the options that change, by name, without those that have no effect here. ``change``: the name of the
    options that change together, "" for none of them.
    """

    model: str
    varied: Mapping[str, Any]
    change: str
    config: Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run: every model, with every combination of values, with every change and without.

    ``base``: options of all runs by name; ``axes``: the values of those that change; ``changes``: by name, options that
    win over both. ``strict``: whether an option without effect in any run is refused. Raises OptionError for an unknown
    option, one that is the sweep's own, and a value that its option does not take.
    """

    models: tuple[str, ...]
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    strict: bool = True

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or (self.strict and not values):
                raise OptionError(f"{name} is {shown(values)}; expected a list of values, one for each run")
            if name in self.base:
                raise OptionError(f"{name} is given for all runs as well; expected it in one place")
        axes = {name: tuple(_taken({name: value})[name] for value in values) for name, values in self.axes.items()}
        object.__setattr__(self, "base", _taken(self.base))
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "changes", {change: _taken(options) for change, options in self.changes.items()})

    def runs(self) -> tuple[SweepRun, ...]:
        """All runs, each once: what has no effect in one, such as the seed of rounding to nearest, is left out of it.

        And what asks for something that its method leaves out. Raises OptionError for numbers of the method without
        effect in any of them.
        """
        found: dict[str, SweepRun] = {}
        effective: set[str] = set()
        for model, values in itertools.product(self.models, itertools.product(*self.axes.values())):
            varied = dict(zip(self.axes, values, strict=True))
            for change, changed in {"": {}, **self.changes}.items():
                given = _with_effect({**self.base, **varied, **changed})
                effective |= given.keys()
                config = make_config(given)
                shown = {name: value for name, value in varied.items() if name in given and name not in changed}
                run = SweepRun(model=model, varied=shown, change=change, config=config)
                found.setdefault(json.dumps([model, settled(config)], sort_keys=True), run)
        asked = {*self.base, *self.axes, *(name for changed in self.changes.values() for name in changed)}
        if self.strict and (idle := sorted(asked - effective)):
            raise OptionError(
                f"{idle[0]} has no effect in any run of the sweep, with its methods, presets and other options; leave "
                "it out, or change those"
            )
        return tuple(found.values())


def settled(config: Config) -> dict[str, Any]:
    """All that decides a run but model and data: options, and every number of the method as far as it is known."""
    given = {
        name: value for name, value in flatten(config).items() if name not in CalibrationOptions.__dataclass_fields__
    }
    method = config.calibration
    chosen = choose_options(method=method.method, preset=method.preset, overrides=overrides(config))
    return {**given, **dataclasses.asdict(chosen)}


def _taken(options: Mapping[str, Any]) -> dict[str, Any]:
    """The values as their options store them. Raises OptionError for what an option or a sweep does not take."""
    known = options_of()
    for name in options:
        check_name(name, known)
        _check_free(name, known, "")
    return {name: checked(known[name], value) for name, value in options.items()}


def _with_effect(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers of the method that have no effect beside all others, or that ask for what the method leaves out.

    ``given``: values that their options take.
    """
    numbers = CalibrationOptions.__dataclass_fields__
    method = make_config({name: value for name, value in given.items() if name not in numbers}).calibration
    fixed = LEFT_OUT[method.method]
    left = {name: value for name, value in given.items() if name not in numbers or fixed.get(name, value) == value}
    # None asks for what holds without it.
    asked = {name: value for name, value in left.items() if name in numbers and value is not None}
    kept = with_effect(asked, method=method.method, preset=method.preset)
    return {name: value for name, value in left.items() if name not in asked or name in kept}


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep from a TOML file.

    Raises OptionError with file and line: for what is wrong in a configuration, a section that is missing, options that
    name a file to write, and values that an option does not take.
    """
    file = read_toml(path, others=(_SECTION,))
    section = file.others.get(_SECTION)
    if not isinstance(section, dict) or _MODELS not in section:
        raise OptionError(
            f'{path}: has no section [sweep] with models; expected one, with models = ["a.onnx", ...] and options that '
            'change, for example bits = ["8/8", "4/4"]'
        )
    for name in file.values:
        _check_free(name, file.options, file.where(name))
    axes = dict(_axes(file, section))
    changes = _read_changes(file, section.get(_CHANGES, {}))
    return Sweep(models=_read_models(file, section[_MODELS]), base=dict(file.values), axes=axes, changes=changes)


def _read_models(file: TomlFile, given: Any) -> tuple[str, ...]:
    where = file.where_stands(_SECTION, _MODELS)
    if not (isinstance(given, list) and given and all(isinstance(model, str) and model for model in given)):
        raise OptionError(f"{where}models are {shown(given)}; expected a list of ONNX files")
    return tuple(dict.fromkeys(given))


def _axes(file: TomlFile, section: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, values in section.items():
        if name in (_MODELS, _CHANGES):
            continue
        where = file.where_stands(_SECTION, name)
        check_name(name, [_MODELS, _CHANGES, *options_of()], f"{where}option ")
        _check_free(name, file.options, where)
        if name in file.values:
            raise OptionError(f"{where}{name} is given for all runs as well; expected it in one place")
        if not isinstance(values, list) or not values:
            raise OptionError(f"{where}{name} is {shown(values)}; expected a list of values, one for each run")
        yield name, tuple(dict.fromkeys(_value(file.options[name], value, where) for value in values))


def _read_changes(file: TomlFile, given: Any) -> dict[str, dict[str, Any]]:
    where = file.where_stands(_SECTION, _CHANGES)
    if not isinstance(given, dict) or not all(isinstance(options, dict) and options for options in given.values()):
        raise OptionError(f"{where}changes are {shown(given)}; expected sections [sweep.changes.NAME] with options")
    for change, options in given.items():
        for name in options:
            at = file.where_stands(_SECTION, _CHANGES, change, name)
            check_name(name, options_of(), f"{at}option ")
            _check_free(name, file.options, at)
    return {
        change: {
            name: _value(file.options[name], value, file.where_stands(_SECTION, _CHANGES, change, name))
            for name, value in options.items()
        }
        for change, options in given.items()
    }


def _value(one: Option, value: Any, where: str) -> Any:
    try:
        return read_value(one, value)
    except OptionError as error:
        raise OptionError(f"{where}{error}") from error


def _check_free(name: str, known: Mapping[str, Option], where: str) -> None:
    if name in known and (known[name].declared.writes or name in OWN):
        raise OptionError(
            f"{where}{name} is the sweep's own, which keeps what comes of each run in its folder; leave it out"
        )
