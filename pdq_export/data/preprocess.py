"""What happens to an image file before the model sees it, as ``preprocess.toml`` or options of the run say."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data.checks import check_statistics
from pdq_export.data.input_spec import InputSpec
from pdq_export.errors import DataError
from pdq_export.nearby import near_names

FILE_NAME = "preprocess.toml"
_MAX_SIDE = 16384
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
PIXEL_RANGES = {"0..1": 1.0, "0..255": 255.0}
CHANNEL_ORDERS = ("RGB", "BGR")
LAYOUTS = ("NCHW", "NHWC")
_GREY = 114  # what detectors of the YOLO family are trained with
_STATISTICS = ("mean", "std", "pixel_range")
_GEOMETRY = ("resize", "crop", "crop_fraction", "letterbox")
_EXCLUDED = (*(("letterbox", name) for name in ("resize", "crop", "crop_fraction")), ("crop_fraction", "resize"))

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, crop or letterbox, order the channels, then x = (pixels - mean) / std. None is what nobody has said.

    ``mean`` and ``std``: one value a channel, in the model's order, for pixels of ``pixel_range``: ``0..1``, which is
    the default, or ``0..255``. ``resize``: the length of the shorter side, or (height, width). ``crop``: (height,
    width) from the centre. ``crop_fraction``: first the shorter side becomes the crop's, or the model's, divided by
    it. ``letterbox``: (height, width) that the image is fitted into, with ``padding`` (0 to 255) around it.
    ``interpolation``: of `INTERPOLATIONS`, bilinear by default, with Pillow's filters. ``channel_order``: RGB, which
    is the default, or BGR. ``layout``: NCHW or NHWC, by default what the model's shape looks like.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | Size | None = None
    crop: Size | None = None
    crop_fraction: float | None = None
    letterbox: Size | None = None
    padding: int | None = None
    interpolation: str | None = None
    pixel_range: str | None = None
    channel_order: str | None = None
    layout: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "preprocessing") -> Self:
        """From what TOML or options hold, by name; None is not given. Raises DataError, also for an unknown key."""
        given = {key: value for key, value in values.items() if value is not None}
        for key in given:
            if key not in _READERS:
                near = near_names(key, _READERS)
                hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(_READERS)}"
                raise DataError(f"{where}: key {key!r} is not known; {hint}")
        return cls(**{key: _READERS[key](where, key, value) for key, value in given.items()})

    def over(self, others: Self, where: str) -> Self:
        """With what ``others`` say where this says nothing; ``mean``, ``std`` and ``pixel_range`` stay together.

        Raises DataError for what contradicts itself then.
        """
        own = {name: getattr(self, name) for name in self.given()}
        if self.mean is not None or self.std is not None:
            own = {**dict.fromkeys(_STATISTICS), **own}  # the range of others is that of their mean and std
        elif others.mean is not None and self.pixel_range is not None:
            self._check_range(where, others.pixel_range)
        return dataclasses.replace(others, **own).checked(where)

    def check_pair(self, where: str, stored: Self, channels: int | None) -> None:
        """Raise DataError for a mean or a std of another number of ``channels`` than the model has, or one alone.

        ``stored``: what the folder's file says, which is not mixed with them.
        """
        for name in ("mean", "std"):
            values: tuple[float, ...] | None = getattr(self, name)
            if values is not None and channels is not None and len(values) != channels:
                raise DataError(
                    f"{where}: --{name} has {len(values)} values, and the model's input {channels} channels; expected "
                    f"{channels} numbers, one for each channel, of mean and std together"
                )
        if (self.mean is None) == (self.std is None):
            return
        given, missing = ("mean", "std") if self.std is None else ("std", "mean")
        beside = "" if getattr(stored, missing) is None else f" (that of {FILE_NAME} belongs to its own {given})"
        raise DataError(
            f"{where}: --{given} is given, and {missing} is missing{beside}; expected mean and std together: give "
            f"--{missing}, too, or leave --{given} out"
        )

    def checked(self, where: str) -> Self:
        """Itself. Raises DataError for keys that contradict each other, or need another one."""
        if (self.mean is None) != (self.std is None):
            missing = "std" if self.std is None else "mean"
            raise DataError(f"{where}: {missing} is missing; expected mean and std together")
        for one, other in _EXCLUDED:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise DataError(f"{where}: {one} and {other} exclude each other; expected one of them")
        if self.padding is not None and self.letterbox is None:
            raise DataError(f"{where}: padding is what letterbox puts around an image; expected letterbox with it")
        return self

    @property
    def changes_size(self) -> bool:
        """Whether images come out in another size than they went in."""
        return any(getattr(self, name) is not None for name in _GEOMETRY)

    def of_files(self) -> list[str]:
        """What is said that only image files have a use for, by name."""
        names = (*_GEOMETRY, "padding", "interpolation", "channel_order")
        return [name for name in names if getattr(self, name) is not None]

    def given(self) -> list[str]:
        """What is said, by name."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    @property
    def takes_bytes(self) -> bool:
        """Whether it says what pixels of 0 to 255 become."""
        return self.mean is not None or self.std is not None or self.pixel_range is not None

    def of_array(
        self, dtype: np.dtype[Any], shape: Sequence[int], expected: InputSpec | None, where: str, **own: Any
    ) -> dict[str, Any]:
        """``mean`` and ``std`` of an array of images, for pixels scaled to 0..1: those given, or else its ``own``.

        Without either, what ``pixel_range`` says of every channel, or nothing. Raises DataError for float32 images, for
        which nothing of it may be given, and for a ``pixel_range`` of other pixels than its own mean is of.
        """
        layout = self.layout or ("NCHW" if expected is None else expected.layout)
        if dtype == np.float32 and self.takes_bytes:
            name = next(name for name in _STATISTICS if getattr(self, name) is not None)
            raise unused(where, name, "is for uint8 images; these are float32, which count as normalized already")
        if dtype != np.uint8 or not self.takes_bytes or len(shape) != 4:
            return own
        if self.mean is None and self.std is None and any(value is not None for value in own.values()):
            self._check_range(where, None)
            return own
        mean, std = self.checked(where).statistics(where, shape[3 if layout == "NHWC" else 1])
        return {"mean": mean, "std": std}

    def _check_range(self, where: str, known: str | None) -> None:
        """Raise DataError where it is said alone, and is not that of a mean which stands elsewhere."""
        known = known or "0..1"
        if self.pixel_range not in (None, known):
            raise DataError(
                f"{where}: pixel_range {self.pixel_range} is given alone, and mean and std are there already, of "
                f"pixels of {known}; expected all three together; give --mean and --std with it, or leave it out"
            )

    def apply(self, image: Image.Image, size: tuple[int | None, int | None] = (None, None)) -> Image.Image:
        """Resize, crop or letterbox; ``size``: the model's (height, width). Raises ValueError where that fails."""
        filter = INTERPOLATIONS[self.interpolation or "bilinear"]
        crop, resize = self.crop, self.resize
        if self.letterbox is not None:
            return _letterboxed(image, self.letterbox, _GREY if self.padding is None else self.padding, filter)
        if self.crop_fraction is not None:
            crop = crop or _known(size)
            resize = _before_crop(crop, self.crop_fraction)
        if resize is not None:
            height, width = resize if isinstance(resize, tuple) else _scaled(image.size, resize)
            image = image.resize((width, height), filter)
        if crop is not None:
            height, width = crop
            if image.height < height or image.width < width:
                raise ValueError(
                    f"{image.height} x {image.width} (H x W) is smaller than crop = [{height}, {width}]; "
                    f"set resize in {FILE_NAME}, or --resize"
                )
            top, left = round((image.height - height) / 2), round((image.width - width) / 2)
            image = image.crop((left, top, left + width, top + height))
        return image

    def to_array(self, image: Image.Image, layout: str) -> NDArray[np.uint8]:
        """The pixels of an image in mode L or RGB, in the order of channels and the layout of the model."""
        array = np.asarray(image, dtype=np.uint8)
        array = array[..., None] if array.ndim == 2 else array
        if self.channel_order == "BGR":
            array = array[..., ::-1]
        return np.ascontiguousarray(array if layout == "NHWC" else array.transpose(2, 0, 1))

    def statistics(self, where: str, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and std for pixels scaled to 0..1, float32 [C]; 0 and 1 if they are not given. Raises DataError."""
        unit = PIXEL_RANGES[self.pixel_range or "0..1"]
        mean = self.mean if self.mean is not None else (0.0,) * channels
        std = self.std if self.std is not None else (1.0,) * channels
        return check_statistics(where, [value / unit for value in mean], [value / unit for value in std], channels)


def unused(where: str, name: str, why: str) -> DataError:
    """The error for an option that these data have no use for."""
    return DataError(
        f"{where}: --{name.replace('_', '-')} is given, and {why}; where other data of this run are a folder, set "
        f"{name} in its {FILE_NAME} instead"
    )


def read_preprocess(path: Path) -> Preprocess:
    """Read ``preprocess.toml``. Raises DataError, also for an unknown key."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid TOML: {str(error)[:200]}") from error
    return Preprocess.of(settings, str(path)).checked(str(path))


