"""ImageNet as one folder a class: listing, drawing, and loading a part at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data import ImageSet
from pdq_export.data.folder import SUFFIXES
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
    """Decode samples to uint8, with their labels. Raises OSError for a damaged file."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        pixels = list(pool.map(lambda sample: _decode(sample[0], preprocess), samples))
    return ImageSet.from_array(
        np.stack(pixels),
        labels=np.array([label for _, label in samples], np.int64),
        mean=preprocess.mean,
        std=preprocess.std,
        source=str(samples[0][0].parent.parent),
    )


def _decode(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(preprocess.apply(image.convert("RGB")), np.uint8).transpose(2, 0, 1)
