"""Each gate on what was measured: value, limit, verdict, and how much of the value can be chance."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from pdq_export.errors import OptionError, first_few
from pdq_export.gates.asked import Limits, flag
from pdq_export.gates.statistics import agreement_below, mcnemar, mean_below
from pdq_export.validate import Agreement, Measurements, MetricValue, Spread

_NOTICED = 0.05  # p-values from which on a figure is said to be possibly chance, where no confidence is asked for
_MOST_DIGITS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A limit and what was found.

    ``option``: as on the command line, with the name of the number where it is a metric's. ``value``: None where an
    output equals FP32's, which no limit of the signal-to-noise ratio refuses, and for a latency that could not be
    measured, which fails. ``unit``: of value, limit and ``error``,
    the standard error, None where none is known. ``p_value``: of the loss by chance, see ``told``, which is the whole
    in words.
    """

    option: str
    value: float | None
    limit: float
    unit: str
    error: float | None = None
    p_value: float | None = None
    passed: bool
    told: str

    @property
    def asked(self) -> str:
        """As it was asked for: --max-drop 1."""
        name, equals, metric = self.option.partition(" ")
        if self.unit == "layers":
            return self.option
        return f"{name} {metric}={self.limit:g}" if equals else f"{name} {self.limit:g}"

    def __str__(self) -> str:
        return f"{self.asked}: {self.told}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evidence:
    limits: Limits
    measured: Measurements
    size_ratio: float
    latency: Spread | None
    metrics: Sequence[MetricValue]

    @property
    def confidence(self) -> float | None:
        return self.limits.section.confidence

    def counts(self, p_value: float) -> bool:
        """Whether what exceeds a limit is a failure."""
        return self.confidence is None or p_value < 1 - self.confidence / 100

    def chance(self, exceeds: bool, p_value: float) -> str:
        """What is to be said of a figure beyond its limit that can be chance."""
        if not exceeds or (self.confidence is None and p_value < _NOTICED):
            return ""
        if self.confidence is None:
            return "; that can be chance: take more images, or give --confidence 95"
        if self.counts(p_value):
            return f"; significant at {self.confidence:g} %"
        return f"; beyond the limit, but not significant at {self.confidence:g} %"


def judge(
    limits: Limits,
    measured: Measurements,
    *,
    size_ratio: float,
    latency: Spread | None = None,
    metrics: Sequence[MetricValue] = (),
) -> tuple[Gate, ...]:
    """Judge every gate that is asked for, in the order of the options.

    ``latency``: the ratio to FP32's, where it was measured. Raises OptionError for a gate that has nothing to judge.
    """
    evidence = _Evidence(limits=limits, measured=measured, size_ratio=size_ratio, latency=latency, metrics=metrics)
    return tuple(gate for option in limits.asked for gate in _JUDGES[option](evidence, option))


