"""How a file came to be, as its metadata and the report tell it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

import pdq_export
from pdq_export.calibrate import BlockRecord, Calibrated
from pdq_export.calibrate.ramps import with_fitted_ramps
from pdq_export.commands.request import Request
from pdq_export.config import record
from pdq_export.config.config import Config
from pdq_export.config.method import CalibrationOptions
from pdq_export.data import sha256_by_input
from pdq_export.plan import PlanOptions
from pdq_export.plan.summary import summarize_layers
from pdq_export.report import BlockCourse, ModelInfo, Report, versions
from pdq_export.targets import find_target
from pdq_export.validate import Measurements
from pdq_export.work import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making:
    """``model``: what a file is made of. ``settled``: every option, as it was settled. ``made_by``: see `made_by`."""

    config: Config
    model: ModelInfo
    settled: Mapping[str, Any]
    made_by: Mapping[str, Any]

    @classmethod
    def of(cls, request: Request, work: Work, chosen: CalibrationOptions, equalized: Sequence[str] = ()) -> Self:
        """Of a run with the numbers ``chosen``; ``equalized``: tensors with channels in one range."""
        model = work.info
        calibration = sha256_by_input(work.samples.calibration, work.index.inputs)
        return cls(
            config=request.config,
            model=model,
            settled=settings(request.config, request.planning, chosen, work.family),
            made_by=made_by(
                model,
                calibration,
                str(request.device) if request.ranks.is_alone else request.device.type,
                work.samples.synthesis,
                equalized,
                deterministic=request.config.run.deterministic,
                ranks=request.ranks.size,
            ),
        )

    def metadata(self) -> dict[str, str]:
        """What the written file says."""
        return file_metadata(self.config, self.settled, self.made_by)

    def report(
        self,
        measured: Measurements,
        work: Work,
        calibrated: Calibrated,
        *,
        weight_bytes: Mapping[str, int],
        records: Mapping[str, BlockRecord],
        settings: Mapping[str, Any],
        **run: Any,
    ) -> Report:
        """The report on what was measured of the file; ``settings``: what else was settled; ``run``: further fields.

        ``weight_bytes``: of the file, by weight. ``records``: how blocks were calibrated.
        """
        weights = {layer.node: layer.weight for layer in (*work.plan.layers, *work.plan.excluded)}
        target, plan = find_target(self.config.file.target), with_fitted_ramps(work.plan, calibrated.tensors)
        return Report.of(
            measured,
            model=self.model,
            layers=tuple(
                {**dataclasses.asdict(layer), "weight_bytes": weight_bytes.get(weights.get(layer.node, ""))}
                for layer in summarize_layers(work.index, work.plan)
            ),
            blocks=tuple(
                BlockCourse.of(name, record.losses.tolist(), record.seconds) for name, record in records.items()
            ),
            floating=tuple(dataclasses.asdict(node) for node in target.find_floating(work.index, plan)),
            predictions=calibrated.predictions,
            settings={
                **self.settled,
                **settings,
                "device": self.made_by["device"],
                "asked": record.asked(self.config),
                "made_by": self.made_by,
                **work.samples.settings(),
            },
            **run,
        )


def settings(config: Config, planning: PlanOptions, chosen: CalibrationOptions, family: str) -> dict[str, Any]:
    """Every option as it was settled, in plain types, for the file's metadata and the report."""
    decided = {"weights": planning.section.weights, "first_last": str(planning.first_last), "family": family}
    return record.settings(config, chosen, **decided)


def made_by(
    model: ModelInfo,
    calibration: Mapping[str, str],
    device: str,
    synthesis: Mapping[str, Any] | None = None,
    equalized: Sequence[str] = (),
    *,
    deterministic: bool = False,
    ranks: int = 1,
) -> dict[str, Any]:
    """What a file is made of and by: ``calibration`` is the SHA-256 of the data by input name.

    ``synthesis``: how these data were made, where they were. ``equalized``: tensors that do not have FP32's values, but
    those times a factor for each channel, which no measurement tells from errors of few bits. ``deterministic``: of a
    GPU, whether its kernels give the same bits each time, as a CPU's do. ``ranks``: processes that calibrated together,
    said where there were several: another number of them adds in another order.
    """
    of_gpu = {} if device == "cpu" else {"deterministic": deterministic}
    return {
        "model": {"name": model.name, "sha256": model.sha256},
        "calibration": dict(calibration),
        **({} if synthesis is None else {"synthesis": dict(synthesis)}),
        **({record.EQUALIZED: list(equalized)} if equalized else {}),
        "device": device,
        **of_gpu,
        **({"ranks": ranks} if ranks > 1 else {}),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def file_metadata(config: Config, settled: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, str]:
    """What a written file says about its own making."""
    return record.metadata(config, settled, made, version=pdq_export.__version__)
