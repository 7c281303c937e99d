"""Packed planes: every width, shape, axis and zero point there and back, in numpy and as onnxruntime unpacks them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.export.packing import (
    WIDTHS,
    Packable,
    choose_widths,
    from_rows,
    pack,
    packed_bytes,
    to_rows,
    unpack,
)

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)


def integers(shape, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.int16)


@given(bits=st.sampled_from(sorted(WIDTHS)), count=st.integers(1, 5), length=st.integers(1, 40), seed=SEEDS)
def test_unpacking_gives_what_was_packed(bits, count, length, seed):
    rows, width = integers((count, length), bits, seed), WIDTHS[bits]
    planes = pack(rows, width)
    assert (unpack(planes, width, length) == rows).all()
    blocks = -(-length // width.granule)
    assert planes[0].shape == (count, blocks, *width.tail)
    assert planes[-1].shape[:2] == (count, blocks)
    assert sum(plane.nbytes for plane in planes) == count * blocks * width.granule * bits // 8


@pytest.mark.parametrize("bits", WIDTHS)
def test_indices_hold_their_weights_in_order_lowest_first(bits):
    width = WIDTHS[bits]
    rows = integers((3, width.granule * 4), bits, 0)
    index = [
        sum(int(value) << (bits * k) for k, value in enumerate(group))
        for group in rows.reshape(-1, width.group).tolist()
    ]
    main, *_ = pack(rows, width)
    assert main.reshape(-1).tolist() == [number & 255 for number in index]


@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_rows_are_channels(shape, seed, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    values = integers(shape, 4, seed)
    rows = to_rows(values, axis, shape[axis])
    assert rows.shape == (shape[axis], values.size // shape[axis])
    assert all((rows[c] == values.take(c, axis).reshape(-1)).all() for c in range(shape[axis]))
    assert (from_rows(rows, shape, axis) == values).all()
    assert (from_rows(to_rows(values, axis, 1), shape, axis) == values).all()
    assert (from_rows(to_rows(values, None, 1), shape, None) == values).all()


@given(bits=st.sampled_from(sorted(WIDTHS)), shape=SHAPES, seed=SEEDS, data=st.data())
def test_bytes_are_counted_as_they_are(bits, shape, seed, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    zero_point = integers(shape[axis], bits, seed)
    weight = Packable.of(shape, axis, bits, zero_point)
    assert weight.rows == (1 if len(set(zero_point.tolist())) == 1 else shape[axis])
    planes = pack(to_rows(integers(shape, bits, seed), axis, weight.rows), WIDTHS[bits])
    assert packed_bytes(weight, bits) == sum(plane.nbytes for plane in planes)
    assert packed_bytes(weight, 8) == np.prod(shape)


@pytest.mark.parametrize("value", [-1, 8])
def test_an_integer_that_the_bits_do_not_hold_is_refused(value):
    with pytest.raises(ValueError, match="expected 3 bits"):
        pack(np.array([[0, value]], np.int16), WIDTHS[3])


@pytest.mark.parametrize("change", ["short", "type", "rows"])
def test_planes_of_another_weight_are_refused(change):
    planes = pack(integers((4, 32), 3, 0), WIDTHS[3])
    match change:
        case "short":
            planes[1] = planes[1][:, :-1]
        case "type":
            planes[0] = planes[0].astype(np.int32)
        case "rows":
            planes[0] = planes[0][:2]
    with pytest.raises(ValueError, match="of a plane of"):
        unpack(planes, WIDTHS[3], 32)


def packable(shape, bits, axis=0) -> Packable:
    return Packable.of(shape, axis, bits, np.arange(shape[axis]) % 3)


def test_small_weights_stay_int8():
    assert choose_widths([packable((16, 3, 3, 3), 4)]) == [8]
    assert choose_widths([packable((16, 3, 3, 3), 4), packable((64, 64, 3, 3), 4)]) == [8, 4]
    assert choose_widths([packable((64, 64, 3, 3), 8), packable((64, 64, 3, 3), 7)]) == [8, 7]
    assert choose_widths([]) == []


def test_rows_that_do_not_fill_their_bytes_take_more_bits_where_that_is_less():
    """Nine weights of a depthwise row take 6 bytes at 3 bits and 5 at 4."""
    depthwise = packable((1024, 1, 3, 3), 3)
    assert [packed_bytes(depthwise, bits) // 1024 for bits in (2, 3, 4, 8)] == [3, 6, 5, 9]
    assert choose_widths([depthwise]) == [4]
    assert choose_widths([Packable.of((1024, 1, 3, 3), 0, 3, np.zeros(1024))]) == [3]


@given(
    weights=st.lists(
        st.builds(packable, st.tuples(st.integers(2, 200), st.integers(1, 200)), st.integers(2, 8)), max_size=4
    )
)
def test_no_other_choice_takes_fewer_bytes(weights):
    from pdq_export.export import packing

    def cost(choice) -> int:
        tables = len(set(choice) - {8}) * packing.TABLE_BYTES
        return tables + sum(
            packed_bytes(weight, bits)
            + packing.offset_bytes(weight, bits)
            + packing.UNPACKING_NODE_BYTES * packing.unpacking_nodes(weight, bits)
            for weight, bits in zip(weights, choice, strict=True)
        )

    chosen = choose_widths(weights)
    possible = itertools.product(*(range(weight.bits, 9) for weight in weights))
    assert cost(chosen) == min(cost(choice) for choice in possible)
