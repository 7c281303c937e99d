"""What a command is to do: options of a file and of the caller as one configuration, checked before any work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdq_export.config.config import Config, check_name, make_config, overrides
from pdq_export.config.method import CalibrationOptions, choose_options
from pdq_export.config.option import INSPECT
from pdq_export.config.toml import read_toml
from pdq_export.data import Preprocess
from pdq_export.errors import OptionError
from pdq_export.gates import NO_LABELS
from pdq_export.plan.rules import PlanOptions
from pdq_export.search.asked import check_inspected, check_search
from pdq_export.targets import find_target

Given = Config | str | Path | None


def settle(config: Given, fields: Mapping[str, Any], *, command: str = "") -> Config:
    """The configuration of a run: ``fields`` win over ``config``, a configuration or the path of a TOML file.

    ``command``: takes only fields of that command. Raises OptionError for what is wrong whatever the model is, with
    file and line where it stands in the file.
    """
    if config is not None and not isinstance(config, Given):
        raise OptionError(f"config is {type(config).__name__}; expected a Config or the path of a TOML file")
    file = None if config is None or isinstance(config, Config) else read_toml(config)
    base = config if isinstance(config, Config) else None if file is None else make_config(file.values)
    settled = make_config(fields, base=base, command=command)
    try:
        check(settled, command=command)
        if command == INSPECT:
            check_inspected(settled, fields)
    except OptionError as error:
        if file is None:
            raise
        for name, value in file.values.items():
            named = str(error).startswith(f"{name} ")  # where it is wrong together with others
            if name not in fields and (named or _wrong(make_config({name: value})) == str(error)):
                raise OptionError(f"{file.where(name)}{error}") from error
        raise
    return settled


def check(config: Config, *, command: str = "") -> None:
    """Raise OptionError for what options say that is wrong, alone or together, whatever the model is.

    ``command``: that is to take them.
    """
    plan_options(config, choose(config))
    target = find_target(config.file.target)
    target.check_runtime(config.file.runtime)
    fewest, shrinks = target.fewest_bits, target.layout.shrinks
    check_search(config, command=command, fewest_bits=fewest, target=target.name, shrinks=shrinks)


def choose(config: Config, **family: str) -> CalibrationOptions:
    """Every number of the method; ``family``: of the network, where it is known. Raises OptionError."""
    method = config.calibration
    return choose_options(method=method.method, preset=method.preset, overrides=overrides(config), **family)


def plan_options(config: Config, chosen: CalibrationOptions) -> PlanOptions:
    """What is asked of the plan, with what the target decides. Raises OptionError."""
    asked = PlanOptions(section=config.plan, per_layer=chosen.per_layer)
    return find_target(config.file.target).settle(asked)


def asked_preprocess(config: Config) -> Preprocess:
    """What the options say of images. Raises DataError for what contradicts itself."""
    return Preprocess.of(vars(config.preprocess), "preprocessing")


def asked_labels(config: Config, labels: Any) -> Any:
    """``labels`` as they are given, or False where those of the data are left out, too.

    Raises OptionError where something needs them.
    """
    if not config.data.no_labels:
        return labels
    if labels is not None and labels is not False:
        raise OptionError("--no-labels: labels are given as well; expected one of them")
    if (most := config.gates.max_drop) is not None:
        raise OptionError(
            f"--max-drop {most:g}: it is judged by labels, and --no-labels leaves them out; expected one of them, "
            f"or {NO_LABELS}"
        )
    return False


def with_method(fields: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """``fields`` and ``options``, which are those of `CalibrationOptions`. Raises OptionError for one given twice."""
    if options is None:
        return dict(fields)
    if not isinstance(options, Mapping):
        raise OptionError(f"options are {type(options).__name__}; expected a mapping of names to values")
    for name in options:
        check_name(name, CalibrationOptions.__dataclass_fields__)
        if name in fields:
            raise OptionError(f"{name} is given twice, by itself and in options; expected it once")
    return {**fields, **options}


def _wrong(config: Config) -> str:
    try:
        check(config)
    except OptionError as error:
        return str(error)
    return ""
