"""Small pictures of single images, as they are read for a model, for pages."""

import base64
import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet

_SIDE = 128  # pixels, at most
_EXACT = 64  # up to which nothing of a picture may get lost
_MODES = {1: "L", 3: "RGB"}


def thumbnails(data: ImageSet | InputSet, numbers: Iterable[int]) -> dict[int, str]:
    """By number, a data URI of the image, PNG or JPEG; empty where the data are no grey or RGB images.

    Of float32 images, whose normalization nobody knows, each is shown from its smallest to its largest number.
    """
    if not isinstance(data, ImageSet):
        return {}
    channels = data.image_shape[2 if data.layout == "NHWC" else 0]
    if channels not in _MODES:
        return {}
    return {number: _uri(_picture(data, number)) for number in numbers}


def _picture(data: ImageSet, number: int) -> Image.Image:
    (pixels,) = data.take([number]).pixels[:1]
    array = pixels if data.layout == "NHWC" else pixels.transpose(1, 2, 0)
    array = array[..., ::-1] if data.channel_order == "BGR" else array
    array = array if array.dtype == np.uint8 else _spread(array)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _spread(array: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())
    return ((array.astype(np.float64) - low) * (255 / max(high - low, 1e-30))).round().astype(np.uint8)


def _uri(picture: Image.Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    small = max(picture.size) <= _EXACT
    if small:
        picture.save(stream, format="PNG", optimize=True)
    else:
        picture.save(stream, format="JPEG", quality=80)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
