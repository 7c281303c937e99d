"""Distribution correction moves statistics towards their targets without leaving the input far behind."""

import math

import numpy as np
import pytest
import torch
from torch import fx

from pdq_export.calibrate.correction import _Rate, batches_at_once, correct_distribution, estimate_statistics
from pdq_export.calibrate.subgraph import extract
from pdq_export.config.method import CalibrationOptions
from pdq_export.spec import ChannelStatistics

from .networks import residual


def distance(z: torch.Tensor, statistics) -> float:
    std, mean = torch.std_mean(z.flatten(2), dim=2, correction=0)
    gain = torch.from_numpy(statistics.gain)
    terms = [(mean - torch.from_numpy(statistics.mean)) * gain, (std - torch.from_numpy(statistics.std)) * gain]
    return sum(term.square().sum(1).mean().item() for term in terms)


def test_statistics_come_closer_and_inputs_stay_near() -> None:
    example = residual()
    piece = extract(example.network, ["image"], ["n1"])
    statistics = example.prepared.statistics["n1"]
    options = CalibrationOptions(correction_iters=200, lambda_c=0.5, correction_lr=1e-2)
    corrected = correct_distribution(piece, [statistics], example.images, options)
    before, after = (distance(piece(x)[0], statistics) for x in (example.images, corrected))
    assert after < 0.8 * before
    assert 0 < (corrected - example.images).square().mean().item() < 0.1


def test_a_small_lambda_keeps_the_input() -> None:
    example = residual()
    piece = extract(example.network, ["image"], ["n1"])
    options = CalibrationOptions(correction_iters=50, lambda_c=1e-6)
    corrected = correct_distribution(piece, [example.prepared.statistics["n1"]], example.images, options)
    assert (corrected - example.images).abs().max().item() < 2e-3


def test_batches_do_not_influence_each_other() -> None:
    """The last partial batch counts, and every image is corrected as part of its own batch alone."""
    example = residual(images=40)
    piece = extract(example.network, ["image"], ["n1"])
    options = CalibrationOptions(correction_iters=10, batch_size=32)
    together = correct_distribution(piece, [example.prepared.statistics["n1"]], example.images, options)
    last = correct_distribution(piece, [example.prepared.statistics["n1"]], example.images[32:], options)
    assert together.shape == example.images.shape
    torch.testing.assert_close(together[32:], last)


def test_batches_together_are_corrected_as_one_by_one() -> None:
    """With fewer at the end, and a last one that is not whole; where one meets what is not finite, it alone stays."""
    example = residual(images=44)
    piece = extract(example.network, ["image"], ["n1"])
    options = CalibrationOptions(correction_iters=10, batch_size=8)
    images = example.images.clone()
    images[17] = torch.nan

    def corrected(x: torch.Tensor, at_once: int) -> torch.Tensor:
        return correct_distribution(piece, [example.prepared.statistics["n1"]], x, options, at_once=at_once)

    torch.testing.assert_close(corrected(example.images, 3), corrected(example.images, 1), rtol=1e-5, atol=1e-6)
    one_by_one, together = corrected(images, 1), corrected(images, 3)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6, equal_nan=True)
    moved = (together != images).flatten(1).any(1)
    assert not moved[[16, *range(18, 24)]].any()
    assert moved[[15, 24, 43]].all()


def test_batches_together_have_units_of_their_own() -> None:
    """A small one moves no further beside a large one than alone."""
    example = residual(images=24)
    piece = extract(example.network, ["image"], ["n1"])
    options = CalibrationOptions(correction_iters=10, batch_size=8)
    sizes = torch.tensor([1.0, 2.0**-9, 2.0**40]).repeat_interleave(8).view(-1, 1, 1, 1)
    images = example.images * sizes
    together, one_by_one = (
        correct_distribution(piece, [example.prepared.statistics["n1"]], images, options, at_once=at_once)
        for at_once in (3, 1)
    )
    torch.testing.assert_close(together / sizes, one_by_one / sizes, rtol=1e-5, atol=1e-5)
    alone = correct_distribution(piece, [example.prepared.statistics["n1"]], images[8:16], options)
    assert torch.equal(one_by_one[8:16], alone)
    assert 0 < (alone / sizes[8:16] - example.images[8:16]).abs().max() < 0.2


