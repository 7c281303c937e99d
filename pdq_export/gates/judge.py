"""Each gate on what was measured: value, limit, verdict, and how much of the value can be chance."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pdq_export.errors import OptionError, counted, first_few
from pdq_export.gates.asked import Limits, flag
from pdq_export.gates.statistics import (
    agreement_below,
    drop_beyond,
    mcnemar,
    mean_below,
    smallest_agreement,
    smallest_drop,
)
from pdq_export.validate import Agreement, Measurements, MetricValue, Spread

_NOTICED = 0.05  # p-values from which on a figure is said to be possibly chance, where no confidence is asked for
_MOST_DIGITS = 8
_ROUNDING = 1e-12  # of a difference, in relation to what it is of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A limit and what was found.

    ``option``: as on the command line, with the name of the number where it is a metric's. ``value``: None where an
    output equals FP32's, which no limit of the signal-to-noise ratio refuses, and where there is none, which fails: of
    a latency that could not be measured, of a reference of zeros, and of outputs that cannot be compared. ``unit``: of
    value, limit and ``error``, the standard error, None where none is known. ``p_value``: that the figure is beyond the
    limit by chance. ``told``: the whole in words.
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

    def counts(self, p_value: float | None, smallest: float = 0.0) -> bool:
        """Whether what exceeds a limit is a failure.

        ``smallest``: the p-value that so many images can have at best. Where that tells nothing at this confidence, or
        there is no p-value, the figure counts as it is: what cannot be significant must not pass for that.
        """
        if self.confidence is None or p_value is None:
            return True
        level = 1 - self.confidence / 100
        return p_value < level or smallest >= level

    def chance(self, exceeds: bool, p_value: float | None, smallest: float = 0.0) -> str:
        """What is to be said of a figure beyond its limit that can be chance."""
        if not exceeds:
            return ""
        if self.confidence is None:
            surely = p_value is not None and p_value < _NOTICED
            return "" if surely else "; that can be chance: take more images, or give --confidence 95"
        told = f"significant at {self.confidence:g} %"
        if p_value is None or smallest >= 1 - self.confidence / 100:
            return f"; so few images cannot make it {told}, and it counts as it is: take more"
        return f"; {told}" if self.counts(p_value) else f"; beyond the limit, but not {told}"


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
    p_value, smallest = drop_beyond(changes, limit / 100), smallest_drop(changes.images, limit / 100)
    exceeds, broken = changes.drop > limit, evidence.measured.not_finite
    verb = "falls" if changes.drop >= 0 else "rises"
    chance = evidence.chance(exceeds, p_value, smallest)
    if not chance and changes.drop > 0 and mcnemar(changes) >= _NOTICED:
        chance = "; no more than can be chance"
    beyond = f"; p = {p_value:.2g} for more than {limit:g}" if exceeds else ""
    yield Gate(
        option=flag(option),
        value=changes.drop,
        limit=limit,
        unit="points",
        error=changes.error,
        p_value=p_value,
        passed=not broken and not (exceeds and evidence.counts(p_value, smallest)),
        told=f"top-1 {verb} by {_number(abs(changes.drop), limit)} points, ± {changes.error:.2f} on {changes.images:,} "
        f"images ({changes.lost:,} lost, {changes.gained:,} gained{beyond}){chance}"
        f"{_not_compared(evidence, broken)}",
    )


def _agreement(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit = evidence.limits.section.min_agreement
    assert limit is not None
    yield _of_outputs(evidence, option, limit, "%", _agreement_of)


def _agreement_of(evidence: _Evidence, found: Agreement, limit: float) -> "_Judged | None":
    if found.argmax_agreement is None or found.positions is None:
        return None
    value = 100 * round(found.argmax_agreement * found.positions) / found.positions
    error = None if found.argmax_error is None else 100 * found.argmax_error
    p_value, smallest, exceeds = (
        agreement_below(found, limit / 100),
        smallest_agreement(found, limit / 100),
        value < limit,
    )
    return _Judged(
        value=value,
        order=value,
        error=error,
        p_value=p_value,
        passed=not (exceeds and evidence.counts(p_value, smallest)),
        told=f"{'equal' if found.counted else 'argmax agrees'} {_number(value, limit)} % of the time, "
        f"{_plus_minus(error)}on {counted(found.images, 'image')}",
        chance=evidence.chance(exceeds, p_value, smallest),
    )


def _sqnr(evidence: _Evidence, option: str) -> Iterator[Gate]:
    limit = evidence.limits.section.min_sqnr
    assert limit is not None
    yield _of_outputs(evidence, option, limit, "dB", _sqnr_of)


def _sqnr_of(evidence: _Evidence, found: Agreement, limit: float) -> "_Judged | None":
    if found.counted:
        return None
    value, error, on = found.sqnr_db, found.sqnr_error_db, f"on {counted(found.images, 'image')}"
    if value is None and not found.has_signal:
        told = f"there is no signal, FP32's output is zero (or too large to square) and this one differs, {on}"
        return _Judged(value=None, order=-math.inf, passed=False, told=f"{told}; use --min-agreement, or --metric")
    if value is None:
        return _Judged(value=None, order=math.inf, passed=True, told=f"equals FP32's {on}")
    p_value, exceeds = mean_below(value, error, found.images, limit), value < limit
    return _Judged(
        value=value,
        order=value,
        error=error,
        p_value=p_value,
        passed=not (exceeds and evidence.counts(p_value)),
        told=f"{_number(value, limit)} dB, {_plus_minus(error)}{on}",
        chance=evidence.chance(exceeds, p_value),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judged:
    """One output by one gate; ``order``: the smallest is the worst. The rest as `Gate` has it."""

    value: float | None
    order: float
    error: float | None = None
    p_value: float | None = None
    passed: bool
    told: str
    chance: str = ""


def _of_outputs(
    evidence: _Evidence,
    option: str,
    limit: float,
    unit: str,
    judge_one: Callable[[_Evidence, Agreement, float], _Judged | None],
) -> Gate:
    """Every output by itself: the gate fails where one does, or cannot be compared, and tells of the worst of these."""
    outputs, uncompared = evidence.measured.outputs, evidence.measured.uncompared
    found = [(output.name, judge_one(evidence, output.against_float, limit)) for output in outputs]
    judged = [(name, one) for name, one in found if one is not None]
    if not judged and not uncompared:
        raise OptionError(f"{flag(option)} {limit:g}: no output can be judged by it; use another gate, or --metric")
    left = _not_compared(evidence, uncompared)
    if not judged:
        told = f"no output can be judged by it{left}"
        return Gate(option=flag(option), value=None, limit=limit, unit=unit, passed=False, told=told)
    name, worst = min(judged, key=lambda pair: (pair[1].passed, pair[1].order))
    others = [name for name, one in judged if not one.passed and one is not worst]
    return Gate(
        option=flag(option),
        value=worst.value,
        limit=limit,
        unit=unit,
        error=worst.error,
        p_value=worst.p_value,
        passed=worst.passed and not uncompared,
        told=f"output {name!r}: {worst.told}{worst.chance}"
        f"{f'; so do {first_few(list(map(repr, others)))} fail' if others else ''}{left}",
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
    told = "the file has no layer that could run in integers: is it the right one?"
    if floating + integer:
        told = f"{floating} of {floating + integer} layers run in float"
    names = f": {first_few([repr(name) for name in kernels.floating_nodes])}" if floating else ""
    yield Gate(
        option=flag(option),
        value=floating,
        limit=0,
        unit="layers",
        passed=integer > 0 and not floating,
        told=f"{told}{names}",
    )


def _metrics(evidence: _Evidence, option: str) -> Iterator[Gate]:
    known = {value.name: value for value in evidence.metrics}
    evidence.limits.check_metrics(known)
    for name, limit in evidence.limits.metrics[option].items():
        found = known[name]
        rounding = _ROUNDING * max(abs(found.float_value), abs(found.quantized_value))  # 0.8 - 0.7 > 0.1
        value, passed = {
            "min_metric": (found.quantized_value, found.quantized_value >= limit),
            "max_metric": (found.quantized_value, found.quantized_value <= limit),
            "max_metric_drop": (found.drop, found.drop <= limit + rounding),
            "max_metric_rise": (-found.drop, -found.drop <= limit + rounding),
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


def _not_compared(evidence: _Evidence, names: Iterable[str]) -> str:
    """What is to be said of outputs that cannot be compared, which is a failure."""
    told = [f"output {name!r}: {evidence.measured.uncompared[name]}" for name in names]
    return f"; cannot be compared, and fails: {first_few(told)}" if told else ""


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {error:.2f} "


def _number(value: float, limit: float, *, digits: int = 2) -> str:
    """With as many digits as tell it from the limit."""
    while digits < _MOST_DIGITS and value != limit and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}"
