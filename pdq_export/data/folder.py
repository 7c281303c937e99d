"""Images from a folder of files, in the order of their names."""

import collections
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data import labels as labels_csv
from pdq_export.data import preprocess as preprocess_toml
from pdq_export.data.checks import check_bytes
from pdq_export.data.decode import BROKEN, TURNED, decode, reason
from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_spec import InputSpec
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import DataError, first_few

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_MODES = {1: "L", 3: "RGB"}
_NAMED = 3  # files that are skipped with a message each


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """How each file of the folder becomes an array (C, H, W)."""

    mode: str
    preprocess: Preprocess
    expected: InputSpec | None


def load_folder(
    folder: Path,
    *,
    expected: InputSpec | None,
    limit: int | None,
    told: Callable[[int, int], None] = lambda *_: None,
) -> ImageSet:
    """Decode the first ``limit`` images of a folder to uint8; damaged files are named and skipped.

    Without ``resize`` or ``crop`` in preprocess.toml every image must have the size of the model's input, or of the
    first image if that is dynamic. ``told`` is called with the number of decoded images and the largest number there
    can be. Raises DataError.
    """
    where = str(folder)
    names = _list_images(folder)
    preprocess = _preprocess(folder)
    channels = _channels(where, expected, preprocess)
    mean, std = preprocess.statistics(str(folder / preprocess_toml.FILE_NAME), channels)
    csv_file = folder / labels_csv.FILE_NAME
    labels = labels_csv.read_labels(csv_file, names) if csv_file.exists() else None
    task = _Task(mode=_MODES[channels], preprocess=preprocess, expected=expected)
    pixels, used = _decode_all(folder, names, task, limit, told)
    return ImageSet(
        pixels=pixels,
        mean=mean,
        std=std,
        labels=None if labels is None else np.array([labels[name] for name in used], dtype=np.int64),
        source=where,
    )


def _list_images(folder: Path) -> list[str]:
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    names = [path.name for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not names:
        folders = sum(path.is_dir() for path in entries)
        found = f"but {len(entries) - folders} other files and {folders} folders" if entries else "it is empty"
        raise DataError(f"{folder}: no images, {found}; expected {', '.join(SUFFIXES)} directly in the folder")
    return names


def _preprocess(folder: Path) -> Preprocess:
    file = folder / preprocess_toml.FILE_NAME
    preprocess = preprocess_toml.read_preprocess(file) if file.exists() else Preprocess()
    if preprocess.mean is None:
        logger.warning(
            "%s: no mean and std (they would stand in %s): pixels are scaled to 0..1; unless the model takes those, "
            "set both",
            folder,
            preprocess_toml.FILE_NAME,
        )
    return preprocess


def _channels(where: str, expected: InputSpec | None, preprocess: Preprocess) -> int:
    """1 or 3: the model's, or as many as there are means where the model leaves it open."""
    channels = None if expected is None else expected.chw[0]
    if channels is None:
        channels = 3 if preprocess.mean is None else len(preprocess.mean)
        asked = f"{preprocess_toml.FILE_NAME} has {channels} means"
    else:
        asked = f"the model's {expected} takes {channels} channels"
    if channels not in _MODES:
        raise DataError(f"{where}: {asked}, but image files give 1 or 3; store the images in an .npz")
    return channels


def _decode_all(
    folder: Path, names: list[str], task: _Task, limit: int | None, told: Callable[[int, int], None]
) -> tuple[NDArray[np.uint8], list[str]]:
    """The first ``limit`` images that can be decoded, (N, C, H, W), and their names."""
    count = len(names) if limit is None else min(limit, len(names))
    pixels: NDArray[np.uint8] | None = None
    used: list[str] = []
    skipped = 0
    notes: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        if len(used) == count:
            break
        try:
            decoded = decode(folder / name, task.mode)
        except BROKEN as error:
            level = logging.WARNING if skipped < _NAMED else logging.DEBUG
            logger.log(level, "%s: skipped: %s", folder / name, reason(error))
            skipped += 1
            continue
        array = _to_array(folder / name, decoded.image, task)
        if pixels is None:
            check_bytes(str(folder), (count, *array.shape), 1)
            pixels = np.empty((count, *array.shape), dtype=np.uint8)
        _check_size(folder / name, array.shape, pixels.shape[1:], "the first image is")
        pixels[len(used)] = array
        used.append(name)
        told(len(used), count)
        for note in decoded.notes:
            notes[note].append(name)
    _tell(folder, skipped, len(used), notes)
    if pixels is None:
        raise DataError(f"{folder}: none of {len(names)} images can be decoded; see the warnings above")
    return pixels[: len(used)], used


def _tell(folder: Path, skipped: int, used: int, notes: Mapping[str, Sequence[str]]) -> None:
    """One message for each thing that happened, however many files it happened to."""
    if skipped > _NAMED:
        logger.warning("%s: %d more files are skipped (--verbose names them)", folder, skipped - _NAMED)
    for note, names in notes.items():
        level = logging.INFO if note == TURNED else logging.WARNING
        logger.log(level, "%s: %d of %d images %s (%s)", folder, len(names), used, note, first_few(names))


def _to_array(path: Path, image: Image.Image, task: _Task) -> NDArray[np.uint8]:
    """Resize, crop, and move the channels to the front; the size must be the model's."""
    before = (image.height, image.width)
    try:
        image = task.preprocess.apply(image)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    array = np.asarray(image, dtype=np.uint8)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if task.expected is not None:
        _, height, width = task.expected.chw
        wanted = (array.shape[0], height or array.shape[1], width or array.shape[2])
        what = f"the model's {task.expected} takes"
        if task.preprocess.changes_size:
            what = f"(from {before[0]} x {before[1]}) {what}"
        _check_size(path, array.shape, wanted, what)
    return array


def _check_size(path: Path, found: tuple[int, ...], wanted: tuple[int, ...], what: str) -> None:
    if found != wanted:
        (height, width), (want_height, want_width) = found[1:], wanted[1:]
        raise DataError(
            f"{path}: {height} x {width} (H x W), but {what} {want_height} x {want_width}; set resize or crop in "
            f"{path.parent / preprocess_toml.FILE_NAME}, for example resize = [{want_height}, {want_width}]"
        )
