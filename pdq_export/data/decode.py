"""One image file as 8-bit pixels, upright, in the channels that a model takes."""

import dataclasses
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
_MAX_PIXELS = 89_000_000  # of one file; a few kilobytes can declare billions. Pillow warns beyond
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")
# Of greys; Pillow itself takes the upper byte of colours. In these formats "I" holds 16 bits as well.
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TWELVE_BITS = 4095
_ORIENTATION = 0x0112  # of EXIF: 1 is upright

BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)

TURNED = "are turned as their EXIF orientation says"
DEEP = "have 16 bits a channel, which are scaled to 8: 65535 becomes 255"
DARK = (
    "use at most 12 of their 16 bits and come out dark; if white is not 65535 in them, give the images as an .npz, "
    "normalized as in training"
)
TRANSPARENT = "are transparent in places: the colours there are taken as they are stored"
PRINTED = "are in colours of print (CMYK): they are converted without their colour profile, so colours can differ"
ANIMATED = "are animated: the first picture is taken"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """``image`` in mode L or RGB; ``notes``: what was done to it that its owner may not expect."""

    image: Image.Image
    notes: tuple[str, ...]


def decode(path: Path, mode: str) -> Decoded:
    """Read an image file as ``mode``, L or RGB. Raises one of `BROKEN` if that is not possible."""
    with Image.open(path, formats=_FORMATS) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.height} x {image.width} pixels, more than {_MAX_PIXELS:,}")
        notes = [ANIMATED] if getattr(image, "is_animated", False) else []
        image.load()
        turn = _orientation(image) > 1
        if image.mode in _SIXTEEN_BIT_MODES:
            values = np.asarray(image).astype(np.uint32)
            notes += [DEEP, *([DARK] if values.max() <= _TWELVE_BITS else [])]
            pixels: Image.Image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            pixels.info = dict(image.info)
        elif image.mode in _EIGHT_BIT_MODES:
            pixels = image
        else:
            raise ValueError(f"pixels of a kind that is not known (mode {image.mode})")
        if image.mode == "CMYK":
            notes.append(PRINTED)
        if _is_transparent(image):
            notes.append(TRANSPARENT)
        if turn:
            pixels = ImageOps.exif_transpose(pixels)
            notes.append(TURNED)
        return Decoded(image=pixels.convert(mode), notes=tuple(notes))


def reason(error: BaseException) -> str:
    """Why a file is broken, in words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data, of which Pillow makes errors of many types: the pixels are good
        return 1


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in _SIXTEEN_BIT_MODES or not image.has_transparency_data:
        return False
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    return bool(low < 255)  # type: ignore[operator]
