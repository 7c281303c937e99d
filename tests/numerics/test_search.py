"""The scale search against an exhaustive one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdq_export.numerics.affine import dequantize_affine, quantize_affine
from pdq_export.numerics.search import NORM, Histogram, QParams, choose_activation_qparams, choose_weight_qparams


def error(x: torch.Tensor, qparams: QParams, qmin: int, qmax: int) -> torch.Tensor:
    """Mean |x - x_hat|^2.4 of each row."""
    scale, zero_point = (v.reshape(-1, 1) for v in (qparams.scale, qparams.zero_point))
    x_hat = dequantize_affine(quantize_affine(x, scale, zero_point, qmin, qmax), scale, zero_point)
    return (x - x_hat).abs().pow(NORM).mean(1)


def exhaustive(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The smallest error of each row over 100 fractions of its range and every zero_point."""
    levels = 2**bits - 1
    span = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)
    candidates = [
        error(x, QParams(scale=span * k / 100 / levels, zero_point=torch.full_like(span, z)), 0, levels)
        for k in range(1, 101)
        for z in range(levels + 1)
    ]
    return torch.stack(candidates).amin(0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_coarse_to_fine_comes_close_to_the_exhaustive_search(bits: int) -> None:
    weight = torch.randn(24, 90, generator=torch.Generator().manual_seed(bits))
    weight[12:] += 0.7  # asymmetric rows
    chosen = error(weight, choose_weight_qparams(weight, 0, 2**bits - 1), 0, 2**bits - 1)
    best = exhaustive(weight, bits)
    assert (chosen <= 1.03 * best).all()
    assert (chosen.mean() <= 1.005 * best.mean()).item()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_quick_search_loses_a_few_hundredths(bits: int) -> None:
    weight = torch.randn(24, 90, generator=torch.Generator().manual_seed(bits))
    weight[12:] += 0.7  # asymmetric rows
    levels = 2**bits - 1
    by_effort = [error(weight, choose_weight_qparams(weight, 0, levels, quick=q), 0, levels) for q in (True, False)]
    assert (by_effort[0].mean() <= 1.1 * by_effort[1].mean()).item()
    histogram = Histogram.of(weight)
    row = weight.reshape(1, -1)
    quick, thorough = (error(row, histogram.choose_qparams(bits, quick=q), 0, levels) for q in (True, False))
    assert (quick <= 1.1 * thorough).all()


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weight_qparams_are_on_the_grid(bits: int, symmetric: bool) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    weight[2] = 1e-12
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    qparams = choose_weight_qparams(weight, low, high)
    assert qparams.scale.shape == qparams.zero_point.shape == (5,)
    assert (qparams.scale > 0).all()
    assert torch.isfinite(qparams.scale).all()
    assert torch.equal(qparams.zero_point, qparams.zero_point.round())
    if symmetric:
        assert (qparams.zero_point == 0).all()
    else:
        assert ((qparams.zero_point >= 0) & (qparams.zero_point < 2**bits)).all()


def test_two_bits_beat_the_range_mapped_onto_the_integers() -> None:
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(5))
    low, high = weight.amin(1), weight.amax(1)
    scale = (high - low) / 3
    minmax = QParams(scale=scale, zero_point=(-low / scale).round())
    chosen = choose_weight_qparams(weight, 0, 3)
    assert (error(weight, chosen, 0, 3) < 0.6 * error(weight, minmax, 0, 3)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activation_search_over_the_histogram_is_as_good_as_over_the_data(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    for x in (torch.relu(torch.randn(50, 400, generator=generator)), torch.randn(50, 400, generator=generator) + 0.4):
        chosen = choose_activation_qparams(x, bits)
        direct = choose_weight_qparams(x.reshape(1, -1), 0, 2**bits - 1)
        ours, reference = (error(x.reshape(1, -1), q, 0, 2**bits - 1) for q in (chosen, direct))
        assert ours.item() <= 1.03 * reference.item()


def test_rectified_activations_get_zero_point_zero() -> None:
    x = torch.relu(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    assert choose_activation_qparams(x, 4).zero_point.item() == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_symmetric_activations_get_zero_point_zero(sign: int) -> None:
    x = sign * torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 2
    chosen = choose_activation_qparams(x, 8, symmetric=True)
    assert chosen.zero_point.item() == 0
    assert chosen.scale.item() == pytest.approx(x.abs().max().item() / 127, rel=0.2)
    assert choose_activation_qparams(torch.relu(x), 8, symmetric=True).zero_point.item() == 0


FAR = st.one_of(st.integers(-100, -20), st.integers(36, 100))  # powers of two beyond what is ordinary
SEARCH = {"seed": st.integers(0, 9), "bits": st.sampled_from([2, 4, 8]), "symmetric": st.booleans()}


def is_scaled(found: QParams, expected: QParams, k: int) -> bool:
    scaled = expected.scale.double() * 2.0**k
    return torch.equal(found.scale.double(), scaled) and torch.equal(found.zero_point, expected.zero_point)


@settings(max_examples=30)
@given(k=FAR, other=FAR, **SEARCH)
def test_weights_far_from_1_are_searched_as_any_others(
    k: int, other: int, seed: int, bits: int, symmetric: bool
) -> None:
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed)) + seed % 3
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    near, far, further = (choose_weight_qparams(weight * 2.0**e, low, high) for e in (0, k, other))
    assert is_scaled(further, far, other - k)
    back = QParams(scale=far.scale / 2.0**k, zero_point=far.zero_point)
    # Of two candidates that are equally good, rounding may take either.
    torch.testing.assert_close(error(weight, back, low, high), error(weight, near, low, high), rtol=1e-4, atol=0)


@settings(max_examples=30)
@given(k=FAR, other=FAR, **SEARCH)
def test_activations_far_from_1_are_searched_as_any_others(
    k: int, other: int, seed: int, bits: int, symmetric: bool
) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) + seed % 3
    near, far, further = (choose_activation_qparams(x * 2.0**e, bits, symmetric=symmetric) for e in (0, k, other))
    assert is_scaled(further, far, other - k)
    back = QParams(scale=far.scale / 2.0**k, zero_point=far.zero_point)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    torch.testing.assert_close(error(x[None], back, low, high), error(x[None], near, low, high), rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 3e38])
