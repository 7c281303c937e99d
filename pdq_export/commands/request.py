"""What was asked of `quantize`, checked and settled before any work."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import onnx
import torch

import pdq_export
from pdq_export.calibrate.device import choose_device
from pdq_export.calibrate.memory import parse_size
from pdq_export.commands.settle import Given, choose, plan_options, settle, with_method
from pdq_export.config import record
from pdq_export.config.config import Config
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import QUANTIZE
from pdq_export.data import DataSource, Samples, check_exists, sha256_by_input
from pdq_export.errors import DataError
from pdq_export.graph.save import check_output
from pdq_export.plan import PlanOptions
from pdq_export.report import ModelInfo, versions
from pdq_export.runs import check_root

Model = str | Path | onnx.ModelProto


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """``calib`` and ``eval``: the data themselves, or their paths as ``config`` has them."""

    model: Model
    calib: DataSource
    eval: DataSource | None
    config: Config
    planning: PlanOptions
    device: torch.device
    max_memory: int | None

    @classmethod
    def of(
        cls,
        model: Model,
        config: Given,
        fields: Mapping[str, Any],
        *,
        calib: DataSource | None,
        eval: DataSource | None,
        options: Mapping[str, Any] | None,
    ) -> Self:
        """From the arguments of `quantize`; data given as paths, or in ``config``, become part of the configuration.

        Raises OptionError for wrong options and for files that cannot be written, DataError for missing data.
        """
        given = {name: _path(data) for name, data in (("calib", calib), ("eval", eval)) if data is not None}
        settled = settle(config, {**with_method(fields, options), **given}, command=QUANTIZE)
        calib = settled.data.calib if calib is None else calib
        if calib is None:
            raise DataError("no calibration data: give calib, as data or as a path, here or in the configuration")
        size = settled.run.max_memory
        request = cls(
            model=model,
            calib=calib,
            eval=settled.data.eval if eval is None else eval,
            config=settled,
            planning=plan_options(settled, choose(settled)),
            device=choose_device(settled.run.device),
            max_memory=None if size is None else parse_size(size),
        )
        check_exists(request.calib)
        check_exists(request.eval)
        request._check_files()
        return request

    def _check_files(self) -> None:
        file, work_dir = self.config.file, self.config.run.work_dir
        if work_dir is not None:
            check_root(Path(work_dir))
        if file.output is None and file.report is None:
            return
        check_output(
            file.output,
            overwrite=file.overwrite,
            model=None if isinstance(self.model, onnx.ModelProto) else self.model,
            inputs=tuple(path for path in (self.calib, self.eval) if isinstance(path, str | Path)),
            external=file.external_data,
            report=file.report,
        )

    def options(self, family: str) -> CalibrationOptions:
        """The numbers of the method for a network of this family."""
        return choose(self.config, family=family)

    def made_by(self, model: ModelInfo, samples: Samples, inputs: tuple[str, ...]) -> dict[str, Any]:
        """What a file is made of and by, besides its options; ``inputs``: their names."""
        return made_by(model, sha256_by_input(samples.calibration, inputs), str(self.device))


def settings(config: Config, planning: PlanOptions, chosen: CalibrationOptions, family: str) -> dict[str, Any]:
    """Every option as it was settled, in plain types, for the file's metadata and the report."""
    by_tensor = {"tensor_bits": dict(planning.tensor_bits)} if planning.tensor_bits else {}
    return record.settings(config, chosen, weights=planning.section.weights, family=family, **by_tensor)


def made_by(model: ModelInfo, calibration: Mapping[str, str], device: str) -> dict[str, Any]:
    """What a file is made of and by: ``calibration`` is the SHA-256 of the data by input name."""
    return {
        "model": {"name": model.name, "sha256": model.sha256},
        "calibration": dict(calibration),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def file_metadata(config: Config, settled: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, str]:
    """What a written file says about its own making."""
    return record.metadata(config, settled, made, version=pdq_export.__version__)


def _path(data: DataSource) -> str | Path | None:
    """The path that data are given by, which is part of the configuration; data in memory are not."""
    return data if isinstance(data, str | Path) else None
