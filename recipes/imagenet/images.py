"""ImageNet as one folder a class: listing, drawing, and loading a part at a time."""

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data import ImageSet
from pdq_export.data.listing import SUFFIXES
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import DataError

Sample = tuple[Path, int]  # file, label
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(size: int) -> Preprocess:
    """Shorter side to 256/224 of ``size``, the central ``size`` x ``size`` pixels, ImageNet's mean and std."""
    return Preprocess(mean=MEAN, std=STD, resize=size * 256 // 224, crop=(size, size))


def list_samples(folder: Path) -> list[Sample]:
    """Every image below ``folder``; a subfolder is a class, and its rank by name the label. Raises DataError."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    samples = [
        (file, label)
        for label, entry in enumerate(classes)
        for file in sorted(entry.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not samples:
        raise DataError(
            f"{folder}: {len(classes)} folders and no images in them; expected one folder a class (n01440764, ...)"
        )
    return samples


def draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` different samples, the same for the same seed; all of them where there are fewer."""
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[position] for position in order[:count]]


def load(samples: Sequence[Sample], preprocess: Preprocess) -> ImageSet:
    """Decode samples to uint8, with their labels, as for evaluation. Raises OSError for a damaged file."""
    return _load(samples, preprocess, lambda image, _: preprocess.apply(image))


def load_as_in_training(samples: Sequence[Sample], preprocess: Preprocess, seed: int) -> ImageSet:
    """The same, each image cropped and flipped at random, as the published code calibrates."""
    assert preprocess.crop is not None
    size = preprocess.crop
    return _load(
        samples, preprocess, lambda image, number: random_crop(image, size, np.random.default_rng([seed, number]))
    )


def random_crop(image: Image.Image, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """A part of 8 to 100 % of the area and 3/4 to 4/3 in shape, resized to ``size`` (H, W), flipped half of the time.

    What does not fit into the image is drawn again, ten times; then it is the largest part in the centre.
    """
    for _ in range(10):
        area = generator.uniform(0.08, 1.0) * image.width * image.height
        shape = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(generator.integers(image.width - width + 1))
            top = int(generator.integers(image.height - height + 1))
            break
    else:
        width, height = min(image.width, image.height * 4 // 3), min(image.height, image.width * 4 // 3)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else image


def _load(
    samples: Sequence[Sample], preprocess: Preprocess, transform: Callable[[Image.Image, int], Image.Image]
) -> ImageSet:
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        pixels = list(
            pool.map(lambda sample, number: _decode(sample[0], number, transform), samples, itertools.count())
        )
    return ImageSet.from_array(
        np.stack(pixels),
        labels=np.array([label for _, label in samples], np.int64),
        mean=preprocess.mean,
        std=preprocess.std,
        source=str(samples[0][0].parent.parent),
    )


def _decode(path: Path, number: int, transform: Callable[[Image.Image, int], Image.Image]) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(transform(image.convert("RGB"), number), np.uint8).transpose(2, 0, 1)
