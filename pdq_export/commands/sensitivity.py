"""`sensitivity`: what quantizing each tensor alone does to the prediction, kept so that it is measured once."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pdq_export.calibrate import Source
from pdq_export.calibrate.device import choose_device
from pdq_export.calibrate.memory import parse_size
from pdq_export.calibrate.precision import settled_torch
from pdq_export.commands.keeping import run_of, run_parts
from pdq_export.commands.progress import ProgressCallback, Tell
from pdq_export.commands.seen import digest_images
from pdq_export.commands.settle import asked_preprocess, choose, plan_options, settle
from pdq_export.config.config import Config
from pdq_export.config.method import SENSITIVITY_SAMPLES, CalibrationOptions
from pdq_export.config.option import SENSITIVITY
from pdq_export.config.signature import takes_options
from pdq_export.data import DataSource, check_exists, read_samples
from pdq_export.data.synthetic import SYNTHETIC, asks_synthetic
from pdq_export.errors import CheckpointError, DataError, OptionError, PdqError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.report.sensitivity import SensitivityReport
from pdq_export.runs import Run, RunFolder, RunKey, check_root, default_root, open_run
from pdq_export.search.asked import tried_widths
from pdq_export.search.groups import find_groups
from pdq_export.search.sensitivity import PROBES, Estimate, measure_sensitivity
from pdq_export.search.stored import read_sensitivity, write_sensitivity
from pdq_export.spec import ALL_BITS, MAX_BITS, Bits, BitWidths, Plan, Role
from pdq_export.spec.sensitivity import Sensitivity
from pdq_export.targets import find_target
from pdq_export.validate import Session
from pdq_export.work import (
    Model,
    PlannedModel,
    Work,
    begin_work,
    calibration_inputs,
    check_work,
    equalize_channels,
    import_planned,
    open_model,
)

logger = logging.getLogger(__name__)

_KEPT = "sensitivity"  # the name under which it lies in its folder


@tells_of_memory(calibrates=True)
@settled_torch()
@takes_options(SENSITIVITY)
def sensitivity(
    model: Model,
    *,
    example_input: Any = None,
    calib: DataSource | None = None,
    samples: int = SENSITIVITY_SAMPLES,
    estimate: Estimate = "fisher",
    pairs: bool = False,
    config: Config | str | Path | None = None,
    progress: ProgressCallback | None = None,
    **fields: Any,
) -> SensitivityReport:
    """What quantizing each weight and each learned activation of an FP32 ONNX CNN alone does to its predictions.

    ``model``, ``example_input``, ``calib`` and ``config`` are as in `quantize`. ``samples``: how many images are taken,
    the first. ``estimate``: "fisher", by the second-order expansion around the FP32 network; or "measured", by running
    the rest of the network for each tensor and width, which takes many times as long. ``pairs``: also what two tensors
    of one block do together; by the expansion alone.

    What was found is kept with what runs keep, and taken from there when the same is asked again. Raises PdqError for
    anything that can be wrong with the model, the data or the options.
    """
    given = {"calib": calib} if isinstance(calib, str | Path) else {}
    settled = settle(config, {**fields, **given}, command=SENSITIVITY)
    source = images_to_measure(settled, calib)
    allowed = tried_widths(settled, fewest_bits=find_target(settled.file.target).fewest_bits)
    how = Asked.of(settled, samples=samples, estimate=estimate, pairs=pairs, allowed=allowed)
    tell = Tell(progress)
    tell.stage("load")
    file, session = open_model(model, example_input)
    tell.stage("plan")
    planned = PlannedModel.of(file, plan_options(settled, choose(settled)), settled.file)
    work = begin_measuring(planned, session, settled, source, samples, tell)
    del session
    found = find_sensitivity(work, choose(settled, family=work.family), how, tell)
    return SensitivityReport.of(found, work.plan, model=work.info, calibration=str(work.samples.calibration))


def images_to_measure(config: Config, calib: DataSource | None) -> DataSource:
    """The images that were given, in memory or with the configuration. Raises DataError where there are none."""
    source = config.data.calib if calib is None else calib
    if source is None:
        raise DataError("no calibration data: give calib, as data or as a path, here or in the configuration")
    if asks_synthetic(source):
        raise DataError(
            f"--calib {SYNTHETIC}: images are made for quantize alone; expected images that there are: --calib PATH (a "
            f"file of that name is ./{SYNTHETIC})"
        )
    check_exists(source)
    return source


def begin_measuring(
    planned: PlannedModel, session: Session, config: Config, source: DataSource, samples: int, tell: Tell
) -> Work:
    """A planned model with the first images, checked against its file, of which there is a ``session``."""
    network = import_planned(planned)
    tell.stage("read")
    read = read_samples(
        source,
        None,
        planned.inputs,
        samples,
        told=lambda done, total: tell.images("read", done, total),
        labels=False,  # nothing is said of them
        preprocess=asked_preprocess(config),
    )
    work = begin_work(planned, network, read)
    tell.stage("check")
    check_work(work, work.fidelity(session))
    return work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """How sensitivities are to be found: ``widths`` that the target has, in order, and where they are kept."""

    widths: tuple[Bits, ...]
    samples: int
    estimate: Estimate
    pairs: bool
    symmetric_weights: bool
    device: torch.device
    max_memory: int | None
    work_dir: str | None

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        samples: int = SENSITIVITY_SAMPLES,
        allowed: Sequence[Bits] = ALL_BITS,
        estimate: Estimate = "fisher",
        pairs: bool = False,
    ) -> "Asked":
        """Checked, before any work; ``allowed``: widths to try, where the target has them. Raises OptionError."""
        if type(samples) is not int or samples < 1:
            raise OptionError(f"--samples {samples!r}: expected a whole number, 1 or more")
        if estimate not in ("fisher", "measured"):
            raise OptionError(f"--estimate {estimate!r}: expected fisher or measured")
        if pairs and estimate != "fisher":
            raise OptionError(f"--pairs: --estimate {estimate} measures no pairs; expected --estimate fisher")
        fewest = find_target(config.file.target).fewest_bits
        work_dir, size = config.run.work_dir, config.run.max_memory
        if work_dir is not None:
            check_root(Path(work_dir))
        return cls(
            widths=tuple(width for width in allowed if width >= fewest),
            samples=samples,
            estimate=estimate,
            pairs=pairs,
            symmetric_weights=plan_options(config, choose(config)).symmetric_weights,
            device=choose_device(config.run.device),
            max_memory=None if size is None else parse_size(size),
            work_dir=work_dir,
        )


def find_sensitivity(work: Work, chosen: CalibrationOptions, asked: Asked, tell: Tell) -> Sensitivity:
    """The sensitivity of a model whose channels are not equalized yet, measured or as it was kept.

    It is of the first ``asked.samples`` images, and of the model with channels equalized where ``chosen`` says so: who
    calibrates on more images finds what was kept. Raises what `measure_sensitivity` raises.
    """
    images = dataclasses.replace(work.samples, calibration=work.samples.calibration.head(asked.samples))
    work = dataclasses.replace(work, samples=images)
    inputs = calibration_inputs(work)
    if chosen.equalize_channels:
        work = equalize_channels(work, inputs).work
    run = _describe(work, inputs, chosen, asked)
    folder = _open(run, asked.work_dir)
    if folder is None:
        return _measure(work, inputs, chosen, asked, tell)
    with folder:
        if (kept := _kept(folder)) is not None:
            logger.info("the sensitivity of this model on these images was found before: %s", folder.path)
            return kept
        found = _measure(work, inputs, chosen, asked, tell)
        try:
            folder.save(0, _KEPT, "{}", write_sensitivity(found))
        except (PdqError, OSError, ValueError) as error:
            logger.warning("the sensitivity is not kept: %s", error)
        return found


def _measure(
    work: Work, inputs: Sequence[torch.Tensor | Source], chosen: CalibrationOptions, asked: Asked, tell: Tell
) -> Sensitivity:
    tell.stage("sensitivity")
    return measure_sensitivity(
        work.network,
        work.plan,
        find_groups(work.core, work.plan),
        inputs,
        chosen,
        device=asked.device,
        symmetric_weights=asked.symmetric_weights,
        widths=asked.widths,
        estimate=asked.estimate,
        pairs=asked.pairs,
        max_memory=asked.max_memory,
        progress=lambda at: tell.block(at, stage="sensitivity"),
        told=lambda done, total: tell.images("sensitivity", done, total),
    )


def _describe(work: Work, inputs: Sequence[torch.Tensor | Source], chosen: CalibrationOptions, asked: Asked) -> Run:
    """The key: all that the result depends on, which the planned bits are not part of."""
    settings = {
        "widths": ",".join(map(str, asked.widths)),
        "estimate": asked.estimate,
        "pairs": asked.pairs,
        "probes": PROBES,
        "symmetric_weights": asked.symmetric_weights,
        "search_samples": chosen.search_samples,
        "output_loss": chosen.output_loss,
        "seed": chosen.seed,
    }
    parts = run_parts(work.prepared, _without_bits(work.plan), digest_images(inputs), settings, asked.device)
    key = RunKey(parts={"kind": _KEPT, "model": work.original.sha256, **parts})
    return run_of(work.original.name, key, work.plan, kind="pdq-export sensitivity", blocks=1)


def _without_bits(plan: Plan) -> Plan:
    """The plan as if everything that may have other bits had 8."""
    points = {
        name: point if point.role is Role.CARRIER else point.with_bits(MAX_BITS) for name, point in plan.points.items()
    }
    return dataclasses.replace(plan, points=points, bits=BitWidths(MAX_BITS, MAX_BITS))


def _open(run: Run, work_dir: str | None) -> RunFolder | None:
    """Where it is kept; None, with a warning, where that is nowhere."""
    try:
        return open_run(default_root() if work_dir is None else Path(work_dir), run, resume=True)
    except (OptionError, CheckpointError) as error:
        logger.warning("the sensitivity is not kept: %s", error)
        return None


def _kept(folder: RunFolder) -> Sensitivity | None:
    """What an earlier run has kept; None, with a warning, where it is damaged."""
    try:
        lines = folder.load(0, _KEPT)
        return None if lines is None else read_sensitivity(lines[1])
    except (CheckpointError, ValueError) as error:
        logger.warning("what was kept cannot be read, and is found again: %s", error)
        return None