def test_a_cpu_corrects_one_batch_at_a_time() -> None:
    """Its files are to stay; where a batch's loss decides on its rate, that is its own on a GPU too."""
    few, many = CalibrationOptions(correction_iters=20), CalibrationOptions(correction_iters=500)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [batches_at_once(few, cpu), batches_at_once(few, cuda), batches_at_once(many, cuda)] == [1, 8, 1]


class Passing(torch.nn.Module):
    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor]:
        return (z,)


def test_estimated_statistics_are_the_batch_normalization_ones() -> None:
    z = torch.randn(20, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    identity = fx.symbolic_trace(Passing())
    (statistics,) = estimate_statistics(identity, [(part,) for part in z.split(8)])
    normalization = torch.nn.BatchNorm2d(4, momentum=1.0)
    normalization(z)
    np.testing.assert_allclose(statistics.mean, normalization.running_mean.numpy(), rtol=1e-4)
    np.testing.assert_allclose(statistics.std**2, normalization.running_var.numpy(), rtol=1e-2)
    assert (statistics.gain == 1).all()


@pytest.mark.parametrize("k", [-90, -60, -6, 90])
def test_tensors_far_from_1_are_corrected_in_units_of_their_own(k: int) -> None:
    """The block z' = 2^k z of x' = 2^k x is the same block."""
    example = residual(images=8)
    piece, unit = extract(example.network, ["image"], ["n1"]), 2.0**k
    statistics = example.prepared.statistics["n1"]
    options = CalibrationOptions(correction_iters=20, correction_lr=1e-2)

    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # As a whole network would, whose images are ordinary: in two steps, each of them in range.
            return tuple(z * unit for z in piece(x / unit))

    far = ChannelStatistics(
        mean=(statistics.mean * unit).astype(np.float32),
        std=(statistics.std * unit).astype(np.float32),
        gain=(statistics.gain / unit).astype(np.float32),
    )
    size = float(example.images.square().mean().sqrt())
    images = example.images / 2.0 ** math.floor(math.log2(size))  # what the far one is learned in
    expected = correct_distribution(piece, [statistics], images, options)
    found = correct_distribution(Scaled(), [far], images * unit, options)
    assert not torch.equal(expected, images)
    torch.testing.assert_close(found / unit, expected)


@pytest.mark.parametrize("losses", ["flat", "falling", "one fall"])
def test_the_rate_is_that_of_torchs_own_scheduler(losses: str) -> None:
    steps = 450
    told = {
        "flat": [1.0] * steps,
        "falling": [0.99**step for step in range(steps)],
        "one fall": [1.0 if step < 150 else 0.5 for step in range(steps)],
    }[losses]
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=4e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=100, factor=0.1, min_lr=1e-5)
    ours = _Rate(CalibrationOptions(correction_iters=steps, correction_lr=4e-3), torch.device("cpu"))
    seen = set()
    for step, loss in enumerate(told):
        rate = optimizer.param_groups[0]["lr"]
        assert ours.at(step).item() == torch.tensor(rate / (1 - 0.9 ** (step + 1))).item()
        seen.add(rate)
        scheduler.step(loss)
        ours.tell(torch.tensor(loss))
    assert (len(seen) > 1) == (losses != "falling")


@pytest.mark.parametrize(("steps", "watches"), [(102, False), (103, True)])
def test_the_loss_is_watched_only_where_that_can_matter(steps: int, watches: bool) -> None:
    """On a plateau from the first step on, the rate of the 103rd is the first to be lower."""
    device = torch.device("cpu")
    short, long = (_Rate(CalibrationOptions(correction_iters=n), device) for n in (steps, 300))
    rates = []
    for step in range(steps):
        rates.append((short.at(step).item(), long.at(step).item()))
        for rate in (short, long):
            rate.tell(torch.ones(()))
    assert all(a == b for a, b in rates)
    assert (rates[-1][0] < 5e-4) == watches
