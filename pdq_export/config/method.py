"""What can be set about calibration: methods, budgets and hyper-parameters, and how a set of options is chosen."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from pdq_export.config.option import QUANTIZE, SENSITIVITY, check_bounds, did_you_mean, option, shown
from pdq_export.errors import OptionError

OUTPUT_LOSSES = ("auto", "kl", "mse")
PRECISIONS = ("float32", "tf32", "bfloat16")
SENSITIVITY_SAMPLES = 128  # images, the first, that bits are found by
_SHARE: Mapping[str, Any] = {"least": 0, "most": 1, "flag": False}
_POSITIVE: Mapping[str, Any] = {"above": 0, "flag": False}
_PART: Mapping[str, Any] = {"flag": False}
_MANY_BITS = 4
_LONGEST_INTERVAL = 2**62  # within what an option can be


class NoEffectError(OptionError):
    """An option of the method is given that has no effect together with the others; ``name``: which."""

    def __init__(self, name: str, told: str) -> None:
        super().__init__(told)
        self.name = name


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Every number of the method, settled; `choose_options` makes one from a method, a preset and a network.

    The names of T, lambda_c, lambda_r and w are those of the paper's table 6. Raises OptionError for a value that is
    out of bounds.
    """

    samples: int = option(
        1024,
        "Calibration images to use, the first N",
        more="floating-point ones far beyond the range of all others are left out and named",
        least=1,
    )
    iters: int = option(500, "Optimizer steps for each block", least=0)
    # More of them learn the images by heart there: benchmarks/PROFILE.md, "Fewer steps at 4 bits".
    iters_share: float = option(
        1.0,
        "Share of the steps that a block takes in which nothing has fewer than 4 bits",
        more="where a number of steps is given and no share, all blocks take it",
        above=0,
        most=1,
        flag=False,
    )
    correction_iters: int = option(100, "Steps of distribution correction for each batch; 0 switches it off", least=0)
    correction_share: float = option(
        1.0,
        "Share of the steps of distribution correction that a block takes in which nothing has fewer than 4 bits",
        more="where a number of them is given and no share, all blocks take it",
        above=0,
        most=1,
        flag=False,
    )
    seed: int = option(
        0,
        "Seed of everything random",
        more="on one machine's CPU, the same command, seed and number of threads (`OMP_NUM_THREADS`) give the same "
        "file, byte for byte",
        metavar="S",
        least=0,
        commands=(QUANTIZE, SENSITIVITY),
    )
    output_loss: str = option(
        "auto",
        "How predictions are compared: KL over classes, squared error, or auto, by the output's shape",
        choices=OUTPUT_LOSSES,
        commands=(QUANTIZE, SENSITIVITY),
    )
    batch_size: int = option(32, "Images a step", least=1, flag=False)
    search_samples: int = option(256, "Images that scales are searched on", least=1, flag=False)

    per_layer: bool = option(False, "Every layer is a block of its own, as in AdaRound", **_PART)
    learn_rounding: bool = option(True, "Learn whether weights are rounded up or down", **_PART)
    # At most a hundredth of the scale a step, and within a factor of 2 of the searched one.
    learn_scales: bool = option(True, "Learn the scales of activations", **_PART)
    compensate_rounding: bool = option(
        False,
        "Round what is undecided after the last step so that errors make up for each other; not in the paper",
        **_PART,
    )
    equalize_channels: bool = option(
        False, "Bring the channels that a depthwise Conv reads to one range first; not in the paper", **_PART
    )
    prediction_difference: bool = option(True, "Compare the network's predictions, besides the block's output", **_PART)
    prediction_interval: int = option(
        1, "Compare predictions at every so many steps, and weigh them as much more", least=1, flag=False
    )
    prediction_share: float = option(
        1.0,
        "Share of these comparisons that a block makes in which nothing has fewer than 4 bits, weighed as much more",
        more="where an interval is given and no share, all blocks take it",
        above=0,
        most=1,
        flag=False,
    )
    prediction_precision: str = option(
        "float32",
        "What products and convolutions of the rest of the network round their inputs to, while a block learns from "
        "predictions; all numbers that later blocks see are made in float32",
        more="tf32 is of GPUs, and neither has been shown to gain on one yet; see [On a GPU](gpu.md)",
        choices=PRECISIONS,
        flag=False,
    )
    keep_probability: float = option(0.5, "QDrop: share of an activation's elements that stay in float", **_SHARE)
    mix_probability: float = option(0.5, "Share of a block's input that the quantized network computes", **_SHARE)

    capture_step: bool = option(
        False,
        "On a GPU, record the steps of a block as CUDA graphs, so that each is one launch",
        more="not shown on a GPU yet: `python -m benchmarks.gpu` compares it; see [On a GPU](gpu.md)",
        **_PART,
    )

    temperature: float = option(4.0, "T, by which scores are divided before predictions are compared", **_POSITIVE)
    lambda_c: float = option(0.02, "How freely distribution correction moves inputs", **_POSITIVE)
    lambda_r: float = option(0.1, "What the prediction difference is divided by", **_POSITIVE)
    rounding_weight: float = option(0.01, "w, of the term that decides roundings", least=0, flag=False)

    rounding_lr: float = option(3e-3, "Learning rate of roundings", **_POSITIVE)
    scale_lr: float = option(4e-5, "Learning rate of activation scales", **_POSITIVE)
    # A scale of many bits has to move in smaller steps, and a large one in larger ones, than one rate for all is.
    range_lr: float = option(
        0.0,
        "Learning rate of where an activation's range ends, in units of its scale, instead of `scale_lr`",
        more="0, also where that is given, switches it off",
        least=0,
        flag=False,
    )
    correction_lr: float = option(1e-3, "Learning rate of distribution correction", **_POSITIVE)
    warmup: float = option(0.2, "Share of the steps before the rounding term sets in", **_SHARE)
    exponent_start: float = option(20.0, "Exponent of the rounding term at first", **_POSITIVE)
    exponent_end: float = option(2.0, "Exponent of the rounding term at last", **_POSITIVE)

    def __post_init__(self) -> None:
        check_bounds(self)

    def for_block(self, bits: int) -> Self:
        """The options of a block in which what is learned has at least ``bits`` bits, with shares applied."""
        if bits < _MANY_BITS:
            return self
        return dataclasses.replace(
            self,
            iters=math.ceil(self.iters * self.iters_share),
            iters_share=1.0,
            correction_iters=math.ceil(self.correction_iters * self.correction_share),
            correction_share=1.0,
            prediction_interval=math.ceil(min(self.prediction_interval / self.prediction_share, _LONGEST_INTERVAL)),
            prediction_share=1.0,
        )


