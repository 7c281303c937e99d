"""What a command is to do: options of a file and of the caller as one configuration, checked before any work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdq_export.config.config import Config, make_config, overrides
from pdq_export.config.method import choose_options
from pdq_export.config.toml import read_toml
from pdq_export.errors import OptionError
from pdq_export.plan.options import PlanOptions
from pdq_export.targets import find_target


def settle(config: Config | str | Path | None, fields: Mapping[str, Any], *, command: str = "") -> Config:
    """The configuration of a run: ``fields`` win over ``config``, a configuration or the path of a TOML file.

    ``command``: takes only fields of that command. Raises OptionError for what is wrong whatever the model is, with
    file and line where it stands in the file.
    """
    if config is not None and not isinstance(config, Config | str | Path):
        raise OptionError(f"config is {type(config).__name__}; expected a Config or the path of a TOML file")
    file = None if config is None or isinstance(config, Config) else read_toml(config)
    base = config if isinstance(config, Config) else None if file is None else make_config(file.values)
    settled = make_config(fields, base=base, command=command)
    try:
        check(settled)
    except OptionError as error:
        if file is None:
            raise
        for name, value in file.values.items():
            named = str(error).startswith(f"{name} ")  # where it is wrong together with others
            if name not in fields and (named or _wrong(make_config({name: value})) == str(error)):
                raise OptionError(f"{file.where(name)}{error}") from error
        raise
    return settled


def check(config: Config) -> None:
    """Raise OptionError for what options say that is wrong, alone or together, whatever the model is."""
    choose_options(method=config.calibration.method, preset=config.calibration.preset, overrides=overrides(config))
    plan_options(config)


def plan_options(config: Config, *, per_layer: bool = False) -> PlanOptions:
    """What is asked of the plan, with what the target decides. Raises OptionError."""
    return find_target(config.file.target).settle(PlanOptions.of(**vars(config.plan), per_layer=per_layer))


def _wrong(config: Config) -> str:
    try:
        check(config)
    except OptionError as error:
        return str(error)
    return ""
