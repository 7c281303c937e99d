"""Accuracy and agreement of outputs, in numpy, one batch at a time."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ValidationError

Array = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close outputs are to reference outputs.

    ``argmax_agreement``: share of equal argmax over axis 1 of scores [N, K] or [N, K, H, W]; None for other shapes,
    such as the boxes of a detector, and where K is 1.
    ``sqnr_db``: 10 log10(sum ref^2 / sum (ref - x)^2), None where they are equal. ``relative_error``:
    ||x - ref|| / ||ref|| over everything; ``max_relative_error``: the largest one of a single image.
    """

    images: int
    argmax_agreement: float | None
    sqnr_db: float | None
    relative_error: float
    max_relative_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of labelled images whose label is the largest (``top1``) or among the five largest outputs.

    ``top5`` is None where there are at most five classes.
    """

    images: int
    top1: float
    top5: float | None


class AgreementMeter:
    """Adds up an `Agreement` over batches; ``where`` says in errors what is compared."""

    def __init__(self, where: str = "outputs") -> None:
        self._where = where
        self._images = self._positions = self._equal = 0
        self._signal = self._noise = self._max_relative = 0.0

    def update(self, reference: Array, outputs: Array) -> None:
        """Add one batch, [N, ...] each. Raises ValidationError for unequal shapes and for NaN or infinity."""
        if reference.shape != outputs.shape:
            raise ValidationError(
                f"{self._where}: the shape is {list(outputs.shape)}; expected {list(reference.shape)}"
            )
        if not (np.isfinite(outputs).all() and np.isfinite(reference).all()):
            raise ValidationError(f"{self._where}: it contains NaN or infinity; expected finite numbers")
        count = len(reference)
        wide, error = reference.astype(np.float64), outputs.astype(np.float64) - reference
        signal = np.square(wide).reshape(count, -1).sum(axis=1)
        noise = np.square(error).reshape(count, -1).sum(axis=1)
        relative = np.sqrt(noise) / np.maximum(np.sqrt(signal), np.finfo(np.float32).tiny)
        self._images += count
        self._signal += float(signal.sum())
        self._noise += float(noise.sum())
        self._max_relative = max(self._max_relative, float(relative.max(initial=0)))
        if reference.ndim in (2, 4) and reference.shape[1] > 1:
            equal = reference.argmax(axis=1) == outputs.argmax(axis=1)
            self._positions += equal.size
            self._equal += int(equal.sum())

    def result(self) -> Agreement:
        """The agreement over all batches so far."""
        tiny = np.finfo(np.float64).tiny
        return Agreement(
            images=self._images,
            argmax_agreement=self._equal / self._positions if self._positions else None,
            sqnr_db=10 * math.log10(max(self._signal, tiny) / self._noise) if self._noise else None,
            relative_error=math.sqrt(self._noise / max(self._signal, tiny)),
            max_relative_error=self._max_relative,
        )


class AccuracyMeter:
    """Adds up an `Accuracy` over batches of class scores."""

    def __init__(self) -> None:
        self._images = self._top1 = self._top5 = self._classes = 0

    def update(self, outputs: Array, labels: NDArray[np.integer]) -> None:
        """Add one batch: scores [N, K], labels [N]. Raises ValidationError for a label that is no class."""
        scores = class_scores(outputs)
        if scores is None or len(scores) != len(labels):
            raise ValidationError(
                f"outputs have shape {list(outputs.shape)} for {len(labels)} labels; expected [{len(labels)}, classes]"
            )
        self._classes = scores.shape[1]
        if labels.size and not 0 <= labels.min() <= labels.max() < self._classes:
            raise ValidationError(
                f"labels span [{labels.min()}, {labels.max()}]; expected 0 to {self._classes - 1}, "
                f"as the output has {self._classes} classes"
            )
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        before = (scores > own) | ((scores == own) & (np.arange(self._classes) < labels[:, None]))
        rank = np.where(np.isnan(own[:, 0]), self._classes, before.sum(axis=1))
        self._images += len(labels)
        self._top1 += int((rank == 0).sum())
        self._top5 += int((rank < 5).sum())

    def result(self) -> Accuracy:
        """The accuracy over all batches so far."""
        images = max(self._images, 1)
        return Accuracy(
            images=self._images,
            top1=self._top1 / images,
            top5=self._top5 / images if self._classes > 5 else None,
        )


def class_scores(outputs: Array) -> Array | None:
    """Outputs as [N, K], also from [N, K, 1, 1]; None where they are not one vector of scores per image."""
    if outputs.ndim < 2 or outputs.shape[1] < 2 or outputs.size != outputs.shape[0] * outputs.shape[1]:
        return None
    return outputs.reshape(outputs.shape[:2])
