"""Soft rounding starts at the FP32 weight and its regularizer ends at 0 or 1."""

import torch

from pdq_export.numerics.rounding import initial_alpha, rectified_sigmoid, rounding_regularizer


def test_initial_alpha_inverts_the_rectified_sigmoid() -> None:
    fraction = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    torch.testing.assert_close(rectified_sigmoid(initial_alpha(fraction)), fraction)


def test_sign_of_alpha_is_the_rounding() -> None:
    alpha = torch.tensor([-3.0, -0.1, 0.1, 3.0])
    assert (rectified_sigmoid(alpha) >= 0.5).tolist() == [False, False, True, True]


def test_regularizer_is_zero_only_at_the_ends() -> None:
    assert rounding_regularizer(torch.tensor([0.0, 1.0]), 2.0).item() == 0.0
    assert rounding_regularizer(torch.tensor([0.5]), 2.0).item() == 1.0
    assert rounding_regularizer(torch.tensor([0.1]), 20.0) > rounding_regularizer(torch.tensor([0.1]), 2.0)
