"""Samples that come one after the other or in batches: loaders, data readers, datasets, generators."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.checks import MAX_BYTES, check_shape
from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet, check_names
from pdq_export.data.input_spec import InputSpec, format_shape
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import DataError

TAKEN = (
    "a path, an array or tensor [N, ...], (X, y), {input name: array}, an ImageSet, an InputSet, or a DataLoader, a "
    "CalibrationDataReader or another iterable of arrays or tensors, (image, label) pairs or dicts by input name"
)
_LABELS = "labels"  # beside inputs in a dict, as in an .npz


@runtime_checkable
class DataReader(Protocol):
    """What onnxruntime's CalibrationDataReader is: gives a dict of arrays by input name, and None at the end."""

    def get_next(self) -> Mapping[str, Any] | None: ...


def as_array(value: object, where: str) -> NDArray[Any] | None:
    """A NumPy array, a tensor of torch on any device, or what else turns into an array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    try:
        for name in ("detach", "cpu"):  # of tensors; this part does not know torch
            if callable(method := getattr(value, name, None)):
                value = method()
        return np.asarray(value) if hasattr(value, "__array__") else None
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: {type(value).__name__} that is no array ({_told(error)}); expected float32"
        ) from error


def is_iterable(source: object) -> bool:
    """Whether `read_items` takes it: not a text or a mapping, whose items are no samples."""
    if isinstance(source, str | bytes | Mapping | type):
        return False
    return isinstance(source, Iterable | DataReader) or _is_dataset(source)


def read_items(
    source: Any,
    expected: Sequence[InputSpec],
    *,
    where: str,
    limit: int | None = None,
    preprocess: Preprocess | None = None,
) -> ImageSet | InputSet:
    """The first ``limit`` samples of an iterable, which is gone through once and no further than that.

    An item is one sample or a batch of them, by its rank: an array or tensor, or a dict of them by input name, alone
    or in a pair with its labels; a dict may hold ``labels`` itself. Raises DataError, with the number of the item, for
    what does not fit, and where the iterable raises. ``preprocess``: has mean and std of images of bytes.
    """
    collected = _Collected(where, expected, preprocess or Preprocess())
    for number, item in enumerate(_items(source, where)):
        collected.add(item, number)
        if limit is not None and collected.count >= limit:
            break
    return collected.result(limit)


def _is_dataset(source: object) -> bool:
    """Whether it is a dataset of torch's, which has a length and numbers but may not end when it is iterated."""
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _items(source: Any, where: str) -> Iterator[Any]:
    advance: Callable[[], Any]
    with _told_as_ours(where, 0):
        if isinstance(source, DataReader):
            advance = iter(source.get_next, None).__next__
        elif isinstance(source, Iterable):
            advance = iter(source).__next__
        else:
            advance = map(source.__getitem__, range(len(source))).__next__
    for number in itertools.count():
        with _told_as_ours(where, number):
            try:
                item = advance()
            except StopIteration:
                return
        yield item


class _told_as_ours:  # noqa: N801  (a context, not contextlib's: that would hide StopIteration)
    """Turns whatever a source raises into a DataError."""

    def __init__(self, where: str, number: int) -> None:
        self._where, self._number = where, number

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(
                f"{self._where}: reading item {self._number} raised {type(error).__name__}: {_told(error)}; expected "
                "an iterable that gives its samples"
            ) from error


class _Collected:
    """Rows of all inputs, and labels, item by item."""

    def __init__(self, where: str, expected: Sequence[InputSpec], preprocess: Preprocess) -> None:
        self.count = 0
        self._preprocess = preprocess
        self._where, self._expected = where, expected
        self._rows: list[tuple[NDArray[Any], ...]] = []
        self._labels: list[NDArray[Any] | None] = []
        self._bytes = 0

    def add(self, item: Any, number: int) -> None:
        where = f"{self._where}: item {number}"
        bytes_too = self._preprocess.takes_bytes
        rows, labels = _read_item(item, where, self._expected, bytes_too=bytes_too)
        if self._rows:
            _check_alike(where, [x.shape[1:] for x in rows], [x.shape[1:] for x in self._rows[0]])
            if any(x.dtype != before.dtype for x, before in zip(rows, self._rows[0], strict=True)):
                raise DataError(f"{where}: {rows[0].dtype}, but the items before are {self._rows[0][0].dtype}")
            if (labels is None) != (self._labels[0] is None):
                raise DataError(f"{where}: {'no label' if labels is None else 'a label'}, unlike the items before it")
        self._rows.append(rows)
        self._labels.append(labels)
        self.count += len(rows[0])
        self._bytes += sum(x.nbytes for x in rows)
        if self._bytes > MAX_BYTES:
            raise DataError(
                f"{where}: {self._bytes / 2**30:,.1f} GiB so far; expected at most {MAX_BYTES / 2**30:.0f} GiB: give "
                "fewer samples, and an iterable that ends"
            )

    def result(self, limit: int | None) -> ImageSet | InputSet:
        if not self._rows:
            raise DataError(
                f"{self._where}: no samples; expected at least one: an iterator or a data reader is read once, so make "
                "a new one for every use"
            )
        found = [label for label in self._labels if label is not None]
        labels = np.concatenate(found) if found else None
        arrays = [np.concatenate(column) for column in zip(*self._rows, strict=True)]
        self._rows.clear()
        first, *others = self._expected
        if first.takes_images and not others:
            statistics = self._preprocess.of_array(arrays[0].dtype, arrays[0].shape, first, self._where)
            return ImageSet.from_array(
                arrays[0],
                labels=labels,
                source=self._where,
                expected=first,
                limit=limit,
                layout=self._preprocess.layout,
                **statistics,
            )
        named = dict(zip((spec.name for spec in self._expected), arrays, strict=True))
        return InputSet.from_arrays(named, labels=labels, source=self._where, expected=self._expected, limit=limit)


