"""The smallest file that keeps a limit on the drop of accuracy: estimated, calibrated, measured, corrected."""

import dataclasses
import math
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from pdq_export.spec.step import Step

ATTEMPTS = 3  # calibrations, at most
_DRAWS = 8  # of noise
_FARTHEST = 8.0  # times, from one estimated loss to the next: a drop that was measured tells no more
_WORTH = 0.98  # of the size that held: what promises less is not calibrated

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """``limit``: points of top-1 that may be lost. ``labelled``: whether drops are of labelled images.

    Without labels they are bounds: as many as change their class, which grows with the root of the loss.
    """

    limit: float
    labelled: bool

    def aim(self, error: float) -> float:
        """What a drop with this standard error may be: less by the error, but by half at most.

        Where few images tell little, the whole error would leave nothing to allow.
        """
        return max(self.limit - error, self.limit / 2)


def fewest_images(limit: float) -> int:
    """How many images a ``limit``, in points, can be judged by: as many as make one of them no more than it.

    A hundred for a limit of 0, which is of what is lost net.
    """
    return math.ceil(100 / limit - 1e-9) if limit else 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt(Generic[Made]):
    """What was made at a loss, and what became of it."""

    made: Made
    step: Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal(Generic[Made]):
    """An allotment whose loss is within what was asked; ``calibrate`` does the work, and measures."""

    size: int
    loss: float
    calibrate: Callable[[], Attempt[Made]]


def reach(
    goal: Goal, first: float, propose: Callable[[float], Proposal[Made]], attempts: int = ATTEMPTS
) -> tuple[Attempt[Made], tuple[Step, ...]]:
    """The smallest that held, or where none did the smallest within the limit, or the one of the smallest drop; and
    every step.

    ``first``: the estimated loss to begin at. ``propose``: the smallest allotment within an estimated loss, or that of
    the least loss there is. After each step the estimate is corrected by what was measured.
    """
    best: Attempt[Made] | None = None
    steps: list[Step] = []
    asked = first
    for _ in range(attempts):
        proposal = propose(asked)
        if _is_known(proposal, steps):
            between = _between(goal, steps)
            if between is None or _is_known(proposal := propose(between), steps):
                break
        if best is not None and best.step.held and proposal.size > _WORTH * best.step.size:
            break
        found = proposal.calibrate()
        steps.append(found.step)
        if best is None or _rank(goal, found.step) < _rank(goal, best.step):
            best = found
        asked = _next(goal, steps)
    assert best is not None  # there is a first
    return best, tuple(steps)


def _is_known(proposal: Proposal[Made], steps: list[Step]) -> bool:
    return any(proposal.loss == step.loss and proposal.size == step.size for step in steps)


def _rank(goal: Goal, step: Step) -> tuple[int, float]:
    """The lower, the better."""
    if step.held:
        return 0, step.size
    return (1, step.size) if step.drop <= goal.limit else (2, step.drop)


def _next(goal: Goal, steps: list[Step]) -> float:
    """The estimated loss at which the last drop, corrected, is what may be; within what held and what did not."""
    last = steps[-1]
    # One that is too large is more often than not one whose noise has added to it.
    drop = last.drop if last.held else max(last.drop - last.error, last.drop / 2)
    ratio = _FARTHEST if drop <= 0 else min(max(goal.aim(last.error) / drop, 1 / _FARTHEST), _FARTHEST)
    loss = last.loss * (ratio if goal.labelled else ratio * ratio)
    low = max((step.loss for step in steps if step.held), default=0.0)
    high = min((step.loss for step in steps if not step.held and step.loss > low), default=math.inf)
    if not low:  # each that fails leaves one chance less: halve, then quarter
        loss = min(loss, high / 2 ** len(steps))
    if low < loss < high:
        return loss
    if math.isinf(high):  # it held, and its drop allows no more
        return low
    return math.sqrt(low * high)


def _between(goal: Goal, steps: list[Step]) -> float | None:
    """The estimated loss between what is within the limit, though not by its error, and what is beyond it.

    None where one held, which the next steps looked around, or where there is no such gap.
    """
    low = max((step.loss for step in steps if step.drop <= goal.limit), default=math.inf)
    high = min((step.loss for step in steps if step.drop > goal.limit and step.loss > low), default=math.inf)
    if math.isinf(high) or any(step.held for step in steps):
        return None
    return math.sqrt(low * high)


def tolerable_loss(scores: NDArray[np.floating], labels: NDArray[np.integer] | None, aim: float) -> float:
    """The KL divergence, in nats, at which noise on FP32's scores [N, K] costs ``aim`` points of top-1.

    Where nothing is calibrated yet, quantization counts as normal noise, equal in all scores. Without ``labels`` [N]
    every class that changes counts. Scores are logits, or probabilities that add up to 1.
    """
    scores = np.asarray(scores, np.float64).reshape(len(scores), -1)
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        scores = np.log(np.maximum(scores, 1e-12))
    reference, noise = log_softmax(scores, axis=1), np.random.default_rng(0).standard_normal((_DRAWS, *scores.shape))
    truth = scores.argmax(axis=1) if labels is None else labels
    right = float((scores.argmax(axis=1) == truth).mean())

    def drop(sigma: float) -> float:
        return 100 * (right - float(np.mean([((scores + sigma * z).argmax(axis=1) == truth).mean() for z in noise])))

    low, high = 0.0, float(np.std(scores)) or 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if drop(middle) > aim else (middle, high)
    changed = [log_softmax(scores + low * z, axis=1) for z in noise]
    return float(np.mean([(np.exp(reference) * (reference - other)).sum(axis=1).mean() for other in changed]))
