"""What is asked of a file, checked before anything is measured."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from pdq_export.config.gates import GatesSection
from pdq_export.errors import OptionError

OF_METRICS = ("min_metric", "max_metric", "max_metric_drop", "max_metric_rise")
# Figures that calibration makes better on its own images than they are.
OF_ACCURACY = ("max_drop", "min_agreement", "min_sqnr", *OF_METRICS)
NO_LABELS = "--min-agreement or --min-sqnr, which need none"
_SCORES = (2, 4)  # axes of outputs that have classes along axis 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """A section of gates whose limits of metrics are read: ``metrics`` has, by option, {name: limit}."""

    section: GatesSection
    metrics: Mapping[str, Mapping[str, float]]

    @property
    def asked(self) -> tuple[str, ...]:
        """The options that ask for something."""
        section = self.section
        plain = ("max_drop", "min_agreement", "min_sqnr", "max_size_ratio", "max_latency_ratio")
        return (
            *(name for name in plain if getattr(section, name) is not None),
            *(["no_float_layers"] if section.no_float_layers else []),
            *(name for name in OF_METRICS if self.metrics[name]),
        )

    @property
    def of_accuracy(self) -> tuple[str, ...]:
        """Those that are judged on images."""
        return tuple(name for name in self.asked if name in OF_ACCURACY)

    @property
    def of_outputs(self) -> tuple[str, ...]:
        """Those that are judged on figures of outputs, with an error: all of accuracy but those of metrics."""
        return tuple(name for name in self.of_accuracy if name not in OF_METRICS)

    def check_metrics(self, names: Iterable[str]) -> None:
        """Raise OptionError for a limit of a number that no metric gives."""
        names = list(names)
        for option, limits in self.metrics.items():
            for name, limit in limits.items():
                if name not in names:
                    raise OptionError(
                        f"{flag(option)} {name}={limit:g}: no metric gives {name!r}; expected one of "
                        f"{', '.join(names) or 'none: --metric is not given'}"
                    )

    def check_labels(self, source: str, *, labelled: bool, instead: str = NO_LABELS) -> None:
        """Raise OptionError for a limit that needs labels where there are none; ``source``: of the data.

        ``instead``: what to use where there are no labels to add.
        """
        if self.section.max_drop is not None and not labelled:
            raise OptionError(
                f"--max-drop {self.section.max_drop:g}: {source} has no labels; expected one for each image; add them, "
                f"or use {instead}"
            )


def parse_limits(section: GatesSection, *, metrics: int) -> Limits:
    """Read the limits; ``metrics``: how many metrics there are. Raises OptionError for what cannot be judged."""
    limits = Limits(section=section, metrics={option: _read(option, getattr(section, option)) for option in OF_METRICS})
    if not metrics:
        limits.check_metrics(())
    if section.min_agreement is not None and 0 < section.min_agreement <= 1:
        raise OptionError(
            f"--min-agreement {section.min_agreement:g}: expected a share in percent; did you mean "
            f"{100 * section.min_agreement:g}?"
        )
    if section.confidence is not None and not limits.of_outputs:
        raise OptionError(
            f"--confidence {section.confidence:g}: there is no gate that it is for; give --max-drop, --min-agreement "
            "or --min-sqnr, or leave it out"
        )
    if section.junit is not None and not limits.asked:
        raise OptionError(f"--junit {section.junit}: there is no gate to tell of; give one, for example --max-drop 1")
    return limits


def check_outputs(limits: Limits, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise OptionError for a gate that none of these outputs, of one batch of FP32, can be judged by."""
    if limits.section.min_agreement is not None and not any(
        x.dtype.kind != "f" or (x.ndim in _SCORES and x.shape[1] > 1) for x in outputs.values()
    ):
        raise _unjudged(limits, "min_agreement", outputs, "classes, [N, classes] or [N, classes, H, W]", "--min-sqnr")
    if limits.section.min_sqnr is not None and all(x.dtype.kind != "f" for x in outputs.values()):
        raise _unjudged(limits, "min_sqnr", outputs, "a float type", "--min-agreement")


def _unjudged(
    limits: Limits, option: str, outputs: Mapping[str, NDArray[Any]], expected: str, other: str
) -> OptionError:
    told = ", ".join(f"{name!r} {x.dtype} {list(x.shape)}" for name, x in outputs.items())
    return OptionError(
        f"{flag(option)} {getattr(limits.section, option):g}: the outputs are {told}; expected one of {expected}; use "
        f"{other}, or --metric"
    )


def flag(option: str) -> str:
    """An option as on the command line."""
    return f"--{option.replace('_', '-')}"


def _read(option: str, texts: Sequence[str]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        name = name.strip()
        if not equals or not name or not math.isfinite(limit):
            raise OptionError(f"{flag(option)} {text!r}: expected NAME=VALUE, a number, for example mean_iou=0.7")
        if name in limits:
            raise OptionError(f"{flag(option)} {text!r}: {name} is given twice; give it once")
        limits[name] = limit
    return limits
