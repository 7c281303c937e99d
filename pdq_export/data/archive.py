"""Images from .npz and .npy files.

Headers are read first and checked before memory is taken, and only the images asked for are kept: an archive of a few
kilobytes may declare terabytes. Pickled objects are never loaded.
"""

import dataclasses
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pdq_export.data.checks import MAX_BYTES, check_bytes, check_labels, check_shape
from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet, check_names
from pdq_export.data.input_spec import InputSpec, format_shape
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import DataError

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,  # RecursionError among them
    OverflowError,
    SyntaxError,
    tokenize.TokenError,  # headers are Python literals
    TypeError,
    struct.error,
)
_BLOCK = 2**24
LONGEST_LABELS = 2**24


def load_npz(
    path: Path, *, expected: InputSpec | None, limit: int | None, preprocess: Preprocess | None = None
) -> ImageSet:
    """Images from ``images`` or the array of the input's name.

    ``mean``, ``std`` and ``labels`` are read if the archive has them; those of ``preprocess`` win.
    """
    where = str(path)
    with _damage_is_an_error(where), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        known = dict.fromkeys(["images"] if expected is None else ["images", expected.name])
        present = [name for name in known if name in names]
        if len(present) != 1:
            found, wanted = ", ".join(sorted(names)[:8]) or "nothing", " or ".join(map(repr, known))
            both = ", not both" if present else ""
            raise DataError(f"{where}: holds {found}; expected an array named {wanted} (N x C x H x W){both}")
        (name,) = present
        images, count = _read_images(archive, where, name, expected, limit)
        mean, std = (_read_small(archive, where, name, 64) if name in names else None for name in ("mean", "std"))
        labels = _read_small(archive, where, "labels", count) if "labels" in names else None
    if labels is not None:
        labels = check_labels(where, labels, count)[: len(images)]
    given = preprocess or Preprocess()
    statistics = given.of_array(images.dtype, images.shape, expected, where, mean=mean, std=std)
    return ImageSet.from_array(
        images, labels=labels, source=where, expected=expected, layout=given.layout, **statistics
    )


def load_npz_inputs(path: Path, *, expected: Sequence[InputSpec], limit: int | None) -> InputSet:
    """One array for each input, under the input's name, and ``labels`` if the archive has them."""
    where = str(path)
    labels = None
    with _damage_is_an_error(where), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        check_names(where, names, expected)
        arrays, lengths = {}, {}
        for spec in expected:
            with _open_member(archive, where, spec.name) as (file, header):
                check_bytes(f"{where}[{spec.name}]", header.shape, header.dtype.itemsize)
                arrays[spec.name] = _read_head(file, where, header, limit)
                lengths[spec.name] = header.shape[0] if header.shape else 0
        if "labels" in names - arrays.keys():
            labels = _read_small(archive, where, "labels", LONGEST_LABELS)
    return InputSet.from_arrays(arrays, labels=labels, source=where, expected=expected, limit=limit, lengths=lengths)


