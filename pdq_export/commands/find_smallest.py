"""The stage of `--bits auto --max-drop`: the smallest file that keeps it on images held back from calibration."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pdq_export.calibrate import BlockProgress
from pdq_export.commands.calibrating import CalibratedWork
from pdq_export.commands.evaluate import measure_simulation
from pdq_export.commands.find_bits import Finder
from pdq_export.commands.progress import Tell
from pdq_export.commands.search import Found
from pdq_export.config.config import Config
from pdq_export.data import Data, Samples
from pdq_export.errors import OptionError
from pdq_export.fidelity import Reference
from pdq_export.search.allotment import Allotment
from pdq_export.search.goal import ATTEMPTS, Attempt, Goal, Proposal, fewest_images, reach, tolerable_loss
from pdq_export.spec.step import Step
from pdq_export.validate import BATCH_SIZE, Measurements, Session, Top1Changes
from pdq_export.work import Work

logger = logging.getLogger(__name__)

_TELLING = 0.25  # of the blocks: after so many the first calibration's time is told

Calibrate = Callable[[Config, Callable[[BlockProgress], None]], CalibratedWork]


def find_smallest(
    finder: Finder, reference: Reference, calibrate: Calibrate, *, device: torch.device, tell: Tell
) -> tuple[CalibratedWork, Allotment, Found]:
    """The smallest file that keeps --max-drop, calibrated, its bits, and how they compare, with every step.

    ``finder``: of a work whose samples hold images back. ``calibrate``: a configuration with bits for every tensor.
    Raises OptionError for a model without scores of classes.
    """
    work, limit = finder.work, finder.config.gates.max_drop
    held = work.samples.held
    assert held is not None
    assert limit is not None
    if finder.sensitivity.measure == "mse":
        raise OptionError(
            f"--bits auto --max-drop {limit:g}: the first output has no scores of classes, so that no top-1 can be "
            "kept; give a budget, such as --max-size 0.15"
        )
    goal = Goal(limit=limit, labelled=held.labels is not None)
    _tell_held(held, goal)
    search, pace = finder.search(), _Pace(tell)

    def propose(loss: float) -> Proposal[tuple[CalibratedWork, Allotment, Found]]:
        config, allotment, found = finder.smallest(search, loss)
        chosen = found.report.chosen

        def run() -> Attempt[tuple[CalibratedWork, Allotment, Found]]:
            made = calibrate(config, pace.begin())
            measured = measure_simulation(
                made.work,
                made.calibrated,
                made.reference,
                held,
                device=device,
                deterministic=made.request.config.run.deterministic,
                tell=tell,
            )
            changes = find_changes(measured)
            error = max(changes.error, 100 / changes.images)  # that none has changed does not say that none can
            step = Step(
                size=chosen.size,
                loss=chosen.loss,
                avg_weight=chosen.avg_weight,
                drop=changes.drop,
                error=error,
                images=changes.images,
                held=changes.drop <= goal.aim(error),
                bounds=not goal.labelled,
            )
            logger.info("%s", told(step, goal))
            return Attempt(made=(made, allotment, found), step=step)

        return Proposal(size=chosen.size, loss=chosen.loss, calibrate=run)

    scores = _scores(work, reference, held)
    best, steps = reach(goal, tolerable_loss(scores, held.labels, limit / 2), propose)
    if not best.step.held:
        logger.warning(
            "--max-drop %g: none of %d calibrations keeps it on the images held back with its statistical error; the "
            "one that is written loses %s points ± %.2f, %s; %s, or a higher limit",
            limit,
            len(steps),
            best.step.points,
            best.step.error,
            _missed(best.step, goal),
            _more(best.step, goal),
        )
    made, allotment, found = best.made
    report = dataclasses.replace(found.report, steps=steps)
    return made, allotment, dataclasses.replace(found, report=report)


def check_held(limit: float, samples: Samples) -> None:
    """Raise OptionError where so few images are held back that one of them is more than the ``limit``, in points."""
    held = samples.held
    assert held is not None  # they are for this
    found, expected = len(held), fewest_images(limit)
    if found < expected:
        left = found + len(samples.calibration) - expected
        fewer = f", or calibrate on fewer (--samples {left})" if 0 < left < len(samples.calibration) else ""
        raise OptionError(
            f"--bits auto --max-drop {limit:g}: {found} images of {held.source} are held back to judge files by, and "
            f"one of them is {100 / found:.3g} points; expected {expected} or more; add images to --calib{fewer}, "
            f"allow --max-drop {math.ceil(1e4 / found) / 100:g}, or give a budget, such as --max-size 0.15"
        )


def told(step: Step, goal: Goal) -> str:
    """A step in words."""
    what = "top-1 falls by" if goal.labelled else "classes change for"
    unit = "points" if goal.labelled else "%"
    return (
        f"about {step.size:,} bytes, {step.avg_weight:.2f} bits on average: {what} {step.drop:.2f} {unit} "
        f"± {step.error:.2f} on {step.images:,} images held back, {'within' if step.held else 'beyond'} "
        f"{goal.aim(step.error):.2f}"
    )


def find_changes(measured: Measurements) -> Top1Changes:
    """Images that are lost and gained; without labels every one whose class changes counts as lost."""
    if measured.top1_changes is not None:
        return measured.top1_changes
    found = measured.outputs[0].against_float
    assert found.argmax_agreement is not None  # it has scores
    return Top1Changes(images=found.images, lost=round((1 - found.argmax_agreement) * found.images), gained=0)


def _missed(step: Step, goal: Goal) -> str:
    beyond = step.drop - goal.limit
    if beyond > 0:
        return f"{beyond:.2f} more than the limit"
    return f"within the limit, but expected {goal.aim(step.error):.2f} or less"


def _more(step: Step, goal: Goal) -> str:
    if step.drop > goal.limit:
        return "give more images in --calib, or more steps (--iters)"
    return "give more images in --calib, of which more are held back then and tell more"


def _tell_held(held: Data, goal: Goal) -> None:
    if not goal.labelled:
        logger.warning(
            "%s has no labels: of --max-drop the images held back can tell no more than a bound, every image whose "
            "class changes counts as lost, and the file becomes larger than it has to; add labels",
            held.source,
        )
    logger.info("bits are found by at most %d calibrations, each judged on %d images held back", ATTEMPTS, len(held))


def _scores(work: Work, reference: Reference, held: Data) -> NDArray[np.float32]:
    session = Session(reference.content(work.prepared.model), optimize=reference.optimize)
    name, size = work.compared[0], work.batch or BATCH_SIZE
    batches: Any = held.batches(size)
    return np.concatenate([session.run_by_name(batch)[name] for batch in batches])


class _Pace:
    """Tells, from the first blocks of the first calibration, how long all of them take at most."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._begun, self._told = tell, 0.0, False

    def begin(self) -> Callable[[BlockProgress], None]:
        """What is to be told of the progress of the next one."""
        self._begun = time.perf_counter()
        return self

    def __call__(self, at: BlockProgress) -> None:
        self._tell.block(at)
        if not self._told and at.index >= max(1, _TELLING * at.count):
            self._told = True
            each = (time.perf_counter() - self._begun) * at.count / at.index
            logger.info(
                "a calibration takes about %.0f s at the speed of its first blocks: %d of them, at most, %.0f s",
                each,
                ATTEMPTS,
                ATTEMPTS * each,
            )
