"""Images in memory, or in files that are decoded again, normalized when they are asked for."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.checks import check_finite, check_labels, check_shape, check_statistics
from pdq_export.data.input_spec import InputSpec, format_shape
from pdq_export.errors import DataError

logger = logging.getLogger(__name__)


class Stored(Protocol):
    """Rows of an array that are read, each time anew, where they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...

    def select(self, rows: slice | Sequence[int], /) -> Self:
        """Some of the rows, which are not read."""
        ...

    @property
    def digests(self) -> Sequence[bytes]:
        """SHA-256 of the bytes of each row."""
        ...


Pixels = NDArray[np.uint8] | NDArray[np.float32] | Stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images (N, C, H, W), with labels (N,) if they are known.

    ``pixels`` are float32, ready for the model, or uint8 together with ``mean`` and ``std`` of shape [C] in units of
    0..1. Then x = (pixels / 255 - mean) / std, computed only for the images that are asked for; those of a large folder
    are decoded then as well. ``source``: where they come from, for messages. ``layout``: NHWC where channels are the
    last axis. ``channel_order``: RGB or BGR, of three channels. ``classes``: the folders that the labels are ranks of.
    """

    pixels: Pixels
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    source: str
    layout: str = "NCHW"
    channel_order: str = "RGB"
    classes: tuple[str, ...] | None = None

    @classmethod
    def from_array(
        cls,
        images: NDArray[Any],
        *,
        labels: NDArray[Any] | None = None,
        mean: Any = None,
        std: Any = None,
        source: str = "array",
        expected: InputSpec | None = None,
        limit: int | None = None,
        layout: str | None = None,
    ) -> "ImageSet":
        """The first ``limit`` images of an array (N, C, H, W): float32 normalized, or uint8 with mean and std [C].

        ``labels``: one class index for each image, (N,). ``layout``: NCHW or NHWC, by default what the model's input
        looks like. Raises DataError if they do not fit each other or the model's input.
        """
        check_shape(source, images.shape, expected)
        layout = layout or ("NCHW" if expected is None else expected.layout)
        checked = None if labels is None else check_labels(source, np.asarray(labels), len(images))[:limit]
        images = images[:limit]
        if images.dtype == np.float32:
            if mean is not None or std is not None:
                logger.warning("%s: mean and std are not used: float32 images count as normalized already", source)
            check_finite(source, images)
            return cls(pixels=images, labels=checked, source=source, layout=layout)
        if images.dtype != np.uint8:
            remedy = "convert normalized images with images.astype(np.float32)"
            raise DataError(
                f"{source}: images are {images.dtype}; expected float32, or uint8 with mean and std; {remedy}"
            )
        if mean is None or std is None:
            missing = " and ".join(name for name, value in (("mean", mean), ("std", std)) if value is None)
            remedy = (
                "store them beside the images as arrays of one value a channel, in units of 0..1, give --mean and "
                "--std (mean= and std= in Python), or ImageSet.from_array(images, mean=..., std=...)"
            )
            raise DataError(f"{source}: uint8 images without {missing}; {remedy}")
        mean, std = check_statistics(source, mean, std, images.shape[3 if layout == "NHWC" else 1])
        return cls(pixels=images, mean=mean, std=std, labels=checked, source=source, layout=layout)

    def check(self, expected: InputSpec) -> "ImageSet":
        """Return itself. Raises DataError if the images do not fit the model's input."""
        check_shape(self.source, self.pixels.shape, expected)
        return self

    def __len__(self) -> int:
        return len(self.pixels)

    def __str__(self) -> str:
        labels = "" if self.labels is None else ", labelled"
        shape = format_shape(self.image_shape)
        return f"{self.source}: {len(self)} image{'' if len(self) == 1 else 's'} {shape} ({self.pixels.dtype}{labels})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), or (H, W, C)."""
        _, *shape = self.pixels.shape
        return shape[0], shape[1], shape[2]

    @property
    def images(self) -> NDArray[np.float32]:
        """All images, normalized: float32 (N, C, H, W)."""
        return self.array()

    def head(self, count: int) -> "ImageSet":
        """The first ``count`` images, all if there are fewer."""
        labels = None if self.labels is None else self.labels[:count]
        return dataclasses.replace(self, pixels=_select(self.pixels, slice(count)), labels=labels)

    def take(self, numbers: Sequence[int]) -> "ImageSet":
        """The images of these numbers."""
        labels = None if self.labels is None else self.labels[list(numbers)]
        return dataclasses.replace(self, pixels=_select(self.pixels, list(numbers)), labels=labels)

    def array(self, limit: int | None = None) -> NDArray[np.float32]:
        """The first ``limit`` images (all by default), normalized: float32 (n, C, H, W)."""
        return self._normalize(self.pixels[: len(self) if limit is None else limit])

    def inputs(self) -> tuple[NDArray[np.float32]]:
        """All images, normalized: the one array for the model's one input."""
        return (self.array(),)

    def batches(self, size: int, *, first: int = 0, every: int = 1) -> Iterator[NDArray[np.float32]]:
        """All images in order, ``size`` at a time, normalized; the last batch may be smaller.

        Or some of these batches: from number ``first`` on, ``every`` so many-th.
        """
        for start in range(first * size, len(self), every * size):
            yield self._normalize(self.pixels[start : start + size])

    def _normalize(self, pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        if self.mean is None or self.std is None:
            return np.ascontiguousarray(pixels, dtype=np.float32)
        x = pixels.astype(np.float32)
        axes = () if self.layout == "NHWC" else (1, 2)
        mean, std = (np.expand_dims(values, axes) for values in (self.mean, self.std))
        x /= np.float32(255)
        x -= mean
        x /= std
        return x


def _select(pixels: Pixels, rows: slice | list[int]) -> Pixels:
    return pixels[rows] if isinstance(pixels, np.ndarray) else pixels.select(rows)
