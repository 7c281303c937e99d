"""Calibration on several ranks, threads here: the same integers on all of them, about as good as one's."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from pdq_export.calibrate import Calibrated, calibrate, collapse
from pdq_export.calibrate.block_state import BlockRecord, BlockState
from pdq_export.calibrate.correction import estimate_statistics
from pdq_export.calibrate.subgraph import extract
from pdq_export.config.method import METHODS, CalibrationOptions
from pdq_export.errors import CalibrationError, OptionError, RankError
from pdq_export.ranks import Ranks
from pdq_export.spec import Block
from pdq_export.spec.plain import to_text
from tests.thread_ranks import on_ranks

from .networks import Example, chain, residual

CPU = torch.device("cpu")
TINY = CalibrationOptions(
    iters=4, samples=22, correction_iters=2, batch_size=9, search_samples=17, compensate_rounding=True
)
pytestmark = pytest.mark.usefixtures("short_search")


class Kept:
    """A checkpoint in memory; ``until``: how many blocks it knows when it is asked."""

    def __init__(self, states: list[BlockState] | None = None, until: int = 0) -> None:
        self.states, self.until = list(states or [])[:until], until

    def load(self, position: int, block: Block) -> BlockState | None:
        return self.states[position] if position < self.until else None

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        self.states.append(state)


def run(
    size: int, options: CalibrationOptions = TINY, *, kept: Kept | None = None, make: Any = residual, **changes: Any
) -> list[Calibrated]:
    """Calibrate on 22 images, of which each rank has a share; ``kept``: the first rank's."""
    examples: list[Example] = [make(images=22) for _ in range(size)]  # each has a network of its own
    options = dataclasses.replace(options, **changes)

    def one(ranks: Ranks) -> Calibrated:
        example = examples[ranks.rank]
        return calibrate(
            example.network,
            example.plan,
            example.prepared.statistics,
            [example.images[torch.tensor(ranks.mine(22))]],
            options,
            device=CPU,
            ranks=ranks,
            checkpoint=kept if ranks.is_first else None,
        )

    return on_ranks(size, one)


def text(result: Calibrated) -> str:
    """All that a result holds."""
    return to_text(BlockState(tensors=result.tensors, biases=result.biases, statistics={}))


def test_all_ranks_end_with_the_same_integers_each_time() -> None:
    """With shares of images, batches and searched images that are not equal."""
    first, again = run(3), run(3)
    assert len({text(result) for result in [*first, *again]}) == 1
    assert text(first[0]) != text(run(1)[0])  # other images in other batches


def test_what_is_searched_alone_is_what_one_rank_finds() -> None:
    """Histograms of the same elements: to the bit."""
    nearest = CalibrationOptions(**METHODS["nearest"] | {"samples": 22, "search_samples": 17})
    wanted = text(run(1, nearest)[0])
    assert {text(result) for result in run(3, nearest)} == {wanted}


def test_ranks_learn_about_as_well_as_one() -> None:
    """All images in every batch, so that the steps are the same but for masks: nothing is dropped or mixed."""
    whole = {"batch_size": 22, "search_samples": 22, "keep_probability": 0.0, "mix_probability": 1.0}
    whole |= {"correction_iters": 0}
    alone, many = run(1, **whole)[0], run(3, **whole)[0]
    for name, wanted in alone.tensors.items():
        found = many.tensors[name]
        np.testing.assert_allclose(found.scale, wanted.scale, rtol=1e-3, err_msg=name)
        if wanted.integers is not None:
            assert (found.integers == wanted.integers).mean() > 0.95, name


def test_statistics_that_are_estimated_are_those_of_all_images() -> None:
    """What a state keeps of a file without BatchNormalization."""
    kept = Kept()
    on_three = run(3, kept=kept, make=lambda images: chain(2, images))
    assert len({text(result) for result in on_three}) == 1
    example, ((name, found),) = chain(2, 22), kept.states[0].statistics.items()
    (wanted,) = estimate_statistics(extract(example.network, ["image"], [name]), [(example.images,)])
    for part in ("mean", "std"):
        np.testing.assert_allclose(getattr(found, part), getattr(wanted, part), rtol=1e-5, atol=1e-6)


def test_blocks_are_taken_up_by_another_number_of_ranks() -> None:
    """The first rank's states count, on whichever rank, and the last block learns on what they give."""
    kept = Kept()
    run(2, kept=kept)
    taken = Kept(kept.states, until=2)
    results = run(3, kept=taken)
    assert len({text(result) for result in results}) == 1
    assert len(taken.states) == 3
    for state in kept.states[:2]:
        for name, tensor in state.tensors.items():
            pairs = zip(vars(results[2].tensors[name]).values(), vars(tensor).values(), strict=True)
            assert all(np.array_equal(*pair) for pair in pairs), name


def test_ranks_that_find_other_integers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As machines of two kinds would: the masks of one rank's block do something to its weights alone."""
    from pdq_export.calibrate import engine

    made = engine.state_of

    def state_of(done: Any, block: Block, estimated: Any) -> BlockState:
        state = made(done, block, estimated)
        calls.append(block.name)
        odd = len(calls) == 1  # of whichever rank comes first
        return dataclasses.replace(state, biases={"odd": np.zeros(1, np.float32)}) if odd else state

    calls: list[str] = []
    monkeypatch.setattr(engine, "state_of", state_of)
    with pytest.raises(RankError, match=r"block '.*': rank 1 of 2 .*machines of one kind.*--deterministic"):
        run(2)


def test_an_error_of_one_rank_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its images have alone; the others do not wait for ever."""
    made = residual(images=22)
    made.images[1] = torch.nan  # of rank 1

    with pytest.raises(CalibrationError, match="NaN"):
        run(2, make=lambda images: dataclasses.replace(made, network=residual(images=images).network))


def test_outputs_are_judged_on_all_ranks_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one rank's share alone, larger by an image, looks as if an output had images of its own."""
    judged: list[str] = []
    monkeypatch.setattr(collapse, "_images_first", lambda network, name, x: x if len(x) == 8 else x[0])
    monkeypatch.setattr(collapse, "warn_of_collapse", lambda name, *_: judged.append(name))
    run(3, CalibrationOptions(**METHODS["nearest"] | {"samples": 22, "search_samples": 17}))
    assert not judged


def test_more_ranks_than_images_are_refused() -> None:
    with pytest.raises(OptionError, match="batch_size is 2"):
        run(3, batch_size=2)
