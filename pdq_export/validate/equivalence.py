"""Whether two models compute the same: how far apart outputs are, and whether float rounding alone explains that."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import percent

Array = NDArray[Any]
Outputs = Mapping[str, Array]
Inputs = tuple[NDArray[np.float32], ...]

_OF_MEAN = 0.1  # an element near zero may differ by this share of what one of usual size may
DRAWS = 2  # of noise that disturbs inputs
_NO_SIGNAL = 1e-60  # the square of what outputs of zeros count as, so that an error stays finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """What counts as float rounding in one float type.

    ``tolerance``: of an element, relative to it or to a tenth of the root mean square of its tensor. ``rounding``,
    ``doubtful``: changes of the input, relative to its size; a difference like those that the first makes is rounding,
    one like those of the second may be.
    """

    tolerance: float
    rounding: float
    doubtful: float


FLOAT32 = Precision(tolerance=1e-3, rounding=1e-5, doubtful=1e-4)
FLOAT16 = Precision(tolerance=2e-2, rounding=2.0**-9, doubtful=2.0**-7)  # numbers are 2^-10 apart
BFLOAT16 = Precision(tolerance=8e-2, rounding=2.0**-6, doubtful=2.0**-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """``error``: of ``output``, relative to its size over all elements; infinite where shapes differ or NaN comes up.

    ``words`` tell it. ``certain``: rounding does not explain it; None as long as nobody has looked.
    """

    output: str
    error: float
    words: str
    certain: bool | None = None


def find_differences(expected: Sequence[Outputs], found: Sequence[Outputs], precision: Precision) -> list[Difference]:
    """The differences beyond the tolerance between outputs, by name, of several batches, the largest first."""
    names = [name for name in expected[0] if name in found[0]]
    differences = [
        difference
        for name in names
        if (difference := _compare(name, [y[name] for y in expected], [y[name] for y in found], precision)) is not None
    ]
    return sorted(differences, key=lambda difference: difference.error, reverse=True)


def explain(
    difference: Difference,
    run: Callable[[Inputs], Outputs],
    batches: Sequence[Inputs],
    expected: Sequence[Outputs],
    precision: Precision,
) -> Difference | None:
    """The difference, certain or not; None where it is like those that tiny changes of the input make by themselves.

    Behind thresholds, sorts and arguments of a maximum, rounding can make any difference. ``run``: the model whose
    outputs for ``batches`` are ``expected``.
    """
    for size, verdict in ((precision.rounding, None), (precision.doubtful, False)):
        for draw in range(DRAWS):
            moved = [run(disturbed(batch, size, seed=draw)) for batch in batches]
            error = _error([y[difference.output] for y in expected], [y[difference.output] for y in moved])
            if difference.error <= 2 * error:
                return None if verdict is None else dataclasses.replace(difference, certain=verdict)
    return dataclasses.replace(difference, certain=True)


def disturbed(inputs: Inputs, size: float, *, seed: int) -> Inputs:
    """The inputs with noise of ``size`` times their own, their zeros included."""
    generator = np.random.default_rng(seed)

    def disturb(x: NDArray[np.float32]) -> NDArray[np.float32]:
        level = np.sqrt(np.mean(np.square(x, dtype=np.float64)))
        noise = generator.standard_normal(x.shape) * size
        return np.asarray(x + noise * np.maximum(np.abs(x), 0.1 * level), np.float32)

    return tuple(disturb(x) for x in inputs)


def join(chunks: Sequence[Outputs], like: Outputs) -> Outputs:
    """The outputs of several batches as one, along the axis on which those of ``like``, run at once, are longer."""
    return {name: _join([chunk[name] for chunk in chunks], like[name].shape) for name in like if name in chunks[0]}


def _join(parts: Sequence[Array], shape: tuple[int, ...]) -> Array:
    first = parts[0]
    if len(parts) == 1 or first.ndim != len(shape):
        return first
    axis = next((axis for axis, size in enumerate(shape) if size != first.shape[axis]), None)
    return first if axis is None else np.concatenate(parts, axis=axis)


def _compare(name: str, expected: Sequence[Array], found: Sequence[Array], precision: Precision) -> Difference | None:
    for old, new in zip(expected, found, strict=True):
        if old.shape != new.shape:
            words = f"it has shape {list(new.shape)}, where the file's is {list(old.shape)}"
            return Difference(output=name, error=np.inf, words=words)
    if all(_is_close(old, new, precision.tolerance) for old, new in zip(expected, found, strict=True)):
        return None
    error = _error(expected, found)
    words = f"it is {percent(error)} off the file's" if np.isfinite(error) else "NaN or infinity differ"
    return Difference(output=name, error=error, words=words)


def _is_close(expected: Array, found: Array, tolerance: float) -> bool:
    if expected.dtype.kind not in "fc" or found.dtype.kind not in "fc":
        return bool(np.array_equal(expected, found))
    tolerance = max([tolerance, *(2 * float(np.finfo(y.dtype).eps) for y in (expected, found))])  # of float16 outputs
    wide = expected.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    size = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    return bool(np.allclose(found.astype(np.float64), wide, tolerance, tolerance * _OF_MEAN * size, equal_nan=True))


def _error(expected: Iterable[Array], found: Iterable[Array]) -> float:
    """||found - expected|| / ||expected|| over all batches; infinite for other shapes and where it is not finite."""
    signal = noise = 0.0
    for old, new in zip(expected, found, strict=True):
        if old.shape != new.shape:
            return np.inf
        wide, other = old.astype(np.float64), new.astype(np.float64)
        equal = (wide == other) | (np.isnan(wide) & np.isnan(other))
        signal += float(np.square(wide[np.isfinite(wide)]).sum())
        with np.errstate(invalid="ignore"):
            noise += float(np.square(np.where(equal, 0.0, other - wide)).sum())
    if not np.isfinite(noise):
        return np.inf
    return float(np.sqrt(noise / max(signal, _NO_SIGNAL)))
