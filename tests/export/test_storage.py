import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.export.storage import pack, packed_tensor, storage_bits, storage_opset


@given(values=st.lists(st.integers(0, 15), max_size=20))
def test_four_bits_put_the_first_value_in_the_low_half(values):
    packed = pack(np.array(values, np.int16), 4)
    assert len(packed) == (len(values) + 1) // 2
    unpacked = [nibble for byte in packed for nibble in (byte & 15, byte >> 4)]
    assert unpacked[: len(values)] == values


@given(
    bits_signed=st.sampled_from([(2, False), (4, False), (8, False), (2, True), (4, True), (8, True)]),
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_onnx_reads_back_what_was_packed(bits_signed, seed, shape):
    bits, signed = bits_signed
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = np.random.default_rng(seed).integers(low, high, shape, dtype=np.int16)
    tensor = packed_tensor("w", values, bits, signed=signed)
    assert len(tensor.raw_data) == -(-values.size * bits // 8)
    read = onnx.numpy_helper.to_array(tensor)
    name = f"{'' if signed else 'u'}int{bits}"
    assert read.dtype == (getattr(ml_dtypes, name) if bits < 8 else np.dtype(name))
    assert (read.astype(np.int16) == values).all()


@pytest.mark.parametrize(
    ("bits", "opset", "stored"),
    [
        (2, 25, 2),
        (2, 24, 4),
        (2, 21, 4),
        (2, 20, 8),
        (3, 25, 4),
        (4, 21, 4),
        (4, 20, 8),
        (5, 25, 8),
        (8, 25, 8),
    ],
)
def test_the_fewest_bits_that_the_opset_knows(bits, opset, stored):
    assert storage_bits(bits, opset) == stored


@pytest.mark.parametrize("bits", range(2, 9))
def test_storage_opset_is_where_storage_stops_shrinking(bits):
    opset = storage_opset(bits)
    assert storage_bits(bits, opset) == storage_bits(bits, 99)
    assert opset == 13 or storage_bits(bits, opset - 1) > storage_bits(bits, opset)
