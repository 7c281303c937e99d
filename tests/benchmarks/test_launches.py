"""The count of launches, of a few steps."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.launches import BUDGET, count


@pytest.mark.usefixtures("short_search")
def test_launches_of_every_block_are_counted(small: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "calib.npy", images)
    few = {**BUDGET, "samples": 8, "batch_size": 4, "iters": 4, "correction_iters": 1, "search_samples": 4}
    found = count(small, tmp_path / "calib.npy", "2/2", few)
    assert len(found.steps) == 3
    assert all(with_ > without > 0 for with_, without in found.steps.values())
    assert found.phases["all"] > found.phases["steps"] > sum(map(sum, found.steps.values()))
