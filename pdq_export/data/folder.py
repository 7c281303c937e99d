"""Images from a folder of files, in the order of their names; those of subfolders are of one class each.

What takes little memory is decoded once and held. Of a large folder every file is decoded once to see what is wrong
with it, and again whenever it is needed.
"""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data import labels as labels_csv
from pdq_export.data import preprocess as preprocess_toml
from pdq_export.data.checks import check_labels, check_unlabelled
from pdq_export.data.decode import BROKEN, TURNED, decode, reason
from pdq_export.data.image_set import ImageSet, Pixels
from pdq_export.data.input_spec import InputSpec
from pdq_export.data.listing import Listing, check_ranks, list_images
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import DataError, first_few

logger = logging.getLogger(__name__)

_MODES = {1: "L", 3: "RGB"}
_NAMED = 3  # files that are skipped with a message each
HELD = 192 * 2**20  # bytes of pixels that are held in memory

_LAST_FIRST = ("letterbox", "crop", "resize")  # of what gives images their size, the last step first


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """How each file of the folder becomes an array (C, H, W), or (H, W, C).

    ``options``: what of ``preprocess`` an option said, and not the folder's file.
    """

    mode: str
    preprocess: Preprocess
    expected: InputSpec | None
    layout: str
    options: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Files:
    """Images that are decoded when they are asked for; ``one``: the shape of each; ``digests``: of their pixels."""

    folder: Path
    names: tuple[str, ...]
    digests: tuple[bytes, ...]
    one: tuple[int, ...]
    task: _Task

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.names), *self.one

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        """Decode these images. Raises DataError where a file is not what it was."""
        chosen = self.select(rows)
        pixels = np.empty(chosen.shape, np.uint8)
        for number, (name, digest) in enumerate(zip(chosen.names, chosen.digests, strict=True)):
            path = self.folder / name
            try:
                array = _to_array(path, decode(path, self.task.mode).image, self.task)
            except BROKEN as error:
                raise DataError(f"{path}: could be read before, but no more: {reason(error)}; start again") from error
            if _digest(array) != digest:
                raise DataError(f"{path}: has changed since it was read first; start again, and leave the folder alone")
            pixels[number] = array
        return pixels

    def select(self, rows: slice | Sequence[int]) -> Self:
        """Some of the files."""
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        return dataclasses.replace(
            self,
            names=tuple(self.names[number] for number in chosen),
            digests=tuple(self.digests[number] for number in chosen),
        )


def load_folder(
    folder: Path,
    *,
    expected: InputSpec | None,
    limit: int | None,
    told: Callable[[int, int], None] = lambda *_: None,
    preprocess: Preprocess | None = None,
    labels: NDArray[Any] | Literal[False] | None = None,
) -> ImageSet:
    """Decode the first ``limit`` images of a folder to uint8; damaged files are named and skipped.

    Without ``resize``, ``crop`` or ``letterbox`` every image must have the size of the model's input, or of the first
    image if that is dynamic. ``preprocess`` wins over what preprocess.toml says. ``told`` is called with the number of
    decoded images and the largest number there can be. ``labels``: one for each file, damaged ones among them, by name,
    where the folder has none; False leaves those of the folder out. Raises DataError.
    """
    where = str(folder)
    listing = list_images(folder)
    given = preprocess or Preprocess()
    preprocess = _preprocess(folder, given, expected)
    layout = preprocess.layout or ("NCHW" if expected is None else expected.layout)
    channels = _channels(where, expected, preprocess, layout)
    mean, std = preprocess.statistics(str(folder / preprocess_toml.FILE_NAME), channels)
    by_name, classes = _labels(folder, listing, labels)
    task = _Task(
        mode=_MODES[channels],
        preprocess=preprocess,
        expected=expected,
        layout=layout,
        options=frozenset(given.given()),
    )
    pixels, used = _decode_all(folder, listing.names, task, limit, told)
    return ImageSet(
        pixels=pixels,
        mean=mean,
        std=std,
        labels=None if by_name is None else np.array([by_name[name] for name in used], dtype=np.int64),
        source=where,
        layout=layout,
        channel_order=preprocess.channel_order or "RGB",
        classes=classes,
    )


def _labels(
    folder: Path, listing: Listing, given: NDArray[Any] | Literal[False] | None
) -> tuple[Mapping[str, int] | None, tuple[str, ...] | None]:
    """The label of each file by name, from labels.csv, subfolders or the caller; the subfolders."""
    if given is False:
        return None, None
    csv_file = folder / labels_csv.FILE_NAME
    check_unlabelled(str(folder), given, has_labels=csv_file.exists() or listing.classes is not None)
    if csv_file.exists():
        return labels_csv.read_labels(csv_file, listing.names), None
    if given is not None:
        checked = check_labels(f"{folder}, files by name", given, len(listing.names))
        return dict(zip(listing.names, checked.tolist(), strict=True)), None
    if listing.classes is None:
        return None, None
    check_ranks(folder, listing.classes)
    return listing.labels, tuple(listing.classes)


