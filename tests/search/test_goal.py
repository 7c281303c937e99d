"""The smallest file that keeps a drop: the loop on made-up networks, and where it begins."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.data.samples import MOST_HELD
from pdq_export.search.asked import LEAST_DROP
from pdq_export.search.goal import ATTEMPTS, Attempt, Goal, Proposal, fewest_images, reach, tolerable_loss
from pdq_export.spec.step import Step


@dataclasses.dataclass
class Made:
    """A network of which files of ``count`` sizes can be made: each costs half of the loss of the next smaller."""

    goal: Goal
    drops: list[float]  # by number, of what is measured
    error: float = 0.2
    calibrated: list[int] = dataclasses.field(default_factory=list)

    def propose(self, loss: float) -> Proposal[int]:
        number = next((n for n in range(len(self.drops)) if 2.0**-n <= loss), len(self.drops) - 1)

        def calibrate() -> Attempt[int]:
            self.calibrated.append(number)
            return Attempt(made=number, step=self.step(number))

        return Proposal(size=1000 + 100 * number, loss=2.0**-number, calibrate=calibrate)

    def step(self, number: int) -> Step:
        drop = self.drops[number]
        return Step(
            size=1000 + 100 * number,
            loss=2.0**-number,
            avg_weight=4,
            drop=drop,
            error=self.error,
            images=100,
            held=drop <= self.goal.aim(self.error),
        )


@given(
    drops=st.lists(st.floats(-2, 30), min_size=1, max_size=12),
    first=st.floats(1e-6, 10),
    limit=st.floats(0, 5),
    error=st.floats(0, 3),
    labelled=st.booleans(),
)
def test_never_one_that_failed_where_one_held(
    drops: list[float], first: float, limit: float, error: float, labelled: bool
) -> None:
    goal = Goal(limit=limit, labelled=labelled)
    made = Made(goal, drops, error)
    best, steps = reach(goal, first, made.propose)
    assert 1 <= len(steps) == len(made.calibrated) == len(set(made.calibrated)) <= ATTEMPTS
    assert [step.size for step in steps] == [1000 + 100 * number for number in made.calibrated]
    held = [step for step in steps if step.held]
    if held:
        assert best.step.held
        assert best.step.size == min(step.size for step in held)
    elif within := [step for step in steps if step.drop <= limit]:
        assert best.step.size == min(step.size for step in within)
    else:
        assert best.step.drop == min(step.drop for step in steps)
    assert best.step == made.step(best.made)


@pytest.mark.parametrize("first", [2.0**-1, 2.0**-7])
@pytest.mark.parametrize("labelled", [True, False])
def test_finds_the_smallest_where_the_drop_follows_the_estimate(first: float, labelled: bool) -> None:
    """Whether it begins far too low or far too high, with an estimate that is off by a factor."""
    goal, power = Goal(limit=1.0, labelled=labelled), 1 if labelled else 0.5
    drops = [10 * (2.0**-number) ** power for number in range(12)]
    made = Made(goal, drops, error=0.1)
    best, _ = reach(goal, first, made.propose)
    held = [number for number, drop in enumerate(drops) if drop <= 0.9]
    assert best.made in (held[0], held[0] + 1)


def test_widens_where_none_holds_and_gives_the_best() -> None:
    goal = Goal(limit=0.5, labelled=True)
    made = Made(goal, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    best, steps = reach(goal, 1.0, made.propose)
    assert made.calibrated == sorted(made.calibrated)
    assert best.step.drop == min(step.drop for step in steps) < 9
    assert not best.step.held


def test_takes_what_lies_between_where_images_are_too_few_to_show_that_the_most_bits_keep_it() -> None:
    """With 384 images one right answer is 0.26 points: even 8 bits may seem to lose more than their error allows."""
    made = Made(Goal(limit=1.0, labelled=True), [9.0, 2.3, 0.9, 0.8], error=0.5)
    best, steps = reach(made.goal, 0.5, made.propose)
    assert made.calibrated == [1, 3, 2]
    assert not any(step.held for step in steps)
    assert best.made == 2


def test_allows_for_the_error_but_not_for_all_of_the_limit() -> None:
    goal = Goal(limit=1.0, labelled=True)
    assert goal.aim(0.2) == pytest.approx(0.8)
    assert goal.aim(3.0) == 0.5


@pytest.mark.parametrize("labelled", [True, False])
def test_begins_where_noise_costs_as_much(labelled: bool) -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(400, 10)) * 2
    labels = np.where(random.random(400) < 0.8, scores.argmax(axis=1), 3) if labelled else None
    losses = [tolerable_loss(scores, labels, aim) for aim in (0.5, 1.0, 4.0)]
    assert 0 < losses[0] < losses[1] < losses[2] < 1
    shifted = scores - scores.max()
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    assert tolerable_loss(probabilities, labels, 1.0) == pytest.approx(losses[1], rel=0.2)


@given(limit=st.floats(1e-3, 100))
def test_one_of_the_fewest_images_is_no_more_than_the_limit(limit: float) -> None:
    images = fewest_images(limit)
    assert 100 / images <= limit * (1 + 1e-6)
    assert images == 1 or 100 / (images - 1) > limit
    assert fewest_images(0) == 100


def test_the_finest_limit_can_be_judged_by_the_most_images_that_are_held_back() -> None:
    assert fewest_images(LEAST_DROP) <= MOST_HELD < fewest_images(0.97 * LEAST_DROP)
