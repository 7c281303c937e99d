"""Labels that can be known before any image is read: those of a folder, of an archive, and those that are given."""

import contextlib
import csv
import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.data import labels as labels_csv
from pdq_export.data.listing import list_images
from pdq_export.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownLabels:
    """``labels``: [N] of all that are named. ``classes``: the names of the folders that stand for classes, if any."""

    source: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...] | None = None


def known_labels(source: Any, labels: Any) -> KnownLabels | None:
    """The labels of ``source``, or ``labels`` that are given beside it; None where only reading tells them.

    ``labels`` is False where those of the data are left out. What is wrong with them is for reading to tell.
    """
    if labels is False or not isinstance(source, str | Path):
        return None
    path = Path(source)
    with contextlib.suppress(DataError, OSError, ValueError, TypeError, OverflowError, csv.Error, zipfile.BadZipFile):
        found, classes = (np.asarray(labels), None) if labels is not None else _of_path(path)
        if found is not None and found.ndim == 1 and found.size and found.dtype.kind in "iu":
            return KnownLabels(source=str(source), labels=found.astype(np.int64), classes=classes)
    return None


def _of_path(path: Path) -> tuple[NDArray[Any] | None, tuple[str, ...] | None]:
    if path.suffix.lower() == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as archive:
            return (archive["labels"] if "labels" in archive.files else None), None
    if not path.is_dir():
        return None, None
    if (file := path / labels_csv.FILE_NAME).is_file():
        return np.array(list(_rows(file)), dtype=np.int64), None
    listing = list_images(path, told=False)
    if listing.labels is None or listing.classes is None:
        return None, None
    return np.array(list(listing.labels.values()), dtype=np.int64), tuple(listing.classes)


def _rows(path: Path) -> Iterator[int]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            yield int(row.get("label") or "")
