"""Finds and loads data, whatever they are given as."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.archive import load_npy, load_npz, load_npz_inputs
from pdq_export.data.checks import check_labels, check_unlabelled
from pdq_export.data.folder import load_folder
from pdq_export.data.function import call_function, names_function, user_function
from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet
from pdq_export.data.input_spec import InputSpec
from pdq_export.data.items import TAKEN, DataReader, as_array, is_iterable, read_items
from pdq_export.data.preprocess import Preprocess, unused
from pdq_export.data.synthetic import asks_synthetic
from pdq_export.errors import DataError
from pdq_export.nearby import near_path

logger = logging.getLogger(__name__)

# Tensors of torch are iterables as well.
DataSource = str | Path | NDArray[Any] | ImageSet | InputSet | Mapping[str, Any] | DataReader | Iterable[Any]
Labelled = TypeVar("Labelled", bound=ImageSet | InputSet)
_ARCHIVES = {".npz": load_npz, ".npy": load_npy}
_FORMS = ".npz, .npy or a folder of images"


def load_images(
    path: str | Path,
    *,
    expected: InputSpec | None = None,
    limit: int | None = None,
    told: Callable[[int, int], None] = lambda *_: None,
    preprocess: Preprocess | None = None,
    labels: Any = None,
    spare: int = 0,
) -> ImageSet:
    """Load images from an .npz, an .npy or a folder of image files.

    - ``.npz``: ``images``, or an array of the input's name, (N, C, H, W), float32 as they are, or uint8 with ``mean``
      and ``std`` [C] in units of 0..1: x = (images / 255 - mean) / std; optionally ``labels`` (N,).
    - ``.npy``: float32 (N, C, H, W).
    - folder: .jpg, .jpeg, .png, .bmp, .webp in sorted order, with optional ``preprocess.toml`` and ``labels.csv``; or
      one subfolder for each class.

    ``expected`` is the model's input; C, H and W must fit it. With ``limit`` only the first images are read, all of
    them where there are fewer. ``told``: of how many images of a folder are read, and of how many at most.
    ``preprocess``: wins over that of the folder; ``mean`` and ``std`` go with uint8 images, too. ``labels``: class
    indices, one for each image that there is, where it has none of its own: of a folder one for each file in the order
    of their names, those that are skipped among them; False leaves out those that the images have. ``spare``: how many
    of ``limit`` nobody misses. Raises DataError.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise DataError(f"{path}: {limit} images asked for; expected at least 1")
    if expected is not None:
        expected.check_supported(str(path))
    try:
        images = _load(path, expected, limit, told, preprocess or Preprocess(), labels)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if limit is not None and len(images) < (wanted := limit - spare):
        logger.warning(
            "%s: %d images, fewer than the %d of the preset or the options: all are taken", path, len(images), wanted
        )
    return images


