"""What was asked of `quantize`, checked and settled before any work."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from pdq_export.calibrate.captured import check_capture
from pdq_export.calibrate.device import choose_device
from pdq_export.calibrate.memory import parse_size
from pdq_export.calibrate.rest import check_precision
from pdq_export.commands.judging import Metrics, find_metrics
from pdq_export.commands.settle import Given, asked_labels, asked_preprocess, choose, plan_options, settle, with_method
from pdq_export.commands.written import check_written
from pdq_export.config.config import Config, make_config
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import QUANTIZE
from pdq_export.data import DataSource, Preprocess, Samples, check_exists
from pdq_export.data.synthetic import asks_synthetic
from pdq_export.errors import DataError, OptionError
from pdq_export.gates import Limits, flag, parse_limits
from pdq_export.plan import PlanOptions
from pdq_export.ranks import ALONE, Ranks
from pdq_export.runs import check_root
from pdq_export.search.asked import asks_smallest
from pdq_export.targets import find_target
from pdq_export.validate import Metric
from pdq_export.work import Model

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """``calib`` and ``eval``: the data themselves, or their paths as ``config`` has them; ``labels``: of the latter.

    ``limits``: of the gates. ``ranks``: the processes that do it together.
    """

    model: Model
    example_input: Any
    calib: DataSource
    eval: DataSource | None
    labels: Any
    preprocess: Preprocess
    config: Config
    planning: PlanOptions
    device: torch.device
    max_memory: int | None
    limits: Limits
    metrics: tuple[Metric, ...]
    ranks: Ranks = ALONE

    @classmethod
    def of(
        cls,
        model: Model,
        config: Given,
        fields: Mapping[str, Any],
        *,
        example_input: Any,
        calib: DataSource | None,
        eval: DataSource | None,
        labels: Any,
        options: Mapping[str, Any] | None,
        metrics: Metrics = (),
        ranks: Ranks = ALONE,
    ) -> Self:
        """From the arguments of `quantize`; data given as paths, or in ``config``, become part of the configuration.

        Raises OptionError for wrong options and for files that cannot be written, DataError for missing data.
        """
        given = {name: _path(data) for name, data in (("calib", calib), ("eval", eval)) if data is not None}
        settled = settle(config, {**with_method(fields, options), **given}, command=QUANTIZE)
        calib = settled.data.calib if calib is None else calib
        if calib is None:
            raise DataError("no calibration data: give calib, as data or as a path, here or in the configuration")
        size, chosen = settled.run.max_memory, choose(settled)
        eval = settled.data.eval if eval is None else eval
        named = find_metrics(settled.gates, metrics)
        limits = parse_limits(settled.gates, metrics=len(named))
        _check_gates(limits, settled, judged=eval is not None)
        request = cls(
            model=model,
            example_input=example_input,
            calib=calib,
            eval=eval,
            labels=asked_labels(settled, labels),
            preprocess=asked_preprocess(settled),
            config=settled,
            planning=plan_options(settled, chosen),
            device=choose_device(settled.run.device, ranks.local_rank),
            max_memory=None if size is None else parse_size(size),
            limits=limits,
            metrics=named,
            ranks=ranks,
        )
        check_precision(chosen.prediction_precision, request.device)
        if chosen.capture_step:
            check_capture(request.device, ranks)
        if asks_smallest(settled) and not ranks.is_alone:
            raise OptionError(
                f"--bits auto --max-drop {settled.gates.max_drop:g}: one process looks for the smallest file; expected "
                f"no torchrun, which has started {ranks.size}; find bits without it (--bits-to FILE), then give them "
                "with --bits-from FILE"
            )
        if not asks_synthetic(request.calib):
            check_exists(request.calib)
        elif asks_smallest(settled):
            raise OptionError(
                f"--bits auto --max-drop {settled.gates.max_drop:g}: images are held back from --calib to choose bits "
                "by, and synthetic ones tell nothing of accuracy; give --calib images, or a budget such as --max-size"
            )
        check_exists(request.eval)
        request._check_files(config)
        return request

    def _check_files(self, given: Given) -> None:
        if not self.ranks.is_first:
            return
        work_dir = self.config.run.work_dir
        if work_dir is not None:
            check_root(Path(work_dir))
        data = [self.eval] if asks_synthetic(self.calib) else [self.calib, self.eval]
        check_written(self.config, model=self.model, data=data, others=[given], makes_model=True)

    def planned_as(self, config: Config) -> "Request":
        """The same with another configuration of the plan."""
        return dataclasses.replace(self, config=config, planning=plan_options(config, choose(config)))

    def calibrating(self, samples: Samples, asked: int) -> "Request":
        """The same with as many calibration images as there are once some are held back; ``asked``: before."""
        assert samples.held is not None
        count = len(samples.calibration) + len(samples.left_out)
        logger.info(
            "%s: calibration sees the first %d images; %d others are held back to choose bits by",
            samples.calibration.source,
            count,
            len(samples.held),
        )
        return self if count == asked else self.planned_as(make_config({"samples": count}, base=self.config))

    def options(self, family: str) -> CalibrationOptions:
        """The numbers of the method for a network of this family."""
        return choose(self.config, family=family)


def _check_gates(limits: Limits, config: Config, *, judged: bool) -> None:
    """Raise OptionError for gates that say nothing of the file; ``judged``: whether there are images to judge on."""
    target = config.file.target
    if limits.of_accuracy and not judged:
        raise OptionError(
            f"{flag(limits.of_accuracy[0])}: there are no evaluation images, and on those of calibration a file looks "
            "better than it is; expected --eval PATH, with images that are not among those of --calib"
        )
    if not find_target(target).in_onnxruntime:
        for option in ("max_latency_ratio", "no_float_layers"):
            if option in limits.asked:
                raise OptionError(
                    f"{flag(option)}: files for --target {target} do not run in onnxruntime; expected a gate of "
                    "accuracy or size, or another target"
                )


def _path(data: DataSource) -> str | Path | None:
    """The path that data are given by, which is part of the configuration; data in memory are not."""
    return data if isinstance(data, str | Path) else None