def _scaled(size: tuple[int, int], shorter: int) -> Size:
    """Height and width with the shorter side of the given length; the longer one is rounded down."""
    width, height = size
    if width <= height:
        return max(1, shorter * height // width), shorter
    return shorter, max(1, shorter * width // height)


def _known(size: tuple[int | None, int | None]) -> Size:
    height, width = size
    if height is None or width is None:
        raise ValueError(f"crop_fraction is of a crop, and the model's size is dynamic; set crop in {FILE_NAME}")
    return height, width


def _before_crop(crop: Size, fraction: float) -> int:
    if crop[0] != crop[1]:
        raise ValueError(
            f"crop_fraction is of a square, and the crop is {crop[0]} x {crop[1]} (H x W); set resize and crop in "
            f"{FILE_NAME}"
        )
    return int(crop[0] / fraction)


def _letterboxed(image: Image.Image, size: Size, padding: int, filter: Image.Resampling) -> Image.Image:
    """The image as large as it fits into ``size`` in its own shape, centred."""
    height, width = size
    ratio = min(height / image.height, width / image.width)
    inner = (max(1, round(image.height * ratio)), max(1, round(image.width * ratio)))
    image = image.resize((inner[1], inner[0]), filter)
    framed = Image.new(image.mode, (width, height), padding if image.mode == "L" else (padding,) * 3)
    framed.paste(image, ((width - inner[1]) // 2, (height - inner[0]) // 2))
    return framed


def _numbers(where: str, key: str, value: Any) -> tuple[float, ...]:
    items = value.split(",") if isinstance(value, str) and re.fullmatch(r"[^,]+(,[^,]+)*", value) else value
    try:
        if isinstance(value, str):
            return tuple(float(item) for item in items)
    except ValueError:
        items = None
    if not isinstance(items, list | tuple) or not items or not all(type(item) in (int, float) for item in items):
        raise DataError(f"{where}: {key} = {value!r}; expected a list of numbers, one for each channel")
    return tuple(float(item) for item in items)


def _size(where: str, key: str, value: Any) -> int | Size:
    items = value if isinstance(value, list) and len(value) == 2 else [value]
    if isinstance(value, str) and re.fullmatch(r"\d{1,6}(x\d{1,6})?", value, re.ASCII):
        items = [int(side) for side in value.split("x")]
    if not all(type(item) is int and 1 <= item <= _MAX_SIDE for item in items):
        meaning = "the shorter side" if key == "resize" else "the side of a square"
        raise DataError(f"{where}: {key} = {value!r}; expected {meaning} or [height, width], 1 to {_MAX_SIDE} pixels")
    return (items[0], items[1]) if len(items) == 2 else items[0]


def _area(where: str, key: str, value: Any) -> Size:
    size = _size(where, key, value)
    return (size, size) if isinstance(size, int) else size


def _fraction(where: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0.01 <= value <= 1:
        raise DataError(f"{where}: {key} = {value!r}; expected a number from 0.01 to 1")
    return float(value)


def _byte(where: str, key: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise DataError(f"{where}: {key} = {value!r}; expected a whole number from 0 to 255")
    return value


def _one_of(*choices: str) -> Callable[[str, str, Any], str]:
    def read(where: str, key: str, value: Any) -> str:
        if value not in choices:
            raise DataError(f"{where}: {key} = {value!r}; expected one of {', '.join(choices)}")
        return str(value)

    return read


_READERS: Mapping[str, Callable[[str, str, Any], Any]] = {
    "mean": _numbers,
    "std": _numbers,
    "resize": _size,
    "crop": _area,
    "crop_fraction": _fraction,
    "letterbox": _area,
    "padding": _byte,
    "interpolation": _one_of(*INTERPOLATIONS),
    "pixel_range": _one_of(*PIXEL_RANGES),
    "channel_order": _one_of(*CHANNEL_ORDERS),
    "layout": _one_of(*LAYOUTS),
}