def _preprocess(folder: Path, given: Preprocess, expected: InputSpec | None) -> Preprocess:
    file = folder / preprocess_toml.FILE_NAME
    stored = preprocess_toml.read_preprocess(file) if file.exists() else Preprocess()
    layout = given.layout or stored.layout or ("NCHW" if expected is None else expected.layout)
    given.check_pair(str(folder), stored, None if expected is None else expected.channels(layout))
    preprocess = given.over(stored, f"{file} with what is given for it" if file.exists() else str(folder))
    if preprocess.mean is None and preprocess.pixel_range is None:
        logger.warning(
            "%s: no mean and std (they would stand in %s): pixels are scaled to 0..1; unless the model "
            "takes those, set both",
            folder,
            preprocess_toml.FILE_NAME,
        )
    return preprocess


def _channels(where: str, expected: InputSpec | None, preprocess: Preprocess, layout: str) -> int:
    """1 or 3: the model's, or as many as there are means where the model leaves it open."""
    channels = None if expected is None else expected.channels(layout)
    if channels is None:
        channels = 3 if preprocess.mean is None else len(preprocess.mean)
        asked = f"{preprocess_toml.FILE_NAME} has {channels} means"
    else:
        asked = f"the model's {expected} takes {channels} channels"
    if channels not in _MODES:
        raise DataError(f"{where}: {asked}, but image files give 1 or 3; store the images in an .npz")
    return channels


def _decode_all(
    folder: Path, names: Sequence[str], task: _Task, limit: int | None, told: Callable[[int, int], None]
) -> tuple[Pixels, list[str]]:
    """The first ``limit`` images that can be decoded, and their names; held in memory where they take little."""
    count = len(names) if limit is None else min(limit, len(names))
    held: NDArray[np.uint8] | None = None
    one: tuple[int, ...] | None = None
    digests: list[bytes] = []
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
        if one is None:
            one = array.shape
            held = np.empty((count, *one), dtype=np.uint8) if count * array.nbytes <= HELD else None
        _check_size(folder / name, array.shape, one, task, "the first image is")
        if held is None:
            digests.append(_digest(array))
        else:
            held[len(used)] = array
        used.append(name)
        told(len(used), count)
        for note in decoded.notes:
            notes[note].append(name)
    _tell(folder, skipped, len(used), notes)
    if one is None:
        raise DataError(f"{folder}: none of {len(names)} images can be decoded; see the warnings above")
    if held is not None:
        return held[: len(used)], used
    return _Files(folder=folder, names=tuple(used), digests=tuple(digests), one=one, task=task), used


def _digest(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(array.data).digest()


def _tell(folder: Path, skipped: int, used: int, notes: Mapping[str, Sequence[str]]) -> None:
    """One message for each thing that happened, however many files it happened to."""
    if skipped > _NAMED:
        logger.warning("%s: %d more files are skipped (--verbose names them)", folder, skipped - _NAMED)
    for note, names in notes.items():
        level = logging.INFO if note == TURNED else logging.WARNING
        logger.log(level, "%s: %d of %d images %s (%s)", folder, len(names), used, note, first_few(names))


def _to_array(path: Path, image: Image.Image, task: _Task) -> NDArray[np.uint8]:
    """Bring the image to the model's size, channels and layout; the size must be the model's."""
    before = (image.height, image.width)
    size = (None, None) if task.expected is None else task.expected.size(task.layout)
    try:
        image = task.preprocess.apply(image, size)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    array = task.preprocess.to_array(image, task.layout)
    if task.expected is not None:
        wanted = (size[0] or image.height, size[1] or image.width)
        made = f", made of {before[0]} x {before[1]}" if task.preprocess.changes_size else ""
        _check(path, (image.height, image.width), wanted, f"the model's {task.expected} takes", task, made)
    return array


def _check_size(path: Path, found: tuple[int, ...], wanted: tuple[int, ...], task: _Task, what: str) -> None:
    axes = slice(0, 2) if task.layout == "NHWC" else slice(1, 3)
    _check(path, found[axes], wanted[axes], what, task)


def _check(path: Path, found: tuple[int, ...], wanted: tuple[int, ...], what: str, task: _Task, made: str = "") -> None:
    if found == wanted:
        return
    (height, width), (want_height, want_width) = found, wanted
    decides = next((name for name in _LAST_FIRST if getattr(task.preprocess, name) is not None), None)
    if decides in task.options:
        remedy = f"that is what --{decides} says; give --{decides} {want_height}x{want_width}"
    else:
        remedy = (
            f"set resize or crop in {preprocess_toml.FILE_NAME} of the folder, for example resize = [{want_height}, "
            f"{want_width}]"
        )
    raise DataError(f"{path}: {height} x {width} (H x W{made}), but {what} {want_height} x {want_width}; {remedy}")