def load_npy(
    path: Path, *, expected: InputSpec | None, limit: int | None, preprocess: Preprocess | None = None
) -> ImageSet:
    """Images from one array: float32, or uint8 with the mean and std of ``preprocess``."""
    where = str(path)
    with _damage_is_an_error(where), path.open("rb") as file:
        header = _read_header(file, where)
        statistics = (preprocess or Preprocess()).of_array(header.dtype, header.shape, expected, where)
        if header.dtype == np.uint8 and not statistics:
            raise DataError(
                f"{where}: images are uint8, and an .npy has no place for mean and std; give --mean and --std, or "
                "store float32 images, or an .npz with arrays images, mean and std"
            )
        declared, available = header.nbytes, path.stat().st_size - file.tell()
        _check_images(where, header, expected, limit)
        if declared > available:
            raise DataError(f"{where}: cut off: {available:,} of {declared:,} bytes; write or copy it again")
        images = _read_head(file, where, header, limit)
    layout = None if preprocess is None else preprocess.layout
    return ImageSet.from_array(images, source=where, expected=expected, layout=layout, **statistics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Header:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def _damage_is_an_error(where: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{where}: not a readable NumPy file ({detail}); write it again with np.save or np.savez"
        ) from (error)


def _read_header(file: IO[bytes], where: str) -> _Header:
    match npy.read_magic(file):
        case (1, 0):
            shape, fortran_order, dtype = npy.read_array_header_1_0(file)
        case (2, 0):
            shape, fortran_order, dtype = npy.read_array_header_2_0(file)
        case version:
            raise DataError(f"{where}: .npy format {version}; expected 1.0 or 2.0: plain numbers without field names")
    if dtype.hasobject:
        raise DataError(f"{where}: an array of Python objects; expected numbers: it is not loaded, for it can run code")
    if any(type(size) is not int or size < 0 for size in shape):
        raise DataError(f"{where}: declares shape {shape}; expected whole numbers from 0")
    return _Header(shape=shape, fortran_order=fortran_order, dtype=dtype)


@contextmanager
def _open_member(archive: zipfile.ZipFile, where: str, name: str) -> Iterator[tuple[IO[bytes], _Header]]:
    """Open an array of the archive behind its header, whose size must be what the archive declares.

    What was not read is read at the end, as far as it can be meant: only then does the archive compare checksums.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        header = _read_header(file, f"{where}[{name}]")
        available = info.file_size - file.tell()
        if header.nbytes != available:
            shape = format_shape(header.shape)
            raise DataError(
                f"{where}[{name}]: {available:,} bytes for {shape} values of {header.dtype}; "
                f"expected {header.nbytes:,}: write it again with np.savez"
            )
        yield file, header
        while info.file_size <= MAX_BYTES and file.read(_BLOCK):
            pass


def _read_images(
    archive: zipfile.ZipFile, where: str, name: str, expected: InputSpec | None, limit: int | None
) -> tuple[NDArray[Any], int]:
    """The first images, and how many the archive holds."""
    with _open_member(archive, where, name) as (file, header):
        _check_images(where, header, expected, limit)
        return _read_head(file, where, header, limit), header.shape[0]


def _read_small(archive: zipfile.ZipFile, where: str, name: str, limit: int) -> NDArray[Any]:
    """Read labels, mean or std, which cannot be meant to be much longer than ``limit``."""
    with _open_member(archive, where, name) as (file, header):
        if math.prod(header.shape) > limit:
            found, meant = format_shape(header.shape), ", the class of each image" * (name == "labels")
            raise DataError(f"{where}[{name}]: shape {found}; expected at most {limit} values{meant}")
        return _read_head(file, where, header, None)


def _check_images(where: str, header: _Header, expected: InputSpec | None, limit: int | None) -> None:
    check_shape(where, header.shape, expected)
    # A column-major array has to be read as a whole to get at its first images.
    count = header.shape[0] if limit is None or header.fortran_order else min(limit, header.shape[0])
    check_bytes(where, (count, *header.shape[1:]), header.dtype.itemsize)


def _read_head(file: IO[bytes], where: str, header: _Header, limit: int | None) -> NDArray[Any]:
    shape = header.shape
    if limit is not None and shape and not header.fortran_order:
        shape = (min(limit, shape[0]), *shape[1:])
    array = np.empty(math.prod(shape), dtype=header.dtype)
    view = array.view(np.uint8)
    done = 0
    while done < len(view):
        block = file.read(min(_BLOCK, len(view) - done))
        if not block:
            raise DataError(f"{where}: cut off after {done:,} of {len(view):,} bytes; write or copy it again")
        view[done : done + len(block)] = np.frombuffer(block, dtype=np.uint8)
        done += len(block)
    array = array.reshape(shape, order="F" if header.fortran_order else "C")
    if header.fortran_order:
        array = np.ascontiguousarray(array[:limit] if shape else array)
    return array.astype(header.dtype.newbyteorder("="), copy=False)
