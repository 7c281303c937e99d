"""Data for models that take more than one image: several inputs, or one that is not N x C x H x W."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.checks import check_labels
from pdq_export.data.input_spec import InputSpec, format_shape
from pdq_export.errors import DataError

Array = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSet:
    """One float32 array (N, ...) for each input of a model, in the model's order, ready for it.

    ``names``: the inputs. ``labels``: (N,), if they are known. ``source``: where they come from, for messages.
    """

    names: tuple[str, ...]
    arrays: tuple[Array, ...]
    labels: NDArray[np.int64] | None = None
    source: str

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        *,
        labels: NDArray[Any] | None = None,
        source: str = "arrays",
        expected: Sequence[InputSpec],
        limit: int | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> "InputSet":
        """The first ``limit`` rows of arrays by input name. Raises DataError if they do not fit the inputs.

        ``lengths``: by name, how many rows there are altogether, if ``arrays`` hold only the first ``limit``.
        """
        check_names(source, arrays, expected)
        chosen = [_checked(np.asarray(arrays[spec.name]), f"{source}[{spec.name}]", spec) for spec in expected]
        lengths = lengths or {spec.name: len(array) for spec, array in zip(expected, chosen, strict=True)}
        counts = set(lengths.values())
        if len(counts) != 1:
            sizes = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise DataError(f"{source}: arrays of different length: {sizes}; expected one row of each for every sample")
        checked = None if labels is None else check_labels(source, np.asarray(labels), counts.pop())[:limit]
        rows = tuple(np.ascontiguousarray(array[:limit]) for array in chosen)
        return cls(names=tuple(spec.name for spec in expected), arrays=rows, labels=checked, source=source)

    def check(self, expected: Sequence[InputSpec]) -> "InputSet":
        """Return itself, in the order of ``expected``. Raises DataError if the arrays do not fit the inputs."""
        arrays = dict(zip(self.names, self.arrays, strict=True))
        return self.from_arrays(arrays, labels=self.labels, source=self.source, expected=expected)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __str__(self) -> str:
        labels = "" if self.labels is None else ", labelled"
        shapes = ", ".join(f"{n} {format_shape(a.shape[1:])}" for n, a in zip(self.names, self.arrays, strict=True))
        return f"{self.source}: {len(self)} sample{'' if len(self) == 1 else 's'} ({shapes}{labels})"

    def head(self, count: int) -> "InputSet":
        """The first ``count`` samples, all if there are fewer."""
        labels = None if self.labels is None else self.labels[:count]
        return dataclasses.replace(self, arrays=tuple(array[:count] for array in self.arrays), labels=labels)

    def take(self, numbers: Sequence[int]) -> "InputSet":
        """The samples of these numbers."""
        labels = None if self.labels is None else self.labels[list(numbers)]
        return dataclasses.replace(self, arrays=tuple(array[list(numbers)] for array in self.arrays), labels=labels)

    def inputs(self) -> tuple[Array, ...]:
        """All samples: one array for each input of the model."""
        return self.arrays

    def batches(self, size: int, *, first: int = 0, every: int = 1) -> Iterator[tuple[Array, ...]]:
        """All samples in order, ``size`` at a time; the last batch may be smaller.

        Or some of these batches: from number ``first`` on, ``every`` so many-th.
        """
        for start in range(first * size, len(self), every * size):
            yield tuple(array[start : start + size] for array in self.arrays)


def check_names(where: str, names: Iterable[str], expected: Sequence[InputSpec]) -> None:
    """Raise DataError if an input has no array of its name."""
    known = set(names)
    for spec in expected:
        if spec.name not in known:
            found = ", ".join(map(repr, sorted(known)[:8])) or "nothing"
            raise DataError(f"{where}: holds {found}; expected an array for the model's {spec}, under its name")


def _checked(array: NDArray[Any], where: str, spec: InputSpec) -> Array:
    shape = array.shape
    fits = len(shape) == len(spec.shape) and all(
        want is None or got == want for got, want in zip(shape[1:], spec.shape[1:], strict=True)
    )
    if array.dtype != np.float32 or not shape or not fits or 0 in shape:
        raise DataError(
            f"{where}: {array.dtype} of shape {format_shape(shape)}; expected the model's {spec}, with a row for every "
            "sample in front"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{where}: holds NaN or Inf; expected finite values: remove or repair them")
    return array
