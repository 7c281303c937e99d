"""What commands that judge a file share: metrics, files to write beside, and the gates themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pdq_export.commands.written import metric_function, side_files
from pdq_export.config.config import Config
from pdq_export.config.gates import GatesSection
from pdq_export.report import Report, to_junit, to_markdown
from pdq_export.validate import Metric, MetricMeter, MetricValue, compare_metrics

Metrics = Sequence[Callable[..., Any]]


def find_metrics(section: GatesSection, functions: Metrics) -> tuple[Metric, ...]:
    """The metrics that the options name, and ``functions``. Raises OptionError for what is no function."""
    named = [Metric(name=text.rpartition(":")[2], function=metric_function(text).find()) for text in section.metric]
    return (*named, *map(Metric.of, functions))


def side_contents(config: Config, report: Report) -> dict[Path, bytes]:
    """What is to be written beside a model, by path."""
    makers: Mapping[str, Callable[[], bytes]] = {
        "--report": lambda: report.to_json().encode(),
        "--junit": lambda: to_junit(report),
        "--markdown": lambda: to_markdown(report).encode(),
    }
    return {path: makers[option]() for option, path in side_files(config).items()}


class Observed:
    """The metrics of two files that are run over the same samples; to be told of every batch."""

    def __init__(self, metrics: Sequence[Metric], labels: NDArray[Any] | None) -> None:
        self._labels = labels
        self._meters = [MetricMeter(metrics, file) for file in ("FP32", "the quantized file")]

    def __call__(self, original: Mapping[str, Any], quantized: Mapping[str, Any], samples: slice) -> None:
        labels = None if self._labels is None else self._labels[samples]
        for meter, outputs in zip(self._meters, (original, quantized), strict=True):
            meter.update(outputs, labels, samples.stop - samples.start)

    def result(self) -> tuple[MetricValue, ...]:
        """What the metrics say. Raises OptionError as `MetricMeter` does."""
        original, quantized = (meter.result() for meter in self._meters)
        return compare_metrics(original, quantized)


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """The samples of each batch."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
