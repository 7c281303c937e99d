"""What has to hold for images, statistics and labels, wherever they come from. All raise DataError."""

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.input_spec import InputSpec, format_shape
from pdq_export.errors import DataError

logger = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**30  # what one set of images may take in memory
_RAW_PIXELS = 50.0  # normalized images stay far below; raw ones reach 255
_UNIT_RANGE = 10.0  # a mean or std above this was meant for pixels of 0..255
_CHUNK = 256


def check_shape(where: str, shape: tuple[int, ...], expected: InputSpec | None) -> None:
    """Raise DataError unless images are (N, C, H, W), not empty, with C, H and W of the model's input."""
    if len(shape) != 4:
        found = f"images of shape {format_shape(shape)}"
        raise DataError(f"{where}: {found}; expected 4 axes: N x C x H x W (one image needs N = 1 in front)")
    if 0 in shape:
        raise DataError(f"{where}: images of shape {format_shape(shape)}: empty; expected at least one image")
    if expected is None:
        return
    expected.check_supported(where)
    if _fits(shape[1:], expected.shape[1:]):
        return
    axes = "H x W x C" if expected.layout == "NHWC" else "C x H x W"
    remedy = "resize the images, or give those that the model was trained on"
    if expected.layout == "NHWC" and _fits((shape[2], shape[3], shape[1]), expected.shape[1:]):
        remedy = "they look like N x C x H x W; store images.transpose(0, 2, 3, 1)"
    if expected.layout == "NCHW" and _fits((shape[3], shape[1], shape[2]), expected.shape[1:]):
        remedy = "they look like N x H x W x C; store images.transpose(0, 3, 1, 2)"
    found = format_shape(shape[1:])
    raise DataError(f"{where}: images are {found} ({axes}), but the model's {expected} takes others; {remedy}")


def _fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return all(want is None or got == want for got, want in zip(found, expected, strict=True))


def check_bytes(where: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise DataError for a size that cannot be meant, before memory is taken for it."""
    size = math.prod(shape) * itemsize
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: {format_shape(shape)} values are {size / 2**30:,.1f} GiB; expected at most "
            f"{MAX_BYTES / 2**30:.0f} GiB: use fewer or smaller images"
        )


def check_finite(where: str, images: NDArray[np.float32]) -> None:
    """Raise DataError if images hold NaN or infinities.

    Warns of values that look like raw pixels.
    """
    low, high = math.inf, -math.inf
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        finite = np.isfinite(chunk)
        if not finite.all():
            bad = start + int(np.argmin(finite.all(axis=(1, 2, 3))))
            raise DataError(f"{where}: image {bad} holds NaN or Inf; expected finite values: remove or repair it")
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if low >= 0 and high > _RAW_PIXELS:
        logger.warning(
            "%s: values from %.4g to %.4g look like raw pixels of 0..255; unless the model takes those, store uint8 "
            "images together with mean and std",
            where,
            low,
            high,
        )


def check_statistics(where: str, mean: Any, std: Any, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and std as float32 [C]: one finite number a channel in units of 0..1, std positive."""
    checked = []
    for name, values in (("mean", mean), ("std", std)):
        array = np.asarray(values)
        if array.dtype.kind not in "fiu" or array.ndim > 1 or array.size != channels:
            found = f"{name} of shape [{', '.join(map(str, array.shape))}], {array.dtype}"
            raise DataError(f"{where}: {found}; expected {channels} numbers, one for each channel")
        array = array.astype(np.float32).reshape(channels)
        if not np.isfinite(array).all() or np.abs(array).max() > _UNIT_RANGE:
            raise DataError(
                f"{where}: {name} = {array.tolist()}; expected values for pixels scaled to 0..1: divide those for "
                "0..255 by 255, or, where they stand in options or preprocess.toml, say pixel_range 0..255 with them"
            )
        checked.append(array)
    if (checked[1] <= 0).any():
        raise DataError(f"{where}: std = {checked[1].tolist()}; expected positive values")
    return checked[0], checked[1]


def check_unlabelled(where: str, labels: Any, *, has_labels: bool) -> None:
    """Raise DataError where labels are given beside data that have some."""
    if labels is not None and labels is not False and has_labels:
        raise DataError(f"{where}: has labels of its own, and labels are given as well; expected one of them")


def check_labels(where: str, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Labels as int64 [N]: one class index, from 0, for each image."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {labels.dtype}; expected integers, the index of each image's class")
    if labels.shape != (count,):
        found = format_shape(labels.shape)
        raise DataError(
            f"{where}: labels of shape {found} for {count} images; expected one for each image, the index of its class"
        )
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        bad = int(np.argmax((labels < 0) | (labels > np.iinfo(np.int32).max)))
        raise DataError(f"{where}: label {labels[bad]} of image {bad}; expected class indices from 0")
    return labels.astype(np.int64)
