"""The stage of calibration: channels in one range, blocks learned, finished ones kept or taken up."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

from pdq_export.calibrate import BlockProgress, BlockRecord, Calibrated, calibrate
from pdq_export.calibrate.engine import UNLIKE
from pdq_export.commands.keeping import describe_run, kept_blocks
from pdq_export.commands.request import Request
from pdq_export.commands.seen import Seen
from pdq_export.config.method import CalibrationOptions
from pdq_export.fidelity import Fidelity, Reference
from pdq_export.ranks import Ranks
from pdq_export.work import Work, equalize_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """All that calibration takes: ``work`` with channels in one range, ``equalized`` their tensors.

    ``reference``: what the file is compared with in the end; ``seen``: the images of this rank; ``options``: numbers of
    the method.
    """

    request: Request
    work: Work
    equalized: tuple[str, ...]
    reference: Reference
    seen: Seen
    options: CalibrationOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibratedWork:
    """A calibrated network, and what it takes to go on with it: `Ready` but for the images.

    ``records``: by block, how it was done.
    """

    request: Request
    work: Work
    equalized: tuple[str, ...]
    reference: Reference
    options: CalibrationOptions
    calibrated: Calibrated
    records: Mapping[str, BlockRecord]


def make_ready(request: Request, work: Work, fidelity: Fidelity, options: CalibrationOptions) -> Ready:
    """Read the images, and bring channels to one range where that is asked for.

    Apart from `calibrate_ready`, so that callers let go of ``work``, as it was, and ``fidelity`` in between:
    calibration needs the memory.
    """
    seen = Seen.of(work, request.ranks)
    work, equalized = _equalize(work, options, fidelity, seen, request.ranks)
    reference = fidelity.reference()
    return Ready(request=request, work=work, equalized=equalized, reference=reference, seen=seen, options=options)


def calibrate_ready(
    ready: Ready, progress: Callable[[BlockProgress], None], until_end: contextlib.ExitStack
) -> CalibratedWork:
    """Calibrate; ``until_end`` holds what is kept of finished blocks until all of the run is over."""
    request, work, seen = ready.request, ready.work, ready.seen
    asked, how = request.config.file, request.config.run
    run = describe_run(
        name=work.original.name,
        sha256=work.original.sha256,
        prepared=work.prepared,
        plan=work.plan,
        images=seen.digest,
        options=ready.options,
        asked={
            **vars(request.planning.section),
            "target": asked.target,
            "opset": asked.opset,
            "runtime": asked.runtime,
            **({"deterministic": how.deterministic} if request.device.type != "cpu" else {}),
        },
        device=request.device,
    )
    request.ranks.check_same("the model as it is calibrated", run.key.parts["graph"], UNLIKE)
    kept = kept_blocks(run, work.prepared, work_dir=how.work_dir, resume=how.resume, ranks=request.ranks)
    checkpoint = until_end.enter_context(kept)
    calibrated = calibrate(
        work.network,
        work.plan,
        work.prepared.statistics,
        seen.inputs,
        ready.options,
        device=request.device,
        deterministic=how.deterministic,
        max_memory=request.max_memory,
        progress=progress,
        checkpoint=checkpoint,
        ranks=request.ranks,
    )
    return CalibratedWork(
        request=request,
        work=work,
        equalized=ready.equalized,
        reference=ready.reference,
        options=ready.options,
        calibrated=calibrated,
        records=checkpoint.records,
    )


def _equalize(
    work: Work, chosen: CalibrationOptions, fidelity: Fidelity, seen: Seen, ranks: Ranks
) -> tuple[Work, tuple[str, ...]]:
    """The work with channels in one range, where that is asked for, and the tensors concerned."""
    if not chosen.equalize_channels:
        return work, ()
    # What the prepared model computes has to be the file's where the file is compared with it.
    found = equalize_channels(work, seen.inputs, ranks, through_clips=fidelity.reference().file is not None)
    fidelity.check_model(found.exact.model, what="equalizing channels", remedy="--set equalize_channels=false")
    fidelity.check_network(found.work.network, found.exact, work.core.model)
    return found.work, found.tensors