def test_scales_at_the_ends_of_float32_are_normal_numbers(size: float) -> None:
    x = torch.tensor([[0.0, size / 2, size]])
    for qparams in (choose_weight_qparams(x, -127, 127), choose_activation_qparams(x, 8)):
        assert (qparams.scale >= torch.finfo(torch.float32).tiny).all()
        assert torch.isfinite(qparams.scale).all()


def test_a_channel_next_to_nothing_beside_ordinary_ones() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    expected = choose_weight_qparams(weight, -127, 127)
    weight[1] = 1e-20
    found = choose_weight_qparams(weight, -127, 127)
    assert torch.equal(found.scale[[0, 2]], expected.scale[[0, 2]])
    assert found.scale[1] < 2**-12 * found.scale[0]


def test_a_dead_activation_gets_a_usable_scale() -> None:
    qparams = choose_activation_qparams(torch.zeros(10, 3), 4)
    assert qparams.scale.item() > 0
    assert qparams.zero_point.item() == 0


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 3), (0, 255), (-8, 7)])
def test_how_many_candidates_are_compared_at_once_changes_nothing(
    qmin: int, qmax: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    found = []
    for elements in (1, 5 * 40 * 7, 2**26):
        monkeypatch.setattr("pdq_export.numerics.search._ELEMENTS_ON_CPU", elements)
        found.append(choose_weight_qparams(weight, qmin, qmax))
    assert all(torch.equal(found[0].scale, q.scale) for q in found)
    assert all(torch.equal(found[0].zero_point, q.zero_point) for q in found)
