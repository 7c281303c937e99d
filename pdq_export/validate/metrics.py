"""Numbers that users compute of a model's outputs themselves: of detectors, of segmentation, of whatever there is."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import OptionError

Labels = NDArray[np.integer] | None
Outputs = Mapping[str, NDArray[Any] | list[NDArray[Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """What users give: ``function`` is called with outputs and labels, once for each file.

    Outputs by name are arrays [N, ...], or lists with an array for each batch where these cannot be put together;
    labels are [N] or None. All arrays are read-only, as others see the same ones. It returns a number, called ``name``
    then, or {name: number}. A class with update(outputs, labels), called for every batch, and compute(), which returns
    the same, holds no more than it wants to; each file has an instance of its own.
    """

    name: str
    function: Callable[..., Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Metric":
        """Under the function's own name. Raises OptionError for what cannot be called."""
        if not callable(function):
            raise OptionError(f"metric {function!r}: expected a function of outputs and labels")
        return cls(name=getattr(function, "__name__", type(function).__name__), function=function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricValue:
    """What a metric says of both files."""

    name: str
    float_value: float
    quantized_value: float

    @property
    def drop(self) -> float:
        """By how much the quantized file has less."""
        return self.float_value - self.quantized_value


class MetricMeter:
    """Collects the outputs of one ``file`` over batches, and asks all metrics."""

    def __init__(self, metrics: Sequence[Metric], file: str) -> None:
        self._file = file
        self._running = [
            (metric, _called(metric, file, metric.function)) for metric in metrics if _is_running(metric.function)
        ]
        self._functions = [metric for metric in metrics if not _is_running(metric.function)]
        self._outputs: dict[str, list[NDArray[Any]]] = {}
        self._labels: list[NDArray[np.integer]] = []
        self._sizes: list[int] = []

    def update(self, outputs: Mapping[str, NDArray[Any]], labels: Labels, size: int) -> None:
        """Add one batch of ``size`` samples. Raises OptionError where a metric fails."""
        outputs = {name: _read_only(array) for name, array in outputs.items()}
        labels = None if labels is None else _read_only(labels)
        for metric, running in self._running:
            _called(metric, self._file, running.update, dict(outputs), labels)
        if not self._functions:
            return
        self._sizes.append(size)
        for name, array in outputs.items():
            self._outputs.setdefault(name, []).append(array)
        if labels is not None:
            self._labels.append(labels)

    def result(self) -> dict[str, float]:
        """Every number by name. Raises OptionError where a metric fails, or gives no number, or two the same name."""
        found: dict[str, float] = {}
        given = [(metric, _called(metric, self._file, running.compute)) for metric, running in self._running]
        if self._functions:
            outputs = {name: _joined(arrays, self._sizes) for name, arrays in self._outputs.items()}
            labels = _read_only(np.concatenate(self._labels)) if self._labels else None
            given += [
                (metric, _called(metric, self._file, metric.function, dict(outputs), labels))
                for metric in self._functions
            ]
        for metric, value in given:
            numbers = value if isinstance(value, Mapping) else {metric.name: value}
            for name, number in numbers.items():
                if name in found:
                    raise OptionError(f"metric {metric.name}: gives {name!r}, as another does; expected distinct names")
                found[str(name)] = _number(metric, self._file, name, number)
        return found


def compare_metrics(original: Mapping[str, float], quantized: Mapping[str, float]) -> tuple[MetricValue, ...]:
    """What the metrics say of both files. Raises OptionError where they do not say the same things."""
    if set(original) != set(quantized):
        raise OptionError(
            f"metrics give {', '.join(sorted(original))} of the first file and {', '.join(sorted(quantized))} of the "
            "second; expected the same names"
        )
    return tuple(
        MetricValue(name=name, float_value=value, quantized_value=quantized[name]) for name, value in original.items()
    )


def _is_running(function: Callable[..., Any]) -> bool:
    return inspect.isclass(function) and hasattr(function, "update") and hasattr(function, "compute")


def _joined(arrays: list[NDArray[Any]], sizes: Sequence[int]) -> NDArray[Any] | list[NDArray[Any]]:
    """One array [N, ...] where every batch has a row for each sample, and rows are alike; else what there is."""
    alike = {array.shape[1:] for array in arrays if array.ndim} if all(array.ndim for array in arrays) else set()
    if len(alike) == 1 and all(len(array) == size for array, size in zip(arrays, sizes, strict=True)):
        return _read_only(np.concatenate(arrays))
    return list(arrays)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers: other metrics, and the report's own figures, see them too."""
    seen = array.view()
    seen.flags.writeable = False
    return seen


def _called(metric: Metric, file: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise OptionError(
            f"metric {metric.name}: fails on the outputs of {file}: {type(error).__name__}: {error}{_where(error)}"
        ) from error


def _where(error: BaseException) -> str:
    """The last line of the user's code that an error comes from."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return "" if last is None else f" ({last.tb_frame.f_code.co_filename}, line {last.tb_lineno})"


def _number(metric: Metric, file: str, name: Any, value: Any) -> float:
    told = f"metric {metric.name}: {name} of {file} is"
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{told} {type(value).__name__}; expected the metric to return a number, or a dict of numbers by name"
        ) from error
    if not math.isfinite(number):
        raise OptionError(f"{told} {number}; expected a finite number")
    return number
