"""What can be set about calibration, with the paper's values as defaults."""

import dataclasses

from pdq_export.errors import OptionError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Hyper-parameters of PD-Quant; every part of the method switches off by itself.

    ``samples``: calibration images used. ``iters``: optimizer steps per block. ``batch_size``: images per step.
    ``correction_iters``: steps of distribution correction per batch (0 switches it off). ``temperature``,
    ``lambda_c``, ``lambda_r``, ``rounding_weight``: the paper's T, lambda_c, lambda_r and w (table 6).
    ``keep_probability``: QDrop's, for elements of activations; ``mix_probability``: for elements of a block's input.
    """

    samples: int = 1024
    iters: int = 500
    batch_size: int = 32
    seed: int = 0

    learn_rounding: bool = True
    learn_scales: bool = True
    prediction_difference: bool = True
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
        for name, smallest in (("samples", 1), ("iters", 0), ("batch_size", 1), ("correction_iters", 0), ("seed", 0)):
            if (value := getattr(self, name)) < smallest:
                raise OptionError(f"{name} is {value}; expected {smallest} or more")
        for name in ("keep_probability", "mix_probability", "warmup"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise OptionError(f"{name} is {value}; expected a number from 0 to 1")
        for name in ("temperature", "lambda_c", "lambda_r", "rounding_lr", "scale_lr", "correction_lr"):
            if not (value := getattr(self, name)) > 0.0:
                raise OptionError(f"{name} is {value}; expected a number above 0")
