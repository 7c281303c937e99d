"""Class labels of a folder of images: ``labels.csv`` with the columns ``file`` and ``label``."""

import csv
from collections.abc import Sequence
from pathlib import Path

from pdq_export.errors import DataError

FILE_NAME = "labels.csv"


def read_labels(path: Path, images: Sequence[str]) -> dict[str, int]:
    """Label by file name, for every image.

    Raises DataError if an image has none or if a line names no image.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            labels = _read_rows(path, csv.DictReader(file), frozenset(images))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file in UTF-8: {error}") from error
    missing = [name for name in images if name not in labels]
    if missing:
        raise DataError(
            f"{path}: no label for {len(missing)} images, first {missing[0]!r}; add them, or remove {path.name}"
        )
    return labels


def _read_rows(path: Path, rows: "csv.DictReader[str]", images: frozenset[str]) -> dict[str, int]:
    columns = rows.fieldnames or []
    if not {"file", "label"} <= set(columns):
        found = ", ".join(map(repr, columns)) or "none"
        raise DataError(f"{path}: columns {found}; expected a header line with 'file' and 'label'")
    labels: dict[str, int] = {}
    for row in rows:
        where, name, label = f"{path}, line {rows.line_num}", row["file"], row["label"]
        if name is None or label is None:
            raise DataError(f"{where}: incomplete; expected a file and a label")
        _check_name(where, name, path.parent, images)
        if name in labels:
            raise DataError(f"{where}: {name!r} a second time; expected one label for each image")
        if not (label.strip().isascii() and label.strip().isdigit() and len(label.strip()) < 10):
            raise DataError(f"{where}: label {label!r}; expected the index of a class: an integer from 0")
        labels[name] = int(label)
    return labels


def _check_name(where: str, name: str, folder: Path, images: frozenset[str]) -> None:
    if name in images:
        return
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise DataError(f"{where}: {name!r} is not a file of the folder; expected a bare file name")
    if not (folder / name).is_file():
        raise DataError(f"{where}: {name!r}: no such file in the folder; remove the line or restore the file")
    raise DataError(f"{where}: {name!r} is no image; expected .jpg, .jpeg, .png, .bmp or .webp")
