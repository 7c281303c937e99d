"""A configuration with one option more: what it takes to add one is the field below, and nothing else."""

import dataclasses

from pdq_export.config.config import Config
from pdq_export.config.option import INSPECT, QUANTIZE, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySection:
    flavour: str = option(
        "plain",
        "What it tastes of",
        more="see [Tastes](tastes.md)",
        choices=("plain", "sweet", "salty"),
        commands=(QUANTIZE, INSPECT),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    toy: ToySection = dataclasses.field(default_factory=ToySection)