def load_inputs(path: str | Path, *, expected: Sequence[InputSpec], limit: int | None = None) -> InputSet:
    """Load the data of a model with several inputs, or one that is no image, from an .npz.

    The archive has one float32 array (N, ...) for each input, under the input's name, as the model wants them, and
    optionally ``labels`` (N,). With ``limit`` only the first samples are read. Raises DataError.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        found, near = ("no .npz", "") if path.exists() else ("no such file", near_path(path, ".npz"))
        raise DataError(
            f"{path}: {found}; expected an .npz with one float32 array for each of the model's inputs, "
            f"{_names(expected)}, since they are not one image (N x C x H x W){near}"
        )
    try:
        return load_npz_inputs(path, expected=expected, limit=limit)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_exists(source: DataSource | None) -> None:
    """Raise DataError if data is given as a path at which there is nothing, or a function that cannot be imported."""
    if isinstance(source, str) and names_function(source):
        user_function(source).find()
        return
    try:
        missing = isinstance(source, str | Path) and not Path(source).exists()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    if missing and asks_synthetic(source):
        raise DataError(
            f"{source}: images are made for --calib alone, and say nothing of how good a file is; expected images to "
            "judge it on: --eval PATH"
        )
    if missing:
        raise DataError(
            f"{source}: no such file or folder; expected images as {_FORMS}, or an .npz of arrays by input name"
            f"{near_path(str(source), *_ARCHIVES, '')}"
        )


def check_form(source: DataSource | None) -> None:
    """Raise DataError if data is given as a path at which there is nothing of a known form. Runs no code of users."""
    if isinstance(source, str) and names_function(source):
        user_function(source).check_module()
        return
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
    labels: Any = None,
    told: Callable[[int, int], None] = lambda *_: None,
    preprocess: Preprocess | None = None,
    spare: int = 0,
) -> ImageSet | InputSet:
    """Whatever users give as calibration or evaluation data, checked against the model's inputs.

    One input that takes images: a path for `load_images`, an array or tensor, or an `ImageSet`. Anything else: a path
    for `load_inputs`, a mapping of arrays by input name, an `InputSet`, or one array for one input. For both: data in
    a pair with their labels, what `read_items` takes, and ``module:function``, which returns any of these. ``labels``:
    of all samples that there are, where the data have none of their own; False leaves out those that they have.
    ``told``, ``preprocess`` and ``spare``: as in `load_images`. Raises DataError.
    """
    where = ""
    if isinstance(source, str) and names_function(source):
        where, source = source, call_function(source)
    if (pair := _labelled_pair(source, expected)) is not None:
        check_unlabelled(where or "data", labels, has_labels=True)
        source, labels = pair[0], False if labels is False else pair[1]
    preprocess = preprocess or Preprocess()
    asked = _Asked(where=where, limit=limit, labels=labels, told=told, preprocess=preprocess, spare=spare)
    data = _read(source, expected, asked)
    taken = isinstance(source, np.ndarray | Mapping) or as_array(source, where) is not None
    if labels is False:
        return _unlabelled(data)
    if labels is None or taken or (isinstance(source, str | Path) and isinstance(data, ImageSet)):
        return data
    return _with_labels(data, labels, limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What `read_data` was asked for; ``where``: the function that has given the data, or nothing."""

    where: str
    limit: int | None
    labels: Any
    told: Callable[[int, int], None]
    preprocess: Preprocess
    spare: int


def _read(source: Any, expected: Sequence[InputSpec], asked: _Asked) -> ImageSet | InputSet:
    first, *others = expected
    image, where, limit = first.takes_images and not others, asked.where, asked.limit
    if isinstance(source, str | Path):
        if image:
            return load_images(
                source,
                expected=first,
                limit=limit,
                told=asked.told,
                preprocess=asked.preprocess,
                labels=asked.labels,
                spare=asked.spare,
            )
        _check_unused(str(source), "data of a model that takes no single image", asked.preprocess)
        return load_inputs(source, expected=expected, limit=limit)
    _check_no_files(where or "data in memory", asked.preprocess)
    if not image:
        _check_unused(where or "data", "data of a model that takes no single image", asked.preprocess)
    if isinstance(source, ImageSet):
        layout = None if asked.preprocess.layout == source.layout else asked.preprocess.layout
        given = dataclasses.replace(asked.preprocess, layout=layout)
        _check_unused(where or source.source, "an ImageSet, which has them itself", given)
    if isinstance(source, ImageSet) and image:
        return source.check(first) if limit is None else source.check(first).head(limit)
    if isinstance(source, InputSet) and not image:
        return source.check(expected) if limit is None else source.check(expected).head(limit)
    if not isinstance(source, ImageSet | InputSet):
        array = as_array(source, where or "data")
        asked = dataclasses.replace(asked, labels=None if asked.labels is False else _labels(asked.labels, where))
        if array is not None and image:
            return _read_images(array, first, where or "array", asked)
        if array is not None and not others:
            source = {first.name: array}
        if isinstance(source, Mapping):
            arrays = {name: x for name, value in source.items() if (x := as_array(value, where)) is not None}
            if image and first.name in arrays:
                return _read_images(arrays[first.name], first, where or "arrays", asked)
            return InputSet.from_arrays(
                arrays, labels=asked.labels, source=where or "arrays", expected=expected, limit=limit
            )
        if array is None and is_iterable(source):
            kind = where or type(source).__name__
            return read_items(source, expected, where=kind, limit=limit, preprocess=asked.preprocess)
    of_inputs = "" if image else f"; the model's inputs are {_names(expected)}"
    raise DataError(f"{where or 'data'}: {type(source).__name__} given; expected {TAKEN}{of_inputs}")


