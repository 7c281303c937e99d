"""Data in Python: everything that gives samples is read to the same arrays, once and no further than is needed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationDataReader
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pdq_export.data import ImageSet, InputSet, InputSpec, read_data
from pdq_export.errors import DataError

IMAGE = (InputSpec(name="image", shape=(None, 3, 4, 5)),)
TWO = (InputSpec(name="a", shape=(None, 3, 4, 5)), InputSpec(name="b", shape=(None, 2)))
X = np.random.default_rng(0).standard_normal((10, 3, 4, 5)).astype(np.float32)
Y = np.arange(10) % 4
B = np.random.default_rng(1).standard_normal((10, 2)).astype(np.float32)
X_TENSOR, Y_TENSOR = torch.from_numpy(X), torch.from_numpy(Y)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """As onnxruntime's users write them."""

    def __init__(self, *names: str) -> None:
        self._left = iter(range(len(X)))
        self._names = names

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._left, None)
        arrays = dict(zip(("image", "a", "b"), (X, X, B), strict=True))
        return None if row is None else {name: arrays[name][row : row + 1] for name in self._names}


class Numbered(Dataset):  # type: ignore[type-arg]
    """A dataset as torch defines it: it has a length, and no end when it is iterated."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return X_TENSOR[number % len(X)], int(Y[number % len(X)])


IMAGES: dict[str, Callable[[], Any]] = {
    "array": lambda: X,
    "tensor": lambda: X_TENSOR,
    "tensor with a gradient": lambda: X_TENSOR.clone().requires_grad_(),
    "mapping": lambda: {"image": X},
    "mapping of tensors": lambda: {"image": X_TENSOR},
    "generator of images": lambda: (x for x in X),
    "generator of batches": lambda: (X[i : i + 3] for i in range(0, 10, 3)),
    "list of tensors": lambda: list(X_TENSOR),
    "tuple of images": lambda: tuple(X),
    "two batches": lambda: (X[:5], X[5:]),
    "list of two batches": lambda: [X[:5], X[5:]],
    "dicts": lambda: [{"image": x, "name": "…"} for x in X],
    "one-tuples": lambda: DataLoader(TensorDataset(X_TENSOR), batch_size=4),
    "data reader": lambda: Reader("image"),
}
LABELLED: dict[str, Callable[[], Any]] = {
    "(X, y)": lambda: (X, Y),
    "[X, y]": lambda: [X_TENSOR, Y_TENSOR],
    "(X, list)": lambda: (X, Y.tolist()),
    "({name: X}, y)": lambda: ({"image": X}, Y),
    "image set": lambda: ImageSet.from_array(X, labels=Y),
    "loader": lambda: DataLoader(TensorDataset(X_TENSOR, Y_TENSOR), batch_size=4),
    "loader in order of a dataset": lambda: DataLoader(Numbered(), batch_size=1),
    "dataset": Numbered,
    "pairs": lambda: zip(X, Y, strict=True),
    "pairs of tensors": lambda: zip(X_TENSOR, Y_TENSOR, strict=True),
    "labels of shape [n, 1]": lambda: [(X[:6], Y[:6, None]), (X[6:], Y[6:, None])],
    "dicts with labels": lambda: [{"image": X[i : i + 5], "labels": Y[i : i + 5]} for i in (0, 5)],
    "pairs of dicts": lambda: (({"image": x}, y) for x, y in zip(X, Y, strict=True)),
}


@pytest.mark.parametrize("limit", [None, 1, 4, 7, 10, 100])
@pytest.mark.parametrize("form", [*IMAGES, *LABELLED])
def test_every_form_gives_the_same_images(form: str, limit: int | None) -> None:
    data = read_data({**IMAGES, **LABELLED}[form](), IMAGE, limit=limit)
    assert isinstance(data, ImageSet)
    assert np.array_equal(data.images, X[:limit])
    if form in IMAGES:
        assert data.labels is None
    else:
        assert data.labels is not None
        assert data.labels.tolist() == Y[:limit].tolist()


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("limit", [None, 4])
def test_labels_can_be_given_beside_them(form: str, limit: int | None) -> None:
    for labels in (Y, Y_TENSOR, Y.tolist()):
        data = read_data(IMAGES[form](), IMAGE, limit=limit, labels=labels)
        assert data.labels is not None
        assert data.labels.tolist() == Y[:limit].tolist()
    with pytest.raises(DataError, match="labels of shape 9 for 10 images"):
        read_data(IMAGES[form](), IMAGE, labels=Y[:9])


@pytest.mark.parametrize("form", LABELLED)
def test_labels_are_given_once(form: str) -> None:
    with pytest.raises(DataError, match="has labels of its own, and labels are given as well"):
        read_data(LABELLED[form](), IMAGE, labels=Y)


TWO_INPUTS: dict[str, Callable[[], Any]] = {
    "mapping": lambda: {"a": X, "b": torch.from_numpy(B)},
    "dicts": lambda: ({"a": x, "b": b} for x, b in zip(X, B, strict=True)),
    "batches": lambda: [{"b": B[i : i + 5], "a": X_TENSOR[i : i + 5]} for i in (0, 5)],
    "data reader": lambda: Reader("b", "a"),
    "with labels": lambda: [({"a": X, "b": B}, Y)],
    "({...}, y)": lambda: ({"a": X, "b": B}, Y),
    "input set": lambda: InputSet.from_arrays({"a": X, "b": B}, expected=TWO),
}


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("form", TWO_INPUTS)
def test_several_inputs(form: str, limit: int | None) -> None:
    data = read_data(TWO_INPUTS[form](), TWO, limit=limit)
    assert isinstance(data, InputSet)
    assert all(np.array_equal(found, x[:limit]) for found, x in zip(data.inputs(), (X, B), strict=True))
    assert (data.labels is not None) == ("y" in form or "labels" in form)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), limit=st.integers(1, 30))
def test_no_more_is_read_than_is_needed(sizes: list[int], limit: int) -> None:
    given_out = 0

    def batches() -> Iterator[np.ndarray]:
        nonlocal given_out
        for size in sizes:
            given_out += 1
            yield np.full((size, 3, 4, 5), given_out, np.float32)

    data = read_data(batches(), IMAGE, limit=limit)
    assert len(data) == min(limit, sum(sizes))
    needed = next((n for n in range(1, len(sizes) + 1) if sum(sizes[:n]) >= limit), len(sizes))
    assert given_out == needed


def endless() -> Iterator[np.ndarray]:
    while True:
        yield X


def test_what_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read_data(endless(), IMAGE, limit=25)) == 25
    monkeypatch.setattr("pdq_export.data.items.MAX_BYTES", 100_000)
    with pytest.raises(DataError, match=r"generator: item 41: .* GiB so far; .* an iterable that ends"):
        read_data(endless(), IMAGE)


def raising() -> Iterator[np.ndarray]:
    yield X[0]
    raise KeyError("path")


REFUSED = {
    "a number": (lambda: 5, r"data: int given; expected a path, an array or tensor .* CalibrationDataReader"),
    "a function": (lambda: endless, r"data: function given; expected a path"),
    "a type": (lambda: Reader, r"data: type given|data: ABCMeta given"),
    "bytes": (lambda: b"x", r"data: bytes given"),
    "nothing": (lambda: iter(()), r"no samples; expected at least one: an iterator or a data reader is read once"),
    "bytes of pixels": (
        lambda: [np.zeros((3, 4, 5), np.uint8)],
        r"list: item 0: uint8 of shape 3 x 4 x 5; expected float32; .* ImageSet.from_array\(images, mean=..., std=...",
    ),
    "doubles": (lambda: [X[0].astype(float)], r"item 0: float64 .* expected float32; convert them"),
    "another size": (lambda: [X[0], X[1, :, :3]], r"item 1: images are 3 x 3 x 5 .* takes others"),
    "channels last": (lambda: [X[0].transpose(1, 2, 0)], r"item 0: images are 4 x 5 x 3 .*"),
    "another rank": (lambda: [X[0, 0]], r"item 0: shape 4 x 5; expected the model's input 'image'"),
    "an image file": (lambda: __import__("PIL.Image").Image.new("RGB", (5, 4)), r"data: Image given"),
    "image files": (lambda: [__import__("PIL.Image").Image.new("RGB", (5, 4))], r"item 0: Image; .* ToTensor does"),
    "no array": (lambda: [("x", 1)], r"item 0: str; expected an array or tensor"),
    "triples": (lambda: [(X[0], 1, 2)], r"item 0: tuple of 3; expected an array or tensor"),
    "another name": (lambda: [{"x": X[0]}], r"item 0: holds 'x'; expected an array for the model's input 'image'"),
    "bytes among floats": (lambda: [X[0], (X[0] > 0).astype(np.uint8)], r"item 1: uint8 of shape"),
    "half labelled": (lambda: [(X[0], 1), X[1]], r"item 1: no label, unlike the items before it"),
    "one-hot": (lambda: [(X[:4], np.eye(4))], r"item 0: labels of shape 4 x 4 for 4 samples; expected one for each"),
    "text labels": (lambda: [(X[0], "cat")], r"item 0: label is str; expected the index of a class"),
    "float labels": (lambda: [(X[0], 0.5)], r"labels are float64; expected integers"),
    "it raises": (raising, r"generator: reading item 1 raised KeyError: 'path'"),
    "bfloat16": (lambda: X_TENSOR.bfloat16(), r"data: Tensor that is no array \(Got unsupported ScalarType BFloat16"),
    "empty batch": (lambda: [X[:0]], r"item 0: .*empty"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_does_not_fit(form: str) -> None:
    make, message = REFUSED[form]
    with pytest.raises(DataError, match=message):
        read_data(make(), IMAGE)


def test_images_of_two_sizes_for_dynamic_ones() -> None:
    dynamic = (InputSpec(name="image", shape=(None, 3, None, None)),)
    with pytest.raises(DataError, match="item 1: samples of 3 x 3 x 5, but those before are 3 x 4 x 5; resize"):
        read_data([X[0], X[1, :, :3]], dynamic)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [X[0]], r"list: item 0: ndarray; expected a dict of arrays by input name: 'a', 'b'"),
        (lambda: X, r"data: ndarray given; expected a path.*; the model's inputs are 'a', 'b'"),
        (lambda: [{"a": X[:2], "b": B[:3]}], r"item 0: inputs of 2 and 3 samples; expected as many of each"),
        (lambda: [{"a": X[0]}], r"item 0: holds 'a'; expected an array for the model's input 'b'"),
    ],
)
def test_several_inputs_need_names(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_data(make(), TWO)


def test_memory_that_runs_out_is_not_hidden() -> None:
    def full() -> Iterator[np.ndarray]:
        raise MemoryError
        yield X

    with pytest.raises(DataError) as caught:
        read_data(full(), IMAGE)
    assert isinstance(caught.value.__cause__, MemoryError)  # which `tells_of_memory` looks for
