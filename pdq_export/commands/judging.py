"""What commands that judge a file share: metrics, files to write beside, and the gates themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pdq_export.commands.details import page
from pdq_export.commands.written import is_page, metric_function, side_files
from pdq_export.config.config import Config
from pdq_export.config.gates import GatesSection
from pdq_export.data import Data
from pdq_export.report import Report, to_junit, to_markdown
from pdq_export.validate import Metric, MetricMeter, MetricValue, compare_metrics
from pdq_export.validate.changes import ChangedPredictions, ChangesMeter

Metrics = Sequence[Callable[..., Any]]


def find_metrics(section: GatesSection, functions: Metrics) -> tuple[Metric, ...]:
    """The metrics that the options name, and ``functions``. Raises OptionError for what is no function."""
    named = [Metric(name=text.rpartition(":")[2], function=metric_function(text).find()) for text in section.metric]
    return (*named, *map(Metric.of, functions))


def side_contents(config: Config, report: Report, data: Data | None = None) -> dict[Path, bytes]:
    """What is to be written beside a model, by path; ``data``: of which a page may show some."""
    makers: Mapping[str, Callable[[], bytes]] = {
        "--report": lambda: report.to_json().encode(),
        "--page": lambda: page(report, data),
        "--junit": lambda: to_junit(report),
        "--markdown": lambda: to_markdown(report).encode(),
    }
    asked = side_files(config)
    return {path: makers["--page" if option == "--report" and is_page(path) else option]() for option, path in asked}


class Observed:
    """Metrics and changed classes of two files that are run over the same samples; to be told of every batch.

    ``scores``: the output with classes, None where nobody asks for what changes.
    """

    def __init__(self, metrics: Sequence[Metric], labels: NDArray[Any] | None, scores: str | None = None) -> None:
        self._labels, self._scores, self._changes = labels, scores, ChangesMeter()
        self._meters = [MetricMeter(metrics, file) for file in ("FP32", "the quantized file")]

    def __call__(self, original: Mapping[str, Any], quantized: Mapping[str, Any], samples: slice) -> None:
        labels = None if self._labels is None else self._labels[samples]
        if self._scores is not None and self._scores in original and self._scores in quantized:
            self._changes.update(original[self._scores], quantized[self._scores], labels, samples.start)
        for meter, outputs in zip(self._meters, (original, quantized), strict=True):
            meter.update(outputs, labels, samples.stop - samples.start)

    def result(self) -> tuple[MetricValue, ...]:
        """What the metrics say. Raises OptionError as `MetricMeter` does."""
        original, quantized = (meter.result() for meter in self._meters)
        return compare_metrics(original, quantized)

    def changed(self, classes: Sequence[str] | None = None) -> ChangedPredictions | None:
        """The samples whose class changes; None where nothing was a class. ``classes``: their names."""
        found = self._changes.result()
        return found if found is None or not classes else found.with_names(classes)


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """The samples of each batch."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
