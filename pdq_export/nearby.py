"""Names like one that is missing, of files and of what is known, for messages."""

import difflib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from pdq_export.errors import printable

_LISTED = 10_000  # names of a folder that are looked at: one of images has many, and none of them is meant


def near_names(name: object, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The nearest of the ``known`` names, in whichever case, first; none where none is near.

    ``cutoff``: how alike they have to be, see `difflib.get_close_matches`.
    """
    by_lower: dict[str, list[str]] = {}
    for one in known:
        by_lower.setdefault(one.lower(), []).append(one)
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=most, cutoff=cutoff)
    return [one for lower in near for one in by_lower[lower]][:most]


def near_path(path: str | os.PathLike[str], *suffixes: str) -> str:
    """`; did you mean …?` with what is there under a name like that of a missing ``path``, or nothing.

    Looked for is what has the same suffix or one of ``suffixes``, "" for folders, in the same folder, or where that is
    missing in one with a name like its.
    """
    path = Path(path)
    try:
        found = None if os.path.lexists(path) else _near(path, {path.suffix.lower(), *suffixes})
    except (OSError, ValueError):  # a folder that may not be listed, a name that no file can have
        return ""
    return "" if found is None else f"; did you mean {printable(str(found))}?"


def _near(path: Path, suffixes: set[str]) -> Path | None:
    if path.parent == path:
        return None
    folder = path.parent if path.parent.is_dir() else _near(path.parent, {""})
    if folder is None or (folder / path.name).exists():
        return folder and folder / path.name
    names: dict[str, str] = {}  # by what is compared: of short names with their suffixes most would be alike
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _LISTED):
            suffix = "" if entry.is_dir() else Path(entry.name).suffix.lower()
            if suffix in suffixes and not entry.name.startswith(".") and os.path.exists(entry.path):
                stem = entry.name.lower().removesuffix(suffix)
                names[stem] = min(entry.name, names.get(stem, entry.name))
    near = difflib.get_close_matches(path.stem.lower(), sorted(names), n=1)
    return folder / names[near[0]] if near else None
