"""Random inputs of a model's own shapes, for what does not depend on what the numbers say: time and memory."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ModelError, OptionError
from pdq_export.validate.runtime import Value

_IMAGE_RANK, _CHANNELS, _PIXELS = 4, 3, 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseInput:
    """An input with the sizes that it gets; axis 0 is None where it is that of the batch.

    ``chosen``: whether a free axis has a size that nobody gave.
    """

    value: Value
    sizes: tuple[int | None, ...]
    chosen: bool = False

    def shape(self, batch: int) -> tuple[int, ...]:
        """Its shape in a batch of this size."""
        return tuple(batch if size is None else size for size in self.sizes)

    def draw(self, batch: int, generator: np.random.Generator) -> NDArray[Any]:
        """Normal floats, all numbers of 8 bits, or 0 and 1: indices that any table has."""
        shape, dtype = self.shape(batch), self.value.dtype
        assert dtype is not None
        if dtype.kind == "f":
            return np.asarray(generator.standard_normal(shape, np.float32)).astype(dtype, copy=False)
        if dtype in (np.int8, np.uint8):
            limits = np.iinfo(dtype)
            return np.asarray(generator.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype)


def choose_sizes(values: Sequence[Value], given: Mapping[str, Sequence[int]]) -> tuple[NoiseInput, ...]:
    """The inputs with sizes: ``given`` by name, or what the model fixes, or for images 3 x 224 x 224.

    Axis 0 belongs to the batch where it is free, and 1 where it is given. Raises OptionError where what is given does
    not fit, ModelError for a free axis of another input than images.
    """
    names = [value.name for value in values]
    for name in given:
        if name not in names:
            raise OptionError(f"--shape {name}=...: no input of that name; expected one of {', '.join(names)}")
    return tuple(_given(v, tuple(given[v.name])) if v.name in given else _default(v) for v in values)


def _given(value: Value, sizes: tuple[int, ...]) -> NoiseInput:
    text = f"--shape {value.name}={'x'.join(map(str, sizes))}"
    if any(type(size) is not int or size < 1 for size in sizes):
        raise OptionError(f"{text}: expected whole numbers, 1 or more, one for each axis")
    shape = value.shape or (None,) * len(sizes)
    if len(shape) != len(sizes) or any(own not in (None, size) for own, size in zip(shape, sizes, strict=True)):
        raise OptionError(f"{text}: does not fit input {value}; expected its axes, and any number where it has ?")
    free = value.shape is not None and bool(shape) and shape[0] is None and sizes[0] == 1
    return NoiseInput(value=value, sizes=(None, *sizes[1:]) if free else sizes)


def _default(value: Value) -> NoiseInput:
    shape = value.shape or ()
    if None not in shape[1:]:
        return NoiseInput(value=value, sizes=shape)
    if len(shape) != _IMAGE_RANK:
        example = "x".join("1" if size is None else str(size) for size in shape)
        raise ModelError(
            f"input {value}: has free axes and takes no images, so that no size is usual; give it: "
            f"--shape {value.name}={example}, with your sizes"
        )
    is_last = shape[3] in (1, _CHANNELS) and shape[1] not in (1, _CHANNELS)
    usual = (_PIXELS, _PIXELS, _CHANNELS) if is_last else (_CHANNELS, _PIXELS, _PIXELS)
    sizes = tuple(size if size is not None else other for size, other in zip(shape[1:], usual, strict=True))
    return NoiseInput(value=value, sizes=(shape[0], *sizes), chosen=True)


def random_batch(inputs: Sequence[NoiseInput], batch: int, *, seed: int = 0) -> tuple[NDArray[Any], ...]:
    """An array for each input; the same seed draws the same."""
    generator = np.random.default_rng(seed)
    return tuple(one.draw(batch, generator) for one in inputs)
