"""Ranks with nothing to do are refused, and none of the others is left without an image."""

from typing import Any

import pytest

from pdq_export.calibrate.shares import check_enough, some_of
from pdq_export.config.method import METHODS, CalibrationOptions
from pdq_export.errors import OptionError
from pdq_export.ranks.together import Together

ENOUGH = {"batch_size": 4, "search_samples": 4}


@pytest.mark.parametrize(
    ("images", "changed", "told"),
    [
        (3, {}, r"calibration images is 3.*--samples N.*at most 3 ranks \(torchrun --nproc-per-node 3\)"),
        (4, {"batch_size": 2}, r"batch_size is 2.*--set batch_size=N"),
        (4, {"search_samples": 1}, r"search_samples is 1.*--set search_samples=N"),
    ],
)
def test_more_ranks_than_work_are_refused(images: int, changed: dict[str, int], told: str) -> None:
    ranks = Together(rank=0, size=4)
    check_enough(ranks, CalibrationOptions(**ENOUGH), 4)
    with pytest.raises(OptionError, match=told):
        check_enough(ranks, CalibrationOptions(**ENOUGH | changed), images)


def test_batches_that_nobody_takes_need_no_image_for_each_rank() -> None:
    options: dict[str, Any] = METHODS["nearest"] | ENOUGH | {"batch_size": 1}
    check_enough(Together(rank=0, size=4), CalibrationOptions(**options), 4)


def test_each_of_many_ranks_has_something_to_look_at() -> None:
    assert [some_of(Together(rank=rank, size=70), 64) for rank in (0, 63, 64, 69)] == [1, 1, 1, 1]
    assert [some_of(Together(rank=rank, size=3), 64) for rank in range(3)] == [22, 21, 21]
