"""Samples whose predicted class another model changes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pdq_export.validate.compare import class_scores

MOST = 24  # that are kept one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedSample:
    """``number``: counted from 0 in the data. ``margin``: by how much FP32's score of its class exceeds the other's."""

    number: int
    float_class: int
    quantized_class: int
    label: int | None
    margin: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedPredictions:
    """``changed`` of so many ``images`` have another class; ``samples``: at most 24, those FP32 is surest of first.

    ``names``: of classes that occur in them, by class; empty where none are known.
    """

    images: int
    changed: int
    samples: tuple[ChangedSample, ...]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def with_names(self, classes: Sequence[str]) -> Self:
        """``classes``: the names of all, in order."""
        seen = {c for one in self.samples for c in (one.float_class, one.quantized_class, one.label) if c is not None}
        return dataclasses.replace(self, names={str(c): classes[c] for c in sorted(seen) if 0 <= c < len(classes)})


class ChangesMeter:
    """Adds up `ChangedPredictions` over batches of class scores; what is no such output, or not finite, is left out."""

    def __init__(self) -> None:
        self._images = self._changed = 0
        self._samples: list[ChangedSample] = []

    def update(self, reference: Any, outputs: Any, labels: NDArray[np.integer] | None, first: int) -> None:
        """Add one batch: scores [N, K] of both, labels [N]; ``first``: the number of its first sample."""
        scores, others = class_scores(np.asarray(reference)), class_scores(np.asarray(outputs))
        if scores is None or others is None or scores.shape != others.shape:
            return
        known = np.isfinite(scores).all(axis=1) & np.isfinite(others).all(axis=1)
        before, after = scores.argmax(axis=1), others.argmax(axis=1)
        changed = np.flatnonzero(known & (before != after))
        self._images += int(known.sum())
        self._changed += len(changed)
        self._samples += [
            ChangedSample(
                number=first + int(row),
                float_class=int(before[row]),
                quantized_class=int(after[row]),
                label=None if labels is None else int(labels[row]),
                margin=float(scores[row, before[row]]) - float(scores[row, after[row]]),
            )
            for row in changed
        ]
        self._samples = sorted(self._samples, key=lambda one: (-one.margin, one.number))[:MOST]

    def result(self) -> ChangedPredictions | None:
        """What has changed so far; None where nothing was a class."""
        if not self._images:
            return None
        return ChangedPredictions(images=self._images, changed=self._changed, samples=tuple(self._samples))
