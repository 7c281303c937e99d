import torch
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.numerics.moments import spatial_moments


@given(st.integers(0, 2**31), st.sampled_from([(2, 3, 4, 5), (1, 2, 7), (3, 1, 2, 2, 2)]), st.floats(-50, 50))
def test_moments_and_gradients_are_those_of_std_mean(seed: int, shape: tuple[int, ...], shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = (torch.randn(shape, generator=generator, dtype=torch.float64) + shift).requires_grad_(True)
    weights = torch.randn((2, *shape[:2]), generator=generator, dtype=torch.float64)
    expected_std, expected_mean = torch.std_mean(z.flatten(2), dim=2, correction=0)
    mean, std = spatial_moments(z)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(std, expected_std)
    (ours,) = torch.autograd.grad((mean * weights[0] + std * weights[1]).sum(), z)
    (theirs,) = torch.autograd.grad((expected_mean * weights[0] + expected_std * weights[1]).sum(), z)
    torch.testing.assert_close(ours, theirs)


def test_a_constant_channel_has_a_finite_gradient() -> None:
    z = torch.ones(2, 3, 4, 4, requires_grad=True)
    mean, std = spatial_moments(z)
    (mean.sum() + std.sum()).backward()
    assert torch.equal(std, torch.zeros(2, 3))
    assert torch.allclose(z.grad, torch.full_like(z, 1 / 16))
