"""What can be set about calibration: methods, budgets and hyper-parameters, and how a set of options is chosen."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pdq_export.errors import OptionError

OUTPUT_LOSSES = ("auto", "kl", "mse")
_POSITIVE = (
    *("temperature", "lambda_c", "lambda_r", "rounding_lr", "scale_lr", "correction_lr"),
    *("exponent_start", "exponent_end"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Every number of the method, settled; `choose_options` makes one from a method, a preset and a network.

    ``samples``: calibration images used. ``iters``: optimizer steps per block. ``batch_size``: images per step.
    ``per_layer``: every layer is a block of its own (AdaRound). ``learn_rounding``, ``learn_scales``,
    ``prediction_difference``: parts of the method. ``compensate_rounding``: what is undecided after the last step is
    rounded with error compensation instead of one by one (`calibrate.hardening`; not in the paper).
    ``equalize_channels``: before anything else the channels that a depthwise Conv reads are brought to one range, where
    that costs nothing (`graph.passes.equalize`; not in the paper). ``prediction_interval``: the prediction difference
    is taken every so many steps, and then weighs as much more. ``keep_probability``: QDrop's, for elements of
    activations; ``mix_probability``: of an element of a block's input to come from the quantized network.
    ``correction_iters``: steps of distribution correction per batch (0 switches it off). ``temperature``, ``lambda_c``,
    ``lambda_r``, ``rounding_weight``: the paper's T, lambda_c, lambda_r and w (table 6). ``output_loss``: how
    predictions are compared (`losses.prediction_difference`). ``scale_lr`` is at most a hundredth of the scale that it
    changes, and a learned scale stays within a factor of 2 of the searched one.
    """

    samples: int = 1024
    iters: int = 500
    batch_size: int = 32
    seed: int = 0

    per_layer: bool = False
    learn_rounding: bool = True
    learn_scales: bool = True
    compensate_rounding: bool = False
    equalize_channels: bool = False
    prediction_difference: bool = True
    prediction_interval: int = 1
    output_loss: str = "auto"
    keep_probability: float = 0.5
    mix_probability: float = 0.5
    correction_iters: int = 100

    temperature: float = 4.0
    lambda_c: float = 0.02
    lambda_r: float = 0.1
    rounding_weight: float = 0.01

    rounding_lr: float = 3e-3
    scale_lr: float = 4e-5
    correction_lr: float = 1e-3
    warmup: float = 0.2
    exponent_start: float = 20.0
    exponent_end: float = 2.0
    search_samples: int = 256

    def __post_init__(self) -> None:
        smallest = {"samples": 1, "batch_size": 1, "prediction_interval": 1, "search_samples": 1}
        for name in ("iters", "correction_iters", "seed", *smallest):
            if (value := getattr(self, name)) < smallest.get(name, 0):
                raise OptionError(f"{name} is {value}; expected {smallest.get(name, 0)} or more")
        for name in ("keep_probability", "mix_probability", "warmup"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise OptionError(f"{name} is {value}; expected a number from 0 to 1")
        for name in _POSITIVE:
            if not (value := getattr(self, name)) > 0.0 or not math.isfinite(value):
                raise OptionError(f"{name} is {value}; expected a number above 0")
        if not 0.0 <= self.rounding_weight < math.inf:
            raise OptionError(f"rounding_weight is {self.rounding_weight}; expected 0 or a number above")
        if self.output_loss not in OUTPUT_LOSSES:
            raise OptionError(f"output_loss is {self.output_loss!r}; expected one of {', '.join(OUTPUT_LOSSES)}")


# What each method leaves out of PD-Quant; the loop is the same.
_BRECQ: Mapping[str, Any] = {
    "learn_scales": False,
    "prediction_difference": False,
    "keep_probability": 0.0,
    "mix_probability": 1.0,
    "correction_iters": 0,
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "pd-quant": {},
    "qdrop": {"prediction_difference": False, "correction_iters": 0},
    "brecq": _BRECQ,
    "adaround": {**_BRECQ, "per_layer": True},
    "nearest": {
        **_BRECQ,
        "learn_rounding": False,
        "compensate_rounding": False,
        "equalize_channels": False,
        "iters": 0,
    },
}

# PD-Quant, table 6: ResNet, RegNet and MobileNetV2 stand for the families.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "plain": {"temperature": 4.0, "lambda_c": 0.02, "rounding_weight": 0.01},
    "grouped": {"temperature": 4.0, "lambda_c": 0.01, "rounding_weight": 0.01},
    "depthwise": {"temperature": 1.0, "lambda_c": 0.005, "rounding_weight": 0.1},
}

