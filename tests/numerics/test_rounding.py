"""Soft rounding starts at the FP32 weight and its regularizer ends at 0 or 1."""

import itertools

import pytest
import torch

from pdq_export.numerics import rounding
from pdq_export.numerics.rounding import (
    initial_alpha,
    rectified_sigmoid,
    round_compensated,
    rounding_regularizer,
    soft_weight,
)


def test_initial_alpha_inverts_the_rectified_sigmoid() -> None:
    fraction = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    torch.testing.assert_close(rectified_sigmoid(initial_alpha(fraction)), fraction)


def test_sign_of_alpha_is_the_rounding() -> None:
    alpha = torch.tensor([-3.0, -0.1, 0.1, 3.0])
    assert (rectified_sigmoid(alpha) >= 0.5).tolist() == [False, False, True, True]


def test_regularizer_is_zero_only_at_the_ends() -> None:
    two, twenty = torch.tensor(2.0), torch.tensor(20.0)
    assert rounding_regularizer(torch.tensor([0.0, 1.0]), two).item() == 0.0
    assert rounding_regularizer(torch.tensor([0.5]), two).item() == 1.0
    h = torch.tensor([0.1])
    assert rounding_regularizer(h, twenty) > rounding_regularizer(h, two)


def _problem(groups: int, outputs: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in [0, 5] and the second moments of correlated inputs with a mean, as behind a Relu."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 50, k, generator=generator).cumsum(2).relu().double()
    damping = 1e-3 * x.square().mean() * torch.eye(k, dtype=torch.float64)
    return torch.rand(groups, outputs, k, generator=generator).double() * 5, x.transpose(1, 2) @ x / 50 + damping


def _error(q: torch.Tensor, weight: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    return (((q - weight) @ moments) * (q - weight)).sum(2)


@pytest.mark.parametrize("k", [1, 5, 300])
def test_compensated_rounding_beats_rounding_to_nearest_within_its_bounds(k: int) -> None:
    weight, moments = _problem(2, 3, k, seed=k)
    low, high = weight.floor(), weight.ceil()
    q = round_compensated(weight, low, high, moments)
    assert torch.equal(q, q.round())
    assert ((low <= q) & (q <= high)).all()
    nearest, compensated = (_error(r, weight, moments) for r in (weight.round(), q))
    assert (compensated <= nearest).all()
    assert k < 100 or compensated.sum() < 0.5 * nearest.sum()


def test_compensated_rounding_is_near_the_best_of_all_roundings() -> None:
    weight, moments = _problem(1, 16, 8, seed=3)
    ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64)
    every = weight.floor() + ups[:, None]  # [256, 16, 8]
    best = _error(every, weight, moments).amin(0)
    found = _error(round_compensated(weight, weight.floor(), weight.ceil(), moments), weight, moments)[0]
    nearest = _error(weight.round(), weight, moments)[0]
    assert found.sum() - best.sum() < 0.2 * (nearest.sum() - best.sum())


def test_decided_weights_stay_and_inputs_that_do_not_vary_together_do_no_harm() -> None:
    weight, moments = _problem(1, 3, 4, seed=1)
    decided = weight.round()
    assert torch.equal(round_compensated(decided, decided - 1, decided + 1, moments), decided)
    alone = torch.eye(4, dtype=torch.float64)[None] * 1e-30
    assert torch.equal(round_compensated(weight, weight.floor(), weight.ceil(), alone), weight.round())


def test_blocks_of_columns_do_not_change_the_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = _problem(2, 3, 20, seed=2)
    whole = round_compensated(weight, weight.floor(), weight.ceil(), moments)
    monkeypatch.setattr(rounding, "_COLUMNS", 3)
    assert torch.equal(round_compensated(weight, weight.floor(), weight.ceil(), moments), whole)


def test_gradients_of_soft_weights_are_those_of_autograd() -> None:
    """To the bit, where ``h`` or the weight is clipped too."""
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randn(50, 7, generator=generator) * 3
    alpha[0, :2] = torch.tensor([40.0, -40.0])
    floor = torch.randint(-4, 4, (50, 7), generator=generator).float()
    low, high, scale = torch.full((50, 1), -3.0), torch.full((50, 1), 3.0), torch.rand(50, 1, generator=generator)
    pull, exponent = torch.randn(50, 7, generator=generator), torch.tensor(7.3)

    def plain(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.clamp(floor + rectified_sigmoid(x), low, high) * scale
        return weight, (1 - (2 * rectified_sigmoid(x) - 1).abs().pow(exponent)).sum()

    def ours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, h = soft_weight(x, floor, low, high, scale)
        return weight, rounding_regularizer(h, exponent)

    for rounds in (0.0, 0.01):
        found = []
        for make in (plain, ours):
            x = alpha.clone().requires_grad_(True)
            weight, term = make(x)
            loss = (weight * pull).sum() + (torch.tensor(rounds) * term if rounds else 0.0)
            found.append((loss, *torch.autograd.grad(loss, x)))
        assert all(map(torch.equal, *found))
