"""Seeded text images for PP-OCR's networks: lines, half of them upside down, and pages of several lines.

Each split (calibration, evaluation, tuning) has fonts and texts of its own, so that no two share an image, a text or a
font. Images come as the networks read them, normalised.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.common import Array
from pdq_export.errors import DataError

FONT_FOLDER = Path("/usr/share/fonts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FontPackage:
    """A Debian package of Latin fonts, and the files of it that are used: all of them, so that images are the same."""

    name: str
    files: tuple[str, ...]

    def find(self, folder: Path = FONT_FOLDER) -> list[Path]:
        """The files, anywhere under ``folder``. Raises DataError, which names the package, where one is missing."""
        found = {path.name: path for path in sorted(folder.rglob("*.ttf"))}
        if missing := [file for file in self.files if file not in found]:
            raise DataError(
                f"{folder}: has no {', '.join(missing)}; expected the fonts of Debian's {self.name}; install them with "
                f"apt-get install {self.name}"
            )
        return [found[file] for file in self.files]


def _files(families: str, faces: str) -> tuple[str, ...]:
    return tuple(f"{family}{face}.ttf" for family in families.split() for face in faces.split(","))


SPLITS: Mapping[str, FontPackage] = {
    "calibration": FontPackage(
        name="fonts-liberation",
        files=_files("LiberationSans LiberationSerif LiberationMono", "-Regular,-Bold,-Italic,-BoldItalic"),
    ),
    "evaluation": FontPackage(
        name="fonts-dejavu-core", files=_files("DejaVuSans DejaVuSerif DejaVuSansMono", ",-Bold")
    ),
    "tuning": FontPackage(name="fonts-freefont-ttf", files=_files("FreeSans FreeSerif FreeMono", ",Bold")),
}
LINE_HEIGHT, LINE_WIDTH = 48, 192

_ONSETS = "b bl br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ee ie oo ou".split()
_CODAS = ["", "", "", *"b d g ck l ll m n nd ng nt p r rd s ss st t x".split()]
_MEAN, _STD = (np.array(values, np.float32) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LoadFont = Callable[[int, float], Font]


def _package_fonts(package: FontPackage) -> LoadFont:
    paths = package.find()
    return lambda number, size: ImageFont.truetype(str(paths[number % len(paths)]), size)


class TextRenderer:
    """Draws the images of a split; all that it draws follows from ``split``, ``seed`` and the fonts.

    ``load_font``: a font by its number (any number) and size; the split's own where it is None. Raises DataError where
    its package is not installed.
    """

    def __init__(self, split: str, *, seed: int = 0, load_font: LoadFont | None = None) -> None:
        self._split = list(SPLITS).index(split)
        self._random = np.random.default_rng([seed, self._split])
        self._load_font = _package_fonts(SPLITS[split]) if load_font is None else load_font

    def lines(self, count: int) -> tuple[Array, np.ndarray]:
        """Lines as the direction classifier reads them, [count, 3, 48, 192], and labels: 1 where it is upside down.

        Half of them are turned by 180 degrees.
        """
        turned = self._random.permutation(np.arange(count) % 2)
        pictures = (self._line(self.text(1, 3)) for _ in range(count))
        images = [prepare_line(picture.rotate(180 * int(turn))) for picture, turn in zip(pictures, turned, strict=True)]
        return np.stack(images), turned.astype(np.int64)

    def pages(self, count: int, height: int, width: int) -> Array:
        """Pages of several lines as the text detector reads them: [count, 3, height, width], multiples of 32."""
        return np.stack([prepare_page(self._page(height, width)) for _ in range(count)])

    def text(self, least: int, most: int) -> str:
        """A line of words, numbers and prices that only this split draws."""
        while True:
            text = " ".join(self._word() for _ in range(self._integer(least, most)))
            if len(text) > 2 and zlib.crc32(text.encode()) % len(SPLITS) == self._split:
                return text

    def _word(self) -> str:
        kind = self._random.random()
        if kind < 0.08:
            return f"{self._integer(10, 9999)}"
        if kind < 0.14:
            return f"{self._pick('$€£')}{self._integer(1, 999)}.{self._integer(0, 99):02d}"
        if kind < 0.2:
            return f"{self._integer(1, 28)}.{self._integer(1, 12)}.{self._integer(1950, 2040)}"
        syllables = range(self._integer(1, 3))
        word = "".join(self._pick(_ONSETS) + self._pick(_VOWELS) + self._pick(_CODAS) for _ in syllables)
        word = self._pick((word, word, word.capitalize(), word.upper()))
        return word + self._pick(("", "", "", "", ".", ",", ":", "!", "?"))

    def _pick(self, options: Sequence[str]) -> str:
        return options[self._integer(0, len(options) - 1)]

    def _integer(self, low: int, high: int) -> int:
        return int(self._random.integers(low, high + 1))

    def _uniform(self, low: float, high: float) -> float:
        return float(self._random.uniform(low, high))

    def _colors(self) -> tuple[np.ndarray, np.ndarray]:
        """Background and ink that differ in brightness by 80 of 255 or more."""
        while True:
            background, ink = self._random.uniform(0, 255, (2, 3))
            if self._random.random() < 0.5:  # paper is mostly bright and ink dark
                background, ink = 200 + background * 55 / 255, ink * 0.4
            if abs(float((background - ink).mean())) >= 80:
                return background, ink

    def _line(self, text: str) -> Image.Image:
        """A crop as the detector would give it: the text with a little around it, slightly turned."""
        size = self._uniform(16, 64)
        font = self._load_font(self._integer(0, 99), size)
        left, top, right, bottom = font.getbbox(text)
        margins = [self._uniform(0.05, 0.3) * size for _ in range(4)]
        width, height = (
            math.ceil(a) for a in (right - left + margins[0] + margins[2], bottom - top + sum(margins[1::2]))
        )
        ink = Image.new("L", (width, height))
        ImageDraw.Draw(ink).text((margins[0] - left, margins[1] - top), text, fill=255, font=font)
        ink = ink.rotate(self._uniform(-3, 3) * min(1, 4 * height / width), Image.Resampling.BICUBIC)
        return self._develop(ink, self._uniform(0, 0.03 * size))

    def _page(self, height: int, width: int) -> Image.Image:
        """Lines below each other at random places, the page slightly turned."""
        ink = Image.new("L", (width, height))
        draw = ImageDraw.Draw(ink)
        y = self._uniform(4, 30)
        number = self._integer(0, 99)
        while True:
            font = self._load_font(number, size := self._uniform(12, 32))
            text = self.text(1, 5)
            left, top, right, bottom = font.getbbox(text)
            if y + bottom - top > height - 4:
                break
            x = self._uniform(4, max(5, width - (right - left)))
            draw.text((x - left, y - top), text, fill=255, font=font)
            y += bottom - top + self._uniform(0.3, 2.5) * size
        return self._develop(ink.rotate(self._uniform(-4, 4), Image.Resampling.BICUBIC), self._uniform(0, 0.8))

    def _develop(self, ink: Image.Image, blur: float) -> Image.Image:
        """Colours, a background that is not quite even, blur and noise."""
        background, color = self._colors()
        coverage = np.asarray(ink, np.float32)[..., None] / 255
        across, down = np.linspace(-1, 1, ink.width), np.linspace(-1, 1, ink.height)[:, None]
        shade = self._uniform(-20, 20) * across + self._uniform(-20, 20) * down
        picture = (background + shade[..., None]) * (1 - coverage) + color * coverage
        blurred = Image.fromarray(_bytes(picture)).filter(ImageFilter.GaussianBlur(blur))
        noise = self._random.normal(0, self._uniform(0, 12), (ink.height, ink.width, 3))
        return Image.fromarray(_bytes(np.asarray(blurred) + noise))


def _bytes(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def prepare_line(picture: Image.Image) -> Array:
    """PP-OCR's preprocessing of the direction classifier: [3, 48, 192], (x / 255 - 0.5) / 0.5.

    The height becomes 48 and the width what the aspect ratio makes of it, at most 192; zeros fill the right.
    """
    width = min(LINE_WIDTH, math.ceil(LINE_HEIGHT * picture.width / picture.height))
    resized = picture.resize((width, LINE_HEIGHT), Image.Resampling.BILINEAR)
    image = np.zeros((3, LINE_HEIGHT, LINE_WIDTH), np.float32)
    image[..., :width] = (np.asarray(resized, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return image


def prepare_page(picture: Image.Image) -> Array:
    """PP-OCR's normalisation for the text detector: [3, H, W], ImageNet's mean and standard deviation."""
    pixels: Array = np.asarray(picture, np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1))