def _drop(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit, changes = evidence.limits.section.max_drop, evidence.measured.top1_changes
    assert limit is not None
    if changes is None:
        raise OptionError(f"{flag(option)} {limit:g}: there is no top-1 accuracy; the data need labels")
    p_value, exceeds = mcnemar(changes), changes.drop > limit
    verb = "falls" if changes.drop >= 0 else "rises"
    chance = evidence.chance(exceeds, p_value)
    if not chance and changes.drop > 0 and p_value >= _NOTICED:
        chance = "; no more than can be chance"
    yield Gate(
        option=flag(option),
        value=changes.drop,
        limit=limit,
        unit="points",
        error=changes.error,
        p_value=p_value,
        passed=not (exceeds and evidence.counts(p_value)),
        told=f"top-1 {verb} by {_number(abs(changes.drop), limit)} points, ± {changes.error:.2f} on {changes.images:,} "
        f"images ({changes.lost:,} lost, {changes.gained:,} gained; McNemar's exact test: p = {p_value:.2g}){chance}",
    )


def _agreement(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit = evidence.limits.section.min_agreement
    assert limit is not None
    name, found = _worst(
        evidence, option, limit, lambda x: x.argmax_agreement is not None, lambda x: x.argmax_agreement or 0.0
    )
    assert found.argmax_agreement is not None
    assert found.positions is not None
    value = 100 * round(found.argmax_agreement * found.positions) / found.positions
    error = None if found.argmax_error is None else 100 * found.argmax_error
    p_value, exceeds = agreement_below(found, limit / 100), value < limit
    yield Gate(
        option=flag(option),
        value=value,
        limit=limit,
        unit="%",
        error=error,
        p_value=p_value,
        passed=not (exceeds and evidence.counts(p_value)),
        told=f"output {name!r}: {'equal' if found.counted else 'argmax agrees'} {_number(value, limit)} % of the time, "
        f"{_plus_minus(error)}on {found.images:,} images{_left_out(evidence)}{evidence.chance(exceeds, p_value)}",
    )


def _sqnr(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit = evidence.limits.section.min_sqnr
    assert limit is not None
    name, found = _worst(
        evidence, option, limit, lambda x: not x.counted, lambda x: float("inf") if x.sqnr_db is None else x.sqnr_db
    )
    value, error = found.sqnr_db, found.sqnr_error_db
    p_value = 1.0 if value is None else mean_below(value, error, found.images, limit)
    exceeds = value is not None and value < limit
    told = "equals FP32's" if value is None else f"{_number(value, limit)} dB, {_plus_minus(error)}".rstrip(", ")
    yield Gate(
        option=flag(option),
        value=value,
        limit=limit,
        unit="dB",
        error=error,
        p_value=p_value,
        passed=not (exceeds and evidence.counts(p_value)),
        told=f"output {name!r}: {told.strip()} on {found.images:,} images{_left_out(evidence)}"
        f"{evidence.chance(exceeds, p_value)}",
    )


def _size(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit, value = evidence.limits.section.max_size_ratio, evidence.size_ratio
    assert limit is not None
    told = f"× {_number(value, limit, digits=3)} of FP32's size"
    yield Gate(option=flag(option), value=value, limit=limit, unit="×", passed=value <= limit, told=told)


def _latency(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit, ratio = evidence.limits.section.max_latency_ratio, evidence.latency
    assert limit is not None
    if ratio is None:
        told = "the file was not timed: a warning says why"
        yield Gate(option=flag(option), value=None, limit=limit, unit="×", passed=False, told=told)
        return
    within = ratio.low <= limit <= ratio.high
    chance = "; the limit is within the spread: measure on a quiet machine" if within else ""
    yield Gate(
        option=flag(option),
        value=ratio.median,
        limit=limit,
        unit="×",
        passed=ratio.median <= limit,
        told=f"a call takes × {_number(ratio.median, limit, digits=3)} of FP32's time (half of the rounds: × "
        f"{ratio.low:.3f} to {ratio.high:.3f}){chance}",
    )


def _layers(evidence: _Evidence, option: str) -> Iterator[Gate]:
    kernels = evidence.measured.kernels
    if kernels is None:
        raise OptionError(f"{flag(option)}: the file does not run in onnxruntime")
    floating, integer = sum(kernels.floating.values()), sum(kernels.integer.values())
    names = f": {first_few([repr(name) for name in kernels.floating_nodes])}" if floating else ""
    yield Gate(
        option=flag(option),
        value=floating,
        limit=0,
        unit="layers",
        passed=not floating,
        told=f"{floating} of {floating + integer} layers run in float{names}",
    )


def _metrics(evidence: _Evidence, option: str) -> Iterator[Gate]:
    known = {value.name: value for value in evidence.metrics}
    evidence.limits.check_metrics(known)
    for name, limit in evidence.limits.metrics[option].items():
        found = known[name]
        value, passed = {
            "min_metric": (found.quantized_value, found.quantized_value >= limit),
            "max_metric": (found.quantized_value, found.quantized_value <= limit),
            "max_metric_drop": (found.drop, found.drop <= limit),
            "max_metric_rise": (-found.drop, -found.drop <= limit),
        }[option]
        told = f"{name} is {found.quantized_value:.6g}, FP32's {found.float_value:.6g}"
        if option in ("max_metric_drop", "max_metric_rise"):
            told += f": a {option.rpartition('_')[2]} of {_number(value, limit, digits=4)}"
        yield Gate(option=f"{flag(option)} {name}", value=value, limit=limit, unit="", passed=passed, told=told)


_JUDGES: Mapping[str, Callable[[_Evidence, str], Iterator[Gate]]] = {
    "max_drop": _drop,
    "min_agreement": _agreement,
    "min_sqnr": _sqnr,
    "max_size_ratio": _size,
    "max_latency_ratio": _latency,
    "no_float_layers": _layers,
    **dict.fromkeys(("min_metric", "max_metric", "max_metric_drop", "max_metric_rise"), _metrics),
}


def _worst(
    evidence: _Evidence,
    option: str,
    limit: float,
    fits: Callable[[Agreement], bool],
    value: Callable[[Agreement], float],
) -> tuple[str, Agreement]:
    """The output with the smallest value of those that can be judged."""
    found = [(output.name, output.against_float) for output in evidence.measured.outputs]
    judged = [(name, agreement) for name, agreement in found if fits(agreement)]
    if not judged:
        raise OptionError(
            f"{flag(option)} {limit:g}: no output can be judged by it{_left_out(evidence)}; use another gate, or "
            "--metric"
        )
    return min(judged, key=lambda pair: value(pair[1]))


def _left_out(evidence: _Evidence) -> str:
    left = evidence.measured.uncompared
    return f" (not compared: {first_few([f'{name!r}: {reason}' for name, reason in left.items()])})" if left else ""


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {error:.2f} "


def _number(value: float, limit: float, *, digits: int = 2) -> str:
    """With as many digits as tell it from the limit."""
    while digits < _MOST_DIGITS and value != limit and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}"