def _read_item(
    item: Any, where: str, expected: Sequence[InputSpec], *, bytes_too: bool
) -> tuple[tuple[NDArray[Any], ...], NDArray[Any] | None]:
    """One array [n, ...] for each input, and labels [n] where there are any."""
    label: Any = None
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        item, label = item if len(item) == 2 else (item[0], None)
    if isinstance(item, Mapping):
        check_names(where, item, expected)
        if label is None and _LABELS not in {spec.name for spec in expected}:
            label = item.get(_LABELS)
        named = {spec.name: item[spec.name] for spec in expected}
    elif len(expected) == 1:
        named = {expected[0].name: item}
    else:
        names = ", ".join(repr(spec.name) for spec in expected)
        raise DataError(f"{where}: {_kind(item)}; expected a dict of arrays by input name: {names}")
    bytes_too = bytes_too and len(expected) == 1 and expected[0].takes_images
    rows = tuple(_read_rows(named[spec.name], where, spec, bytes_too=bytes_too) for spec in expected)
    sizes = {len(x) for x in rows}
    if len(sizes) > 1:
        raise DataError(f"{where}: inputs of {' and '.join(map(str, sorted(sizes)))} samples; expected as many of each")
    return rows, None if label is None else _read_labels(label, where, len(rows[0]))


def _read_rows(value: Any, where: str, spec: InputSpec, *, bytes_too: bool) -> NDArray[Any]:
    """Samples [n, ...] of one input; one that stands alone gets an axis in front."""
    array, rank = as_array(value, where), len(spec.shape)
    if array is None:
        images = "; turn images into arrays, as torchvision's ToTensor does" if hasattr(value, "getbands") else ""
        raise DataError(f"{where}: {_kind(value)}; expected an array or tensor for the model's {spec}{images}")
    rows = array[None] if array.ndim == rank - 1 else array
    if rows.dtype != np.float32 and not (bytes_too and rows.dtype == np.uint8):
        remedy = (
            "normalize them as in training, give mean and std, or ImageSet.from_array(images, mean=..., std=...)"
            if rows.dtype == np.uint8
            else "convert them to float32"
        )
        raise DataError(f"{where}: {rows.dtype} of shape {format_shape(array.shape)}; expected float32; {remedy}")
    if rank == 4 and rows.ndim == 4:
        check_shape(where, rows.shape, spec)
    wanted = spec.shape[1:]
    if rows.ndim != rank or any(want not in (None, got) for want, got in zip(wanted, rows.shape[1:], strict=True)):
        raise DataError(
            f"{where}: shape {format_shape(array.shape)}; expected the model's {spec}: a batch, or one sample, "
            f"{format_shape(wanted)}"
        )
    if not math.prod(rows.shape):
        raise DataError(f"{where}: shape {format_shape(array.shape)}: empty; expected at least one sample")
    return rows


def _read_labels(value: Any, where: str, count: int) -> NDArray[Any]:
    labels = np.asarray(value) if isinstance(value, int | float | list) else as_array(value, where)
    if labels is None:
        raise DataError(f"{where}: label is {_kind(value)}; expected the index of a class, alone or in an array")
    if labels.shape not in ((), (count,), (count, 1)) or labels.size != count:
        raise DataError(
            f"{where}: labels of shape {format_shape(labels.shape)} for {count} samples; expected one for each, the "
            "index of its class"
        )
    return labels.reshape(count)


def _check_alike(where: str, found: Sequence[tuple[int, ...]], before: Sequence[tuple[int, ...]]) -> None:
    for got, want in zip(found, before, strict=True):
        if got != want:
            raise DataError(
                f"{where}: samples of {format_shape(got)}, but those before are {format_shape(want)}; resize them to "
                "one size"
            )


def _kind(value: object) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "no message"
