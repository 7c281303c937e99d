"""Arrays by input name: what fits a model's inputs, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from pdq_export.data import ImageSet, InputSet, InputSpec, load_inputs, read_data
from pdq_export.errors import DataError

RNG = np.random.default_rng(0)
SPECS = (InputSpec(name="image", shape=(None, 3, 4, None)), InputSpec(name="a/b", shape=(None, 2)))
ARRAYS = {
    "image": RNG.standard_normal((6, 3, 4, 5)).astype(np.float32),
    "a/b": RNG.standard_normal((6, 2)).astype(np.float32),
}


def saved(path: Path, **changes: np.ndarray) -> Path:
    np.savez(path / "data.npz", **{**ARRAYS, **changes})
    return path / "data.npz"


def test_arrays_come_in_the_order_of_the_inputs() -> None:
    data = InputSet.from_arrays(dict(reversed(ARRAYS.items())), labels=np.arange(6), expected=SPECS)
    assert len(data) == 6
    assert all(np.array_equal(x, ARRAYS[spec.name]) for x, spec in zip(data.inputs(), SPECS, strict=True))
    assert str(data) == "arrays: 6 samples (image 3 x 4 x 5, a/b 2, labelled)"
    assert [tuple(len(x) for x in batch) for batch in data.batches(4)] == [(4, 4), (2, 2)]
    first = data.head(2)
    assert first.labels is not None
    assert (len(first), first.labels.tolist()) == (2, [0, 1])


@pytest.mark.parametrize("limit", [None, 2, 100])
def test_an_archive(tmp_path: Path, limit: int | None) -> None:
    data = load_inputs(saved(tmp_path, labels=np.arange(6), extra=np.zeros(3)), expected=SPECS, limit=limit)
    count = min(limit or 6, 6)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(count))
    assert all(np.array_equal(x, ARRAYS[spec.name][:count]) for x, spec in zip(data.inputs(), SPECS, strict=True))


def test_every_form_of_data(tmp_path: Path) -> None:
    for source in (ARRAYS, saved(tmp_path), str(saved(tmp_path)), InputSet.from_arrays(ARRAYS, expected=SPECS)):
        data = read_data(source, SPECS, limit=3)
        assert isinstance(data, InputSet)
        assert len(data) == 3
    assert len(read_data(ARRAYS["a/b"], SPECS[1:])) == 6
    assert isinstance(read_data(ARRAYS["image"], SPECS[:1]), ImageSet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": np.zeros((6, 3, 5, 5), np.float32)},
            "[image]: float32 of shape 6 x 3 x 5 x 5; expected the",
        ),
        ({"image": np.zeros((6, 3, 4), np.float32)}, "[image]: float32 of shape 6 x 3 x 4"),
        ({"image": np.zeros((6, 3, 4, 5))}, "[image]: float64 of shape"),
        ({"image": np.zeros((0, 3, 4, 5), np.float32)}, "of shape 0 x 3 x 4 x 5"),
        ({"a/b": np.zeros((5, 2), np.float32)}, "arrays of different length: 'image' 6, 'a/b' 5"),
        ({"a/b": np.full((6, 2), np.nan, np.float32)}, "[a/b]: holds NaN or Inf"),
        ({"labels": np.zeros(5, np.int64)}, "labels of shape 5 for 6 images"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    for limit in (None, 6):
        with pytest.raises(DataError) as caught:
            load_inputs(saved(tmp_path, **changes), expected=SPECS, limit=limit)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "labels"])
def test_lengths_count_behind_what_is_read(tmp_path: Path, name: str) -> None:
    short = {"a/b": np.zeros((5, 2), np.float32), "labels": np.zeros(5, np.int64)}[name]
    with pytest.raises(DataError, match=r"different length: 'image' 6, 'a/b' 5|labels of shape 5 for 6 images"):
        load_inputs(saved(tmp_path, **{name: short}), expected=SPECS, limit=2)


def test_what_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=ARRAYS["image"])
    np.save(tmp_path / "data.npy", ARRAYS["image"])
    for source, message in (
        (tmp_path / "data.npz", r"holds 'images'; expected an array for the model's input 'image'"),
        (
            tmp_path / "data.npy",
            r"data.npy: no .npz; expected an .npz with one float32 array for each .* 'image', 'a/b'",
        ),
        (tmp_path, "no .npz"),
        (tmp_path / "none.npz", "no such file"),
        ({"image": ARRAYS["image"]}, "expected an array for the model's input 'a/b'"),
        (ARRAYS["image"], "data: ndarray given; expected a path, .*; the model's inputs are 'image', 'a/b'"),
    ):
        with pytest.raises(DataError, match=message):
            read_data(source, SPECS)


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="not a readable NumPy file"):
        load_inputs(path, expected=SPECS)
