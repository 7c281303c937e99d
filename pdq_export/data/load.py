"""Finds and loads images, whatever they are stored as."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.archive import load_npy, load_npz, load_npz_inputs
from pdq_export.data.folder import load_folder
from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet
from pdq_export.data.input_spec import InputSpec
from pdq_export.errors import DataError

logger = logging.getLogger(__name__)

DataSource = str | Path | NDArray[np.float32] | ImageSet | InputSet | Mapping[str, NDArray[np.float32]]
_ARCHIVES = {".npz": load_npz, ".npy": load_npy}
_FORMS = ".npz, .npy or a folder of images"


def load_images(
    path: str | Path,
    *,
    expected: InputSpec | None = None,
    limit: int | None = None,
    told: Callable[[int, int], None] = lambda *_: None,
) -> ImageSet:
    """Load images from an .npz, an .npy or a folder of image files.

    - ``.npz``: ``images``, or an array of the input's name, (N, C, H, W), float32 as they are, or uint8 with ``mean``
      and ``std`` [C] in units of 0..1: x = (images / 255 - mean) / std; optionally ``labels`` (N,).
    - ``.npy``: float32 (N, C, H, W).
    - folder: .jpg, .jpeg, .png, .bmp, .webp in sorted order, with optional ``preprocess.toml`` and ``labels.csv``.

    ``expected`` is the model's input; C, H and W must fit it. With ``limit`` only the first images are read, all of
    them where there are fewer. ``told``: of how many images of a folder are read, and of how many at most. Raises
    DataError.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise DataError(f"{path}: {limit} images asked for; expected at least 1")
    if expected is not None:
        expected.check_supported(str(path))
    try:
        images = _load(path, expected, limit, told)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if limit is not None and len(images) < limit:
        logger.warning(
            "%s: %d images, fewer than the %d of the preset or the options: all are taken", path, len(images), limit
        )
    return images


def load_inputs(path: str | Path, *, expected: Sequence[InputSpec], limit: int | None = None) -> InputSet:
    """Load the data of a model with several inputs, or one that is no image, from an .npz.

    The archive has one float32 array (N, ...) for each input, under the input's name, as the model wants them, and
    optionally ``labels`` (N,). With ``limit`` only the first samples are read. Raises DataError.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise DataError(
            f"{path}: {'no .npz' if path.exists() else 'no such file'}; expected an .npz with one float32 array for "
            f"each of the model's inputs, {_names(expected)}, since they are not one image (N x C x H x W)"
        )
    try:
        return load_npz_inputs(path, expected=expected, limit=limit)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_exists(source: DataSource | None) -> None:
    """Raise DataError if data is given as a path at which there is nothing."""
    try:
        missing = isinstance(source, str | Path) and not Path(source).exists()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    if missing:
        raise DataError(
            f"{source}: no such file or folder; expected images as {_FORMS}, or an .npz of arrays by input name"
        )


def check_form(source: DataSource | None) -> None:
    """Raise DataError if data is given as a path at which there is nothing of a known form."""
    check_exists(source)
    if not isinstance(source, str | Path) or Path(source).is_dir():
        return
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: not a regular file; expected images as {_FORMS}")
    if path.suffix.lower() not in _ARCHIVES:
        raise DataError(f"{path}: suffix {path.suffix!r} is not known; expected images as {_FORMS}")


def read_data(
    source: DataSource,
    expected: Sequence[InputSpec],
    *,
    limit: int | None = None,
    told: Callable[[int, int], None] = lambda *_: None,
) -> ImageSet | InputSet:
    """Whatever users give as calibration or evaluation data, checked against the model's inputs.

    One input that takes images: a path for `load_images`, an array or an `ImageSet`. Anything else: a path for
    `load_inputs`, a mapping of arrays by input name, an `InputSet`, or one array for one input. ``told``: as in
    `load_images`. Raises DataError.
    """
    first, *others = expected
    if first.takes_images and not others:
        if isinstance(source, ImageSet):
            return source.check(first) if limit is None else source.check(first).head(limit)
        if isinstance(source, np.ndarray):
            return ImageSet.from_array(source, expected=first, limit=limit)
        if isinstance(source, str | Path):
            return load_images(source, expected=first, limit=limit, told=told)
    if isinstance(source, str | Path):
        return load_inputs(source, expected=expected, limit=limit)
    if isinstance(source, InputSet):
        return source.check(expected) if limit is None else source.check(expected).head(limit)
    if isinstance(source, np.ndarray) and not others:
        source = {first.name: source}
    if isinstance(source, Mapping):
        return InputSet.from_arrays(source, expected=expected, limit=limit)
    raise DataError(f"{type(source).__name__} given as data; expected arrays by input name: {_names(expected)}")


def _names(expected: Sequence[InputSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in expected)


def _load(path: Path, expected: InputSpec | None, limit: int | None, told: Callable[[int, int], None]) -> ImageSet:
    if path.is_dir():
        return load_folder(path, expected=expected, limit=limit, told=told)
    check_form(path)
    return _ARCHIVES[path.suffix.lower()](path, expected=expected, limit=limit)


def find_default(folder: str | Path) -> tuple[Path | None, Path | None]:
    """Calibration and evaluation images in a folder: ``calib`` and ``eval``, each an .npz, an .npy or a folder.

    None for what is missing. Raises DataError if there is more than one of a kind.
    """
    return _find(Path(folder), "calib"), _find(Path(folder), "eval")


def _find(folder: Path, stem: str) -> Path | None:
    files = [path for suffix in _ARCHIVES if (path := folder / f"{stem}{suffix}").is_file()]
    folders = [path for path in (folder / stem,) if path.is_dir()]
    found = files + folders
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: {names}: expected one of them; say which with --{stem}")
    return found[0] if found else None
