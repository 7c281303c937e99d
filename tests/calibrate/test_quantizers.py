"""Biases are rounded where they lie as the exporter rounds them in numpy, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from pdq_export.arithmetic.bias import bias_integers, bias_scale, channel_bias, round_bias
from pdq_export.calibrate.quantizers import BiasQuantizer

FLOATS = st.floats(-(2.0**40), 2.0**40, width=32)
SCALES = st.floats(2.0**-100, 2.0**20, width=32)


@given(st.data(), st.sampled_from([(), (1,), (6,), (1, 6), (6, 1), (2, 3)]), st.sampled_from([(), (1,), (3,), (6,)]))
def test_biases_are_the_exporters(data: st.DataObject, shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    bias = data.draw(nps.arrays(np.float32, shape, elements=FLOATS))
    weight_scale = data.draw(nps.arrays(np.float32, channels, elements=SCALES))
    input_scale = np.float32(data.draw(SCALES))
    if not shape:
        bias = bias.reshape(1)
    found = BiasQuantizer(torch.from_numpy(bias), torch.tensor(input_scale), torch.from_numpy(weight_scale))
    np.testing.assert_array_equal(found.value.numpy(), round_bias(bias, input_scale, weight_scale))
    flat = channel_bias(bias, weight_scale)
    assert (found.exact is None) == (flat is None)
    if flat is not None and found.exact is not None:
        scale = bias_scale(flat, input_scale, weight_scale).astype(np.float64)
        np.testing.assert_array_equal(found.exact.numpy(), bias_integers(flat, input_scale, weight_scale) * scale)


@pytest.mark.parametrize("tiny", [1e-45, 1e-30])
def test_a_bias_too_large_for_its_scale(tiny: float) -> None:
    bias, scale = np.array([3.0, -1e30], np.float32), np.full(2, tiny, np.float32)
    found = BiasQuantizer(torch.from_numpy(bias), torch.tensor(1e-10), torch.from_numpy(scale))
    np.testing.assert_array_equal(found.value.numpy(), round_bias(bias, np.float32(1e-10), scale))
