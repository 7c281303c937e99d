import logging

import pytest
import torch

from pdq_export.calibrate.watch import warn_of_collapse, warn_of_divergence


@pytest.mark.parametrize(("error", "warned"), [(0.5, False), (3.0, True)])
def test_a_block_that_is_worse_than_nothing_is_told(
    error: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [torch.tensor(9.0)] * 10 + [torch.tensor(error)] * 20
    with caplog.at_level(logging.WARNING):
        warn_of_divergence("b1", errors, [torch.tensor(1.0)] * 30)
    assert bool(caplog.records) == warned
    assert not warned or "block b1: its loss diverged: the error of its output, 3," in caplog.text


@pytest.mark.parametrize(("error", "warned"), [(0.1, False), (2.0, True), (float("nan"), True)])
def test_a_collapsed_network_is_told(error: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    full = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        warn_of_collapse("y", full, full + error)
    assert ("output y: the network has collapsed" in caplog.text) == warned


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_single_images_do_not_decide(size: float, caplog: pytest.LogCaptureFixture) -> None:
    full = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    good, bad = full + 0.1, full + 2.0
    good[3] = 100.0
    warn_of_collapse("y", full * size, good * size)
    assert not caplog.records
    bad[3] = full[3] = 100.0  # right where it is easy
    warn_of_collapse("y", (full - full.mean(0)) * size, (bad - full.mean(0)) * size)
    assert "output y: the network has collapsed" in caplog.text


def test_outputs_that_never_change_and_integers_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_collapse("y", torch.ones(4, 3), torch.ones(4, 3))
    rounded = torch.ones(4, 3) + 1e-7 * torch.arange(12.0).reshape(4, 3)
    assert rounded.std(0).max() > 0
    warn_of_collapse("y", rounded, torch.full((4, 3), 1.1))
    warn_of_collapse("y", torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    assert not caplog.records