# Beyond the papers. With the published lambda_r the predictions for the images at hand are learned by heart, and
# comparing them at every second step takes a fifth less time; with 4 bits and more little is seen of them
# (benchmarks/PROFILE.md).
_BEYOND: Mapping[str, Any] = {
    "compensate_rounding": True,
    "equalize_channels": True,
    "lambda_r": 1.0,
    "prediction_interval": 2,
    "prediction_share": 0.5,
}
_BEYOND_OFF: Mapping[str, Any] = {"compensate_rounding": False, "equalize_channels": False}
_BRECQ: Mapping[str, Any] = {
    "learn_scales": False,
    "prediction_difference": False,
    "keep_probability": 0.0,
    "mix_probability": 1.0,
    "correction_iters": 0,
}
# What each method leaves out of `pdq`; the loop is the same. A preset is a budget, with the rates that suit it.
LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    "pdq": {},
    "pd-quant": _BEYOND_OFF,
    "qdrop": {"prediction_difference": False, "correction_iters": 0},
    "brecq": _BRECQ,
    "adaround": {**_BRECQ, "per_layer": True},
    "nearest": {**_BRECQ, **_BEYOND_OFF, "learn_rounding": False, "iters": 0},
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    **{name: {**_BEYOND, **left} for name, left in LEFT_OUT.items()},
    "pd-quant": {**_BEYOND_OFF, "lambda_r": 0.1, "prediction_interval": 1},
}

# PD-Quant, table 6: ResNet, RegNet and MobileNetV2 stand for the families.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "plain": {"temperature": 4.0, "lambda_c": 0.02, "rounding_weight": 0.01},
    "grouped": {"temperature": 4.0, "lambda_c": 0.01, "rounding_weight": 0.01},
    "depthwise": {"temperature": 1.0, "lambda_c": 0.005, "rounding_weight": 0.1},
}

# Few steps need long ones: with the paper's rates most roundings are still undecided after 500 steps
# (benchmarks/PROFILE.md). "paper" is the published budget, with the published rates.
_LONG_STEPS: Mapping[str, Any] = {"rounding_lr": 0.1, "range_lr": 0.03, "correction_lr": 4e-3}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {
        "samples": 256,
        "iters": 100,
        "iters_share": 0.5,
        "correction_iters": 10,
        "correction_share": 0.5,
        **_LONG_STEPS,
    },
    "balanced": {
        "samples": 1024,
        "iters": 200,
        "iters_share": 0.25,
        "correction_iters": 20,
        "correction_share": 0.25,
        **_LONG_STEPS,
    },
    "paper": {"samples": 1024, "iters": 20000, "correction_iters": 500},
}


