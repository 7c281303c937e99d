"""Which image files a folder has: directly in it, or in a subfolder for each class, as ImageNet and torchvision do."""

import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdq_export.errors import DataError, counted, first_few

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """``names``: of the files, relative to the folder, with slashes. ``labels``: by name, where subfolders are classes.

    ``classes``: the names of the subfolders, then.
    """

    names: list[str]
    labels: Mapping[str, int] | None = None
    classes: Sequence[str] | None = None


def list_images(folder: Path, *, told: bool = True) -> Listing:
    """The images directly in a folder by name; else those of its subfolders, whose ranks by name are their classes.

    Of subfolders the first image of each class comes first, then the second ones, so that the first images are of all
    classes; hidden subfolders are left out, those without images keep their rank. ``told``: whether users hear of
    images in subfolders that are not read. Raises DataError where there is no image.
    """
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    folders = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    names = [path.name for path in entries if _is_image(path.name) and path.is_file()]
    if names:
        if told:
            _tell_unread(folder, folders)
        return Listing(names=names)
    by_class = [[file.relative_to(folder).as_posix() for file in _below(path)] for path in folders]
    if not any(by_class):
        others = sum(not path.is_dir() for path in entries)
        found = (
            f"but {counted(others, 'other file')} and {counted(len(folders), 'folder')} without any"
            if entries
            else "it is empty"
        )
        raise DataError(
            f"{folder}: no images, {found}; expected {', '.join(SUFFIXES)} directly in the folder, or in a subfolder "
            "for each class"
        )
    labels = {name: label for label, files in enumerate(by_class) for name in files}
    rounds = itertools.zip_longest(*by_class)
    mixed = [name for one_of_each in rounds for name in one_of_each if name is not None]
    return Listing(names=mixed, labels=labels, classes=[path.name for path in folders])


def check_ranks(folder: Path, classes: Sequence[str]) -> None:
    """Raise DataError where the ranks of subfolders by name are others than those by the numbers that they are named.

    Training may have counted either way: torchvision's ImageFolder ranks names, and most other code takes the number.
    """
    if not all(name.isascii() and name.isdigit() for name in classes):
        return
    numeric = sorted(classes, key=lambda name: (int(name), name))
    rank = next((at for at, (name, other) in enumerate(zip(classes, numeric, strict=True)) if name != other), None)
    if rank is not None:
        padded = numeric[rank].lstrip("0").rjust(len(numeric[-1]), "0")
        raise DataError(
            f"{folder}: its subfolders are classes named by number, and class {rank} is {classes[rank]!r} in the order "
            f"of names, as torchvision's ImageFolder counts, but {numeric[rank]!r} in that of numbers; expected names "
            f"that are in order both ways: rename them to as many digits each ({padded}) if "
            "training took the numbers; else say which image is of which class in labels.csv, with the columns file "
            "and label"
        )


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _below(folder: Path) -> list[Path]:
    """Every image in a folder and in folders below it, by path."""
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names if _is_image(name)]
    return sorted(path for path in found if path.is_file())


def _tell_unread(folder: Path, folders: list[Path]) -> None:
    unread = [path.name for path in folders if next(filter(_is_image, os.listdir(path)), None) is not None]
    if unread:
        logger.warning(
            "%s: has images itself, so those in its %d subfolders are not read (%s)",
            folder,
            len(unread),
            first_few(unread),
        )
