"""Images that are the same: of calibration and evaluation, or all of a set."""

import dataclasses
import hashlib

import numpy as np

from pdq_export.data.image_set import ImageSet, Pixels
from pdq_export.data.input_set import InputSet

_BATCH = 64
_PART = 256


def image_digests(*sets: ImageSet | InputSet) -> list[list[bytes]]:
    """A digest of every image of every set, equal for equal images.

    If all sets hold uint8 it is of these bytes, so that mean and std do not matter, else of what the model sees.
    """
    if all(isinstance(images, ImageSet) and images.pixels.dtype == np.uint8 for images in sets):
        return [_pixel_digests(images.pixels) for images in sets if isinstance(images, ImageSet)]
    return [[digest for batch in images.batches(_BATCH) for digest in _rows(batch)] for images in sets]


def all_equal(images: ImageSet | InputSet) -> bool:
    """Whether there are several images and all are the same."""
    first = images.head(1).inputs()
    return len(images) > 1 and all(
        (x == y).all()
        for batch in images.batches(_BATCH)
        for x, y in zip(batch if isinstance(batch, tuple) else (batch,), first, strict=True)
    )


def count_shared(calibration: ImageSet | InputSet, evaluation: ImageSet | InputSet) -> int:
    """How many of the ``evaluation`` images are among those of ``calibration``, value for value.

    What a set has decoded before, to know its digests, is not decoded again. Of others an image is compared as a whole
    only if a small part of it is equal.
    """
    if _streamed(calibration) or _streamed(evaluation):
        return count_shared_digests(*image_digests(calibration, evaluation))
    seen, judged = image_digests(_parts(calibration), _parts(evaluation))
    known = set(seen)
    candidates = [number for number, digest in enumerate(judged) if digest in known]
    if not candidates:
        return 0
    return count_shared_digests(*image_digests(calibration, evaluation.take(candidates)))


def count_shared_digests(seen: list[bytes], judged: list[bytes]) -> int:
    """How many of the ``judged`` are among those ``seen``, both of `image_digests`."""
    return sum(map(set(seen).__contains__, judged))


def _streamed(images: ImageSet | InputSet) -> bool:
    return isinstance(images, ImageSet) and not isinstance(images.pixels, np.ndarray)


def _parts(images: ImageSet | InputSet) -> ImageSet | InputSet:
    """Of every image held the row in the middle; of other arrays as many values of the flattened sample."""
    if isinstance(images, ImageSet):
        middle = images.pixels.shape[2] // 2
        return dataclasses.replace(images, pixels=images.pixels[:][:, :, middle : middle + 1])
    flat = (array.reshape(len(array), -1) for array in images.arrays)
    middles = tuple(array[:, array.shape[1] // 2 :][:, :_PART] for array in flat)
    return dataclasses.replace(images, arrays=middles)


def _pixel_digests(pixels: Pixels) -> list[bytes]:
    return [_digest(image) for image in pixels] if isinstance(pixels, np.ndarray) else list(pixels.digests)


def _rows(batch: np.ndarray | tuple[np.ndarray, ...]) -> list[bytes]:
    arrays = batch if isinstance(batch, tuple) else (batch,)
    return [_digest(*row) for row in zip(*arrays, strict=True)]


def _digest(*arrays: np.ndarray) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
