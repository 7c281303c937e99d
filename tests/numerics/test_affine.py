"""Fake quantization against onnxruntime and its gradients against autograd's own."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdq_export.numerics.affine import bernoulli_like, dequantize_affine, fake_quantize_affine, quantize_affine

FLOATS = st.floats(-1e4, 1e4, width=32)


def onnxruntime_quantize(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        m (float[N] x, float scale, uint8 zero_point) => (uint8[N] q) { q = QuantizeLinear(x, scale, zero_point) }"""
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": x, "scale": np.array(scale, np.float32), "zero_point": np.array(zero_point, np.uint8)}
    return np.asarray(session.run(None, feeds)[0])


@settings(max_examples=60)
@given(
    x=st.lists(FLOATS, min_size=1, max_size=40),
    scale=st.floats(2.0**-10, 1024, width=32),
    zero_point=st.integers(0, 255),
)
def test_quantize_equals_onnxruntime(x: list[float], scale: float, zero_point: int) -> None:
    values = np.array(x, np.float32)
    ours = quantize_affine(torch.from_numpy(values), torch.tensor(scale), torch.tensor(float(zero_point)), 0, 255)
    np.testing.assert_array_equal(ours.numpy(), onnxruntime_quantize(values, scale, zero_point))


def test_ties_round_to_even() -> None:
    scale = torch.tensor(2.0)
    x = torch.tensor([1.0, 3.0, 5.0, -1.0, -3.0])
    assert quantize_affine(x, scale, torch.tensor(2.0), 0, 15).tolist() == [2, 4, 4, 2, 0]


@settings(max_examples=50)
@given(
    x=st.lists(FLOATS, min_size=1, max_size=40), scale=st.floats(2.0**-6, 128, width=32), zero_point=st.integers(0, 15)
)
def test_fake_quantize_is_quantize_then_dequantize(x: list[float], scale: float, zero_point: int) -> None:
    values, s, z = torch.tensor(x), torch.tensor(scale), torch.tensor(float(zero_point))
    expected = dequantize_affine(quantize_affine(values, s, z, 0, 15), s, z)
    actual = fake_quantize_affine(values, s, -zero_point, 15 - zero_point)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("with_keep", [False, True])
def test_gradients_are_the_straight_through_ones(with_keep: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=generator, dtype=torch.float64) * 2
    weight = torch.randn(2000, generator=generator, dtype=torch.float64)
    keep = (torch.rand(2000, generator=generator) < 0.5).double() if with_keep else None

    def plain(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ratio = x / scale
        rounded = ratio + (torch.round(ratio) - ratio).detach()
        # The straight-through range ends where the ratio leaves [low, high], not half a step later.
        inside = (ratio > -3) & (ratio < 4)
        quantized = torch.where(inside, rounded, torch.round(ratio.detach()).clamp(-3, 4)) * scale
        return quantized if keep is None else torch.where(keep > 0, x, quantized)

    results = []
    for function in (plain, lambda x, s: fake_quantize_affine(x, s, -3, 4, keep)):
        leaf, scale = x.clone().requires_grad_(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        output = function(leaf, scale)
        (output * weight).sum().backward()
        results.append((output.detach(), leaf.grad, scale.grad))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


def test_bernoulli_mask_has_its_probability_and_repeats_with_the_seed() -> None:
    x = torch.empty(1003, 101)
    for probability in (0.0, 0.25, 0.5, 1.0):
        mask = bernoulli_like(x, probability, torch.Generator().manual_seed(3))
        assert mask.shape == x.shape
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert mask.mean().item() == pytest.approx(probability, abs=0.006)
        again = bernoulli_like(x, probability, torch.Generator().manual_seed(3))
        assert torch.equal(mask, again)


def test_bernoulli_mask_is_not_correlated_between_neighbours() -> None:
    """Eight elements share a 64-bit draw."""
    mask = bernoulli_like(torch.empty(1 << 17), 0.5, torch.Generator().manual_seed(1)).view(-1, 8)
    correlation = torch.corrcoef(mask.T) - torch.eye(8)
    assert correlation.abs().max() < 0.03
    assert (mask.mean(0) - 0.5).abs().max() < 0.02