# Few steps need long ones: with the paper's rates most roundings are still undecided after 500 steps. And with the
# paper's lambda_r the predictions for the images at hand are learned by heart (benchmarks/PROFILE.md). "paper" is the
# published budget, with the published rates and lambda_r.
_LONG_STEPS: Mapping[str, Any] = {
    "rounding_lr": 0.1,
    "scale_lr": 4e-4,
    "correction_lr": 4e-3,
    "prediction_interval": 2,
    "lambda_r": 1.0,
    "compensate_rounding": True,
    "equalize_channels": True,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"samples": 256, "iters": 100, "correction_iters": 10, **_LONG_STEPS},
    "balanced": {"samples": 1024, "iters": 200, "correction_iters": 20, **_LONG_STEPS},
    "paper": {"samples": 1024, "iters": 20000, "correction_iters": 500},
}


def choose_options(
    *,
    method: str = "pd-quant",
    preset: str = "balanced",
    family: str = "plain",
    overrides: Mapping[str, Any] | None = None,
) -> CalibrationOptions:
    """The options of a ``preset`` (budget), a network ``family`` (hyper-parameters) and a ``method`` (parts left out).

    ``overrides``: fields of `CalibrationOptions` that win over all three. Raises OptionError for an unknown name, a
    value of the wrong type, or an override that the method would have to ignore.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise OptionError(f"options are {type(overrides).__name__}; expected a mapping of names to values")
    overrides = dict(overrides or {})
    _check_name("method", method, METHODS)
    _check_name("preset", preset, PRESETS)
    _check_name("family", family, FAMILIES)
    fields = {field.name: field for field in dataclasses.fields(CalibrationOptions)}
    for name, value in overrides.items():
        _check_name("option", name, fields)
        overrides[name] = _typed(name, value, type(fields[name].default))
    chosen = CalibrationOptions(**{**PRESETS[preset], **FAMILIES[family], **METHODS[method], **overrides})
    for name, (part, reason) in _NEEDS.items():
        if name in overrides and not part(chosen):
            raise OptionError(
                f"{name} is given, but it has no effect: {reason}, with method {method!r}, preset {preset!r} and the "
                "other options; leave it out, or change that"
            )
    return chosen


def _steps(options: CalibrationOptions) -> bool:
    return options.iters > 0 and (options.learn_rounding or options.learn_scales)


def _rounds(options: CalibrationOptions) -> bool:
    return _steps(options) and options.learn_rounding


def _predicts(options: CalibrationOptions) -> bool:
    return _steps(options) and options.prediction_difference


def _corrects(options: CalibrationOptions) -> bool:
    return _steps(options) and options.correction_iters > 0


_Needed = tuple[Callable[[CalibrationOptions], bool], str]
_OPTIMIZED = "no block is optimized (iters, learn_rounding, learn_scales)"
_ROUNDED: _Needed = (_rounds, "no rounding is learned (iters, learn_rounding)")
_PREDICTED: _Needed = (_predicts, "there is no prediction difference (prediction_difference, iters)")
_CORRECTED: _Needed = (_corrects, "there is no distribution correction (correction_iters, iters)")

# What must hold for an option to have an effect, and why it has none; switching a part off that is off already does
# no harm.
_NEEDS: Mapping[str, _Needed] = {
    "iters": (lambda o: o.iters == 0 or _steps(o), "nothing is learned (learn_rounding, learn_scales)"),
    "learn_rounding": (lambda o: not o.learn_rounding or o.iters > 0, "there are no steps (iters)"),
    "learn_scales": (lambda o: not o.learn_scales or o.iters > 0, "there are no steps (iters)"),
    "prediction_difference": (lambda o: not o.prediction_difference or _steps(o), _OPTIMIZED),
    "correction_iters": (lambda o: o.correction_iters == 0 or _steps(o), _OPTIMIZED),
    **dict.fromkeys(("seed", "batch_size", "keep_probability", "mix_probability"), (_steps, _OPTIMIZED)),
    "compensate_rounding": (lambda o: not o.compensate_rounding or _rounds(o), _ROUNDED[1]),
    **dict.fromkeys(("rounding_lr", "warmup", "exponent_start", "exponent_end"), _ROUNDED),
    "rounding_weight": (lambda o: _rounds(o) and o.warmup < 1.0, "the rounding term is off (iters, warmup)"),
    "scale_lr": (lambda o: _steps(o) and o.learn_scales, "no activation scale is learned (iters, learn_scales)"),
    **dict.fromkeys(("prediction_interval", "lambda_r", "output_loss"), _PREDICTED),
    "temperature": (lambda o: _predicts(o) and o.output_loss != "mse", "predictions are not compared by KL"),
    **dict.fromkeys(("lambda_c", "correction_lr"), _CORRECTED),
}


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise OptionError(f"{what} {name!r} is unknown; expected one of {', '.join(known)}{hint}")


def _typed(name: str, value: Any, kind: type) -> Any:
    """``value`` as ``kind``; texts, as they come from a command line, are read."""
    try:
        if isinstance(value, str) and kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if isinstance(value, str) or (kind is float and type(value) is int):
            return kind(value)
    except (ValueError, KeyError):
        pass
    if type(value) is kind:
        return value
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    raise OptionError(f"option {name} is {value!r}; expected {expected}")
