"""Accuracy and agreement of outputs, in numpy, one batch at a time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.spec import Place

Array = NDArray[np.float32]
# Agreement beyond chance, of all there could be (Cohen's kappa), that is none yet; and images that can tell.
_CHANCE = 0.1
_FEWEST_DIFFERENCES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close outputs are to reference outputs.

    ``argmax_agreement``: share of equal argmax over axis 1 of scores [N, K] or [N, K, H, W]; None for other shapes,
    such as the boxes of a detector, and where K is 1. Of integers and booleans (``counted``), such as the index of a
    class, it is the share of equal elements. ``positions``: how many were compared for it. ``chance_agreement``: the
    share that there would be of argmaxes as frequent as these, but drawn at random.
    ``sqnr_db``: 10 log10(sum ref^2 / sum (ref - x)^2), None where they are equal. ``relative_error``:
    ||x - ref|| / ||ref|| over everything, which single images of large values may rule; of single images,
    ``max_relative_error`` is the largest one and ``median_relative_error`` the one that half of the images stay below.
    Where there is no signal, as the reference is zero throughout and the outputs are not, or where squares leave
    float64, all of these are None. Infinities that are equal count as equal, and as no signal.
    ``argmax_error``, ``sqnr_error_db``: standard errors, from how the images differ; None of a single image.
    """

    images: int
    argmax_agreement: float | None
    chance_agreement: float | None
    sqnr_db: float | None
    relative_error: float | None
    median_relative_error: float | None
    max_relative_error: float | None
    counted: bool = False
    positions: int | None = None
    argmax_error: float | None = None
    sqnr_error_db: float | None = None

    @property
    def median_sqnr_db(self) -> float | None:
        """The signal-to-noise ratio that half of the images reach, None where these are equal to the reference."""
        return -20 * math.log10(self.median_relative_error) if self.median_relative_error else None

    @property
    def has_signal(self) -> bool:
        """Whether the error can be told in relation to the reference."""
        return self.relative_error is not None

    @property
    def is_chance(self) -> bool:
        """Whether argmaxes agree hardly more often than at random; false where there are too few or only one class."""
        if self.argmax_agreement is None or self.chance_agreement is None:
            return False
        room = 1 - self.chance_agreement
        return (
            room * self.images >= _FEWEST_DIFFERENCES and self.argmax_agreement - self.chance_agreement < _CHANCE * room
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of labelled images whose label is the largest (``top1``) or among the five largest outputs.

    ``top5`` is None where there are at most five classes.
    """

    images: int
    top1: float
    top5: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Top1Changes:
    """Labelled images whose top-1 differs: ``lost`` are those that FP32 has right and the other wrong, ``gained`` the
    others.
    """

    images: int
    lost: int
    gained: int

    @property
    def drop(self) -> float:
        """By how many points the accuracy falls; negative where it rises."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def error(self) -> float:
        """The standard error of `drop` in points: of a difference that is paired, image by image."""
        changed, net = self.lost + self.gained, self.lost - self.gained
        return 100 * math.sqrt(changed - net * net / self.images) / self.images


class AgreementMeter:
    """Adds up an `Agreement` over batches; ``where`` says in errors what is compared.

    ``place``: where images lie, by default along axis 0 alone.
    """

    def __init__(self, where: str = "outputs", place: Place | None = None) -> None:
        self._where, self._place = where, place or Place(axis=0)
        self._images = self._positions = self._equal = 0
        self._counted = False
        self._signals: list[NDArray[np.float64]] = []  # sums of squares by image, and of the differences below
        self._noises: list[NDArray[np.float64]] = []
        self._equals: list[NDArray[np.float64]] = []  # shares of equal argmaxes by image
        self._classes = np.zeros((2, 0), np.int64)  # how often each is the largest, of reference and outputs

    def update(self, reference: Array, outputs: Array) -> None:
        """Add one batch, images along the meter's place in both.

        Raises ValidationError for unequal shapes, those without that place, and for what `same_where_infinite` refuses.
        """
        if reference.shape != outputs.shape:
            raise ValidationError(
                f"{self._where}: the shape is {list(outputs.shape)}; expected {list(reference.shape)}"
            )
        if not same_where_infinite(reference, outputs):
            raise ValidationError(f"{self._where}: it contains NaN or infinity; expected finite numbers")
        if not self._place.fits(reference.shape):
            raise ValidationError(
                f"{self._where}: the shape is {list(outputs.shape)}; expected {self._place.outer * self._place.inner} "
                f"rows per image along axis {self._place.axis}"
            )
        along_rows = self._place.axis == 0  # scores [steps * N, K] have a class for every row
        rows = (reference, outputs)
        reference, outputs = (images_first(x, self._place) for x in rows)
        count = len(reference)
        finite = np.isfinite(reference)
        wide, other = (np.where(finite, x, 0).astype(np.float64) for x in (reference, outputs))
        self._images += count
        with np.errstate(over="ignore"):  # the result is None then
            self._signals.append(np.square(wide).reshape(count, -1).sum(axis=1))
            self._noises.append(np.square(other - wide).reshape(count, -1).sum(axis=1))
        self._counted = reference.dtype.kind != "f"
        if self._counted:
            self._add_equal(reference == outputs)
        else:
            self._add_classes(*(rows if along_rows else (reference, outputs)), shapes=(2, 4) if along_rows else (2,))

    def _add_classes(self, reference: Array, outputs: Array, *, shapes: Sequence[int]) -> None:
        if reference.ndim not in shapes or reference.shape[1] < 2:
            return
        largest = [x.argmax(axis=1) for x in (reference, outputs)]
        equal = largest[0] == largest[1]
        self._add_equal(images_first(equal, self._place) if self._place.axis == 0 else equal)
        counts = np.stack([np.bincount(x.reshape(-1), minlength=reference.shape[1]) for x in largest])
        self._classes = counts if not self._classes.size else self._classes + counts

    def _add_equal(self, equal: NDArray[np.bool_]) -> None:
        """[N, ...], images first."""
        if equal.size:
            self._positions += equal.size
            self._equal += int(equal.sum())
            self._equals.append(equal.reshape(len(equal), -1).mean(axis=1))

    def result(self) -> Agreement:
        """The agreement over all batches so far."""
        shares = self._classes / max(self._positions, 1)
        signals, noises, equals = (
            np.concatenate(parts) if parts else np.zeros(0) for parts in (self._signals, self._noises, self._equals)
        )
        overall = _relative(float(signals.sum()), float(noises.sum()))
        relative = np.zeros(1) if overall is None else np.sqrt(noises[signals > 0] / signals[signals > 0])
        if not relative.size:  # no image has anything but zeros
            relative = np.zeros(1)
        return Agreement(
            images=self._images,
            argmax_agreement=self._equal / self._positions if self._positions else None,
            chance_agreement=float(shares.prod(axis=0).sum()) if self._classes.size else None,
            sqnr_db=-20 * math.log10(overall) if overall else None,
            relative_error=overall,
            median_relative_error=None if overall is None else float(np.median(relative)),
            max_relative_error=None if overall is None else float(relative.max()),
            counted=self._counted,
            positions=self._positions or None,
            argmax_error=_standard_error(equals),
            sqnr_error_db=_sqnr_error(signals, noises) if overall else None,
        )


def same_where_infinite(reference: Array, outputs: Array) -> bool:
    """Whether there is no NaN, and every infinity of one is the same in the other; both of one shape."""
    odd = ~(np.isfinite(reference) & np.isfinite(outputs))
    return bool((reference[odd] == outputs[odd]).all())


def _relative(signal: float, noise: float) -> float | None:
    """The error in relation to the reference; None where that has no signal, or where sums leave float64."""
    if not noise:
        return 0.0
    finite = math.isfinite(signal) and math.isfinite(noise) and signal > 0
    return math.sqrt(noise / signal) if finite and math.isfinite(noise / signal) else None


def _standard_error(values: NDArray[np.float64]) -> float | None:
    """Of their mean."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _sqnr_error(signals: NDArray[np.float64], noises: NDArray[np.float64]) -> float | None:
    """The standard error in dB of the ratio of two sums over images, linearized."""
    signal, noise, count = float(signals.sum()), float(noises.sum()), len(signals)
    if count < 2 or not signal or not noise:
        return None
    spread = math.sqrt(count / (count - 1) * float(np.square(noises / noise - signals / signal).sum()))
    return 10 / math.log(10) * spread


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
        rank = label_ranks(scores, labels)
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


class Top1Meter:
    """Adds up `Top1Changes` over batches of class scores, whose labels an `AccuracyMeter` has checked."""

    def __init__(self) -> None:
        self._images = self._lost = self._gained = 0

    def update(self, reference: Array, outputs: Array, labels: NDArray[np.integer]) -> None:
        """Add one batch: scores [N, K] of both, labels [N]."""
        scores = [class_scores(x) for x in (reference, outputs)]
        before, after = (label_ranks(x, labels) == 0 for x in scores if x is not None)
        self._images += len(labels)
        self._lost += int((before & ~after).sum())
        self._gained += int((after & ~before).sum())

    def result(self) -> Top1Changes | None:
        """What has changed over all batches so far; None where there was none."""
        if not self._images:
            return None
        return Top1Changes(images=self._images, lost=self._lost, gained=self._gained)


def label_ranks(scores: Array, labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """How many classes stand before the label, of each image: those that are larger, and equal ones of lower number.

    Where a score is NaN, all.
    """
    classes = scores.shape[1]
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(classes) < labels[:, None]))
    ranks: NDArray[np.integer] = np.where(np.isnan(scores).any(axis=1), classes, before.sum(axis=1))
    return ranks


def images_first(x: NDArray[Any], place: Place) -> NDArray[Any]:
    """[..., outer * N * inner, ...] as [N, ..., outer, inner, ...]; as it is where images have axis 0 alone."""
    if place == Place(axis=0):
        return x
    axis, outer, inner = place.axis, place.outer, place.inner
    count = x.shape[axis] // (outer * inner)
    split = x.reshape(*x.shape[:axis], outer, count, inner, *x.shape[axis + 1 :])
    kept = [size for size in (outer, inner) if size > 1]
    return np.moveaxis(split, axis + 1, 0).reshape(count, *x.shape[:axis], *kept, *x.shape[axis + 1 :])


def class_scores(outputs: Array) -> Array | None:
    """Outputs as [N, K], also from [N, K, 1, 1]; None where they are not one vector of scores per image."""
    if outputs.ndim < 2 or outputs.shape[1] < 2 or outputs.size != outputs.shape[0] * outputs.shape[1]:
        return None
    return outputs.reshape(outputs.shape[:2])