# What the presets have beside an option, and what switches that off where the option is given.
FOLLOWING: Mapping[str, tuple[str, float]] = {
    "iters": ("iters_share", 1.0),
    "correction_iters": ("correction_share", 1.0),
    "prediction_interval": ("prediction_share", 1.0),
    "scale_lr": ("range_lr", 0.0),
}


def choose_options(
    *,
    method: str = "pdq",
    preset: str = "balanced",
    family: str = "plain",
    overrides: Mapping[str, Any] | None = None,
) -> CalibrationOptions:
    """The options of a ``preset`` (budget and rates), a network ``family`` (hyper-parameters) and a ``method`` (parts).

    ``overrides``: fields of `CalibrationOptions` that win over all three. Raises OptionError for an unknown name, a
    value of the wrong type, and NoEffectError for an override that the method would have to ignore.
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
    taken = {**PRESETS[preset], **FAMILIES[family], **METHODS[method]}
    taken |= {follows: off for name, (follows, off) in FOLLOWING.items() if name in overrides}
    chosen = CalibrationOptions(**{**taken, **overrides})
    for name, (part, reason) in _NEEDS.items():
        if name in overrides and not part(chosen):
            raise NoEffectError(
                name,
                f"{name} is given, but it has no effect: {reason}, with method {method!r}, preset {preset!r} and the "
                "other options; leave it out, or change that",
            )
    return chosen


def with_effect(overrides: Mapping[str, Any], **chosen: str) -> dict[str, Any]:
    """Those of the ``overrides`` that have an effect together; ``chosen``: method, preset and family.

    One at a time is left out, and the others are looked at again. Raises OptionError otherwise, as
    `choose_options` does.
    """
    left = dict(overrides)
    while True:
        try:
            choose_options(**chosen, overrides=left)
        except NoEffectError as error:
            del left[error.name]
        else:
            return left


def _steps(options: CalibrationOptions) -> bool:
    return options.iters > 0 and (options.learn_rounding or options.learn_scales)


def _learns_scales(options: CalibrationOptions) -> bool:
    return _steps(options) and options.learn_scales


def _rounds(options: CalibrationOptions) -> bool:
    return _steps(options) and options.learn_rounding


def _predicts(options: CalibrationOptions) -> bool:
    return _steps(options) and options.prediction_difference


def _corrects(options: CalibrationOptions) -> bool:
    return _steps(options) and options.correction_iters > 0


_Needed = tuple[Callable[[CalibrationOptions], bool], str]
_OPTIMIZED = "no block is optimized (iters, learn_rounding, learn_scales)"
_ROUNDED: _Needed = (_rounds, "no rounding is learned (iters, learn_rounding)")
_FIXED = "no activation scale is learned (iters, learn_scales)"
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
    **dict.fromkeys(("seed", "iters_share", "batch_size", "keep_probability", "mix_probability"), (_steps, _OPTIMIZED)),
    "compensate_rounding": (lambda o: not o.compensate_rounding or _rounds(o), _ROUNDED[1]),
    **dict.fromkeys(("rounding_lr", "warmup", "exponent_start", "exponent_end"), _ROUNDED),
    "rounding_weight": (lambda o: _rounds(o) and o.warmup < 1.0, "the rounding term is off (iters, warmup)"),
    "scale_lr": (lambda o: _learns_scales(o) and o.range_lr == 0, f"{_FIXED}, or range_lr stands for it"),
    "range_lr": (lambda o: o.range_lr == 0 or _learns_scales(o), _FIXED),
    **dict.fromkeys(("prediction_interval", "prediction_share", "lambda_r", "output_loss"), _PREDICTED),
    "prediction_precision": (lambda o: o.prediction_precision == "float32" or _predicts(o), _PREDICTED[1]),
    "capture_step": (lambda o: not o.capture_step or _steps(o), _OPTIMIZED),
    "temperature": (lambda o: _predicts(o) and o.output_loss != "mse", "predictions are not compared by KL"),
    **dict.fromkeys(("correction_share", "lambda_c", "correction_lr"), _CORRECTED),
}


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise OptionError(f"{what} {name!r} is unknown; expected one of {', '.join(known)}{did_you_mean(name, known)}")


def _typed(name: str, value: Any, kind: type) -> Any:
    """``value`` as ``kind``; texts, as they come from a command line, are read."""
    try:
        if isinstance(value, str) and kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if isinstance(value, str) or (kind is float and type(value) is int):
            return kind(value)
    except (ValueError, KeyError, OverflowError):
        pass
    if type(value) is kind:
        return value
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    raise OptionError(f"option {name} is {shown(value)}; expected {expected}")
