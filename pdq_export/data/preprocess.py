"""What happens to an image file before the model sees it, as written in ``preprocess.toml``."""

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data.checks import check_statistics
from pdq_export.errors import DataError

FILE_NAME = "preprocess.toml"
_KEYS = ("mean", "std", "resize", "crop")
_MAX_SIDE = 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, then crop, then x = (pixels / 255 - mean) / std.

    ``mean`` and ``std``: one value a channel for pixels scaled to 0..1; None if the file does not give them.
    ``resize``: the length of the shorter side, or (height, width); bilinear. ``crop``: (height, width) from the centre.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    @property
    def changes_size(self) -> bool:
        """Whether images come out in another size than they went in."""
        return self.resize is not None or self.crop is not None

    def apply(self, image: Image.Image) -> Image.Image:
        """Resize and crop. Raises ValueError if the image is smaller than the crop."""
        if self.resize is not None:
            height, width = self.resize if isinstance(self.resize, tuple) else _scaled(image.size, self.resize)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is not None:
            height, width = self.crop
            if image.height < height or image.width < width:
                raise ValueError(
                    f"{image.height} x {image.width} (H x W) is smaller than crop = [{height}, {width}]; "
                    f"set resize in {FILE_NAME}"
                )
            top, left = round((image.height - height) / 2), round((image.width - width) / 2)
            image = image.crop((left, top, left + width, top + height))
        return image

    def statistics(self, where: str, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and std, float32 [C]; 0 and 1 if they are not given. Raises DataError."""
        mean = self.mean if self.mean is not None else (0.0,) * channels
        std = self.std if self.std is not None else (1.0,) * channels
        return check_statistics(where, list(mean), list(std), channels)


def _scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width with the shorter side of the given length; the longer one is rounded down."""
    width, height = size
    if width <= height:
        return max(1, shorter * height // width), shorter
    return shorter, max(1, shorter * width // height)


def read_preprocess(path: Path) -> Preprocess:
    """Read ``preprocess.toml``. Raises DataError, also for an unknown key."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid TOML: {str(error)[:200]}") from error
    for key in settings:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(_KEYS)}"
            raise DataError(f"{path}: key {key!r} is not known; {hint}")
    if ("mean" in settings) != ("std" in settings):
        missing = "std" if "mean" in settings else "mean"
        raise DataError(f"{path}: {missing} is missing; expected mean and std together")
    resize, crop = _size(path, settings, "resize"), _size(path, settings, "crop")
    return Preprocess(
        mean=_numbers(path, settings, "mean"),
        std=_numbers(path, settings, "std"),
        resize=resize,
        crop=(crop, crop) if isinstance(crop, int) else crop,
    )


def _numbers(path: Path, settings: dict[str, Any], key: str) -> tuple[float, ...] | None:
    value = settings.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value) or not value:
        raise DataError(f"{path}: {key} = {value!r}; expected a list of numbers, one for each channel")
    return tuple(float(item) for item in value)


def _size(path: Path, settings: dict[str, Any], key: str) -> int | tuple[int, int] | None:
    value = settings.get(key)
    if value is None:
        return None
    items = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(item) is int and 1 <= item <= _MAX_SIDE for item in items):
        meaning = "the shorter side" if key == "resize" else "the side of a square"
        raise DataError(f"{path}: {key} = {value!r}; expected {meaning} or [height, width], 1 to {_MAX_SIDE} pixels")
    return (items[0], items[1]) if len(items) == 2 else items[0]