def _read_images(array: NDArray[Any], expected: InputSpec, where: str, asked: _Asked) -> ImageSet:
    statistics = asked.preprocess.of_array(array.dtype, array.shape, expected, where)
    return ImageSet.from_array(
        array,
        labels=asked.labels,
        source=where,
        expected=expected,
        limit=asked.limit,
        layout=asked.preprocess.layout,
        **statistics,
    )


def _check_unused(where: str, kind: str, preprocess: Preprocess) -> None:
    """Raise DataError for whatever is given of preprocessing, where nothing of it is done."""
    if given := preprocess.given():
        raise unused(where, given[0], f"has no influence on {kind}")


def _check_no_files(where: str, preprocess: Preprocess) -> None:
    """Raise DataError for what can only be done to image files, where there are none."""
    if found := preprocess.of_files():
        raise unused(where, found[0], "is for folders of images alone; do it before the images are stored or given")


def _labelled_pair(source: Any, expected: Sequence[InputSpec]) -> tuple[Any, Any] | None:
    """The two parts of (X, y): all samples, and one label for each, rather than two batches."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        return None
    samples, labels = source
    if isinstance(samples, Mapping):
        return None if isinstance(labels, Mapping) else (samples, labels)
    found, beside = (as_array(part, "data") for part in source)
    rank = len(expected[0].shape)
    if (
        len(expected) != 1
        or found is None
        or found.ndim != rank
        or (beside is not None and beside.ndim >= rank - 1 > 1)
    ):
        return None
    return found, labels


def _labels(labels: Any, where: str) -> NDArray[Any] | None:
    if labels is None or isinstance(labels, list | tuple | range):
        return None if labels is None else np.asarray(labels)
    found = as_array(labels, where or "labels")
    if found is None:
        raise DataError(f"labels are {type(labels).__name__}; expected an array or a list of class indices [N]")
    return found


def _unlabelled(data: Labelled) -> Labelled:
    """The data without labels, and without the names of their classes."""
    left_out: dict[str, Any] = {"labels": None, **({"classes": None} if isinstance(data, ImageSet) else {})}
    return dataclasses.replace(data, **left_out)


def _with_labels(data: Labelled, labels: Any, limit: int | None) -> Labelled:
    """The data with labels that were given beside them; of data that were cut at ``limit`` there may be more."""
    check_unlabelled(data.source, labels, has_labels=data.labels is not None)
    found = _labels(labels, data.source)
    assert found is not None
    cut = found[: len(data)] if limit is not None and len(data) >= limit else found
    return dataclasses.replace(data, labels=check_labels(data.source, cut, len(data)))


def _names(expected: Sequence[InputSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in expected)


def _load(
    path: Path,
    expected: InputSpec | None,
    limit: int | None,
    told: Callable[[int, int], None],
    preprocess: Preprocess,
    labels: Any,
) -> ImageSet:
    if path.is_dir():
        given: NDArray[Any] | Literal[False] | None = False if labels is False else _labels(labels, str(path))
        return load_folder(path, expected=expected, limit=limit, told=told, preprocess=preprocess, labels=given)
    check_form(path)
    _check_no_files(str(path), preprocess)
    images = _ARCHIVES[path.suffix.lower()](path, expected=expected, limit=limit, preprocess=preprocess)
    if labels is False:
        return _unlabelled(images)
    return images if labels is None else _with_labels(images, labels, limit)


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
