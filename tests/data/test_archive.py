"""`.npz` and `.npy`: what they may hold, and files that are damaged or mean harm."""

import contextlib
import io
import logging
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdq_export.data import InputSpec, load_images
from pdq_export.errors import DataError

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((6, 3, 4, 5)).astype(np.float32)
BYTES = RNG.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
STATISTICS = {"mean": np.float32([0.5, 0.4, 0.3]), "std": np.float32([0.2, 0.3, 0.25])}
SPEC = InputSpec(name="x", shape=(None, 3, 4, 5))
# The examples of one test write over each other's file, which harms none of them.
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def npz(folder: Path, compressed: bool = True, **arrays: Any) -> Path:
    path = folder / "images.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def npy_bytes(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def header_bytes(shape: str, descr: str = "'<f4'") -> bytes:
    """An .npy header that declares what it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zip_of(folder: Path, **members: bytes) -> Path:
    path = folder / "images.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("limit", [None, 4, 6])
def test_npz_of_bytes(tmp_path: Path, compressed: bool, limit: int | None) -> None:
    labels = np.arange(6, dtype=np.uint8)
    path = npz(tmp_path, compressed, images=BYTES, labels=labels, **STATISTICS)
    images = load_images(path, expected=SPEC, limit=limit)
    count = limit or 6
    assert np.array_equal(images.pixels, BYTES[:count])
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == list(range(count))
    assert images.source == str(path)


def test_npz_of_floats_and_npy(tmp_path: Path) -> None:
    assert np.array_equal(load_images(npz(tmp_path, images=FLOATS), expected=SPEC).array(), FLOATS)
    np.save(tmp_path / "a.npy", FLOATS)
    images = load_images(tmp_path / "a.npy", expected=SPEC, limit=4)
    assert np.array_equal(images.array(), FLOATS[:4])
    assert images.labels is None


def test_images_may_have_the_name_of_the_input(tmp_path: Path) -> None:
    images = load_images(npz(tmp_path, x=BYTES, labels=np.arange(6), **STATISTICS), expected=SPEC, limit=4)
    assert np.array_equal(images.pixels, BYTES[:4])
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"an array named 'images' \("):
        load_images(npz(tmp_path, y=BYTES), expected=InputSpec(name="images", shape=(None, 3, 4, 5)))


@settings(max_examples=30, suppress_health_check=SUPPRESSED)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    limit=st.none() | st.integers(1, 6),
    order=st.sampled_from("CF"),
    endian=st.sampled_from("<>"),
    suffix=st.sampled_from(["npz", "npy"]),
)
def test_any_layout_reads_the_same(
    tmp_path: Path, shape: tuple[int, ...], limit: int | None, order: Any, endian: str, suffix: str
) -> None:
    images = np.arange(np.prod(shape), dtype=f"{endian}f4").reshape(shape) / 100
    stored = np.asarray(images.astype(f"{endian}f4"), order=order)
    path = tmp_path / f"images.{suffix}"
    np.save(path, stored) if suffix == "npy" else np.savez(path, images=stored)
    read = load_images(path, limit=limit).pixels
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    assert np.array_equal(read, images[:limit].astype(np.float32))


@settings(max_examples=60, suppress_health_check=SUPPRESSED)
@given(shape=st.lists(st.integers(0, 5), max_size=6).map(tuple))
def test_any_shape_either_loads_or_is_an_error_of_ours(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = npz(tmp_path, images=np.zeros(shape, np.float32))
    if shape[1:] == (3, 4, 5) and shape[0]:
        assert len(load_images(path, expected=SPEC)) == shape[0]
    else:
        with pytest.raises(DataError, match=r"images\.npz: images "):
            load_images(path, expected=SPEC)


@settings(max_examples=100, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_damage_is_an_error_of_ours_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = npz(tmp_path, images=BYTES[:2], **STATISTICS)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(DataError):
        load_images(path, expected=SPEC)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": FLOATS}, r"holds pictures; expected an array named 'images' or 'x' \(N x C"),
        ({"images": FLOATS, "x": FLOATS}, r"holds images, x; expected an array named 'images' or 'x' .*, not both"),
        ({}, r"holds nothing; expected an array named 'images' or 'x'"),
        ({"images": BYTES, "mean": STATISTICS["mean"]}, r"uint8 images without std"),
        ({"images": BYTES, **STATISTICS, "labels": np.arange(4)}, r"labels of shape 4 for 6 images"),
        (
            {"images": BYTES, **STATISTICS, "labels": np.arange(99)},
            r"\[labels\]: shape 99; expected at most 6 values, the class of each image",
        ),
        ({"images": BYTES, "mean": np.zeros(1000), "std": np.ones(3)}, r"\[mean\]: shape 1000; expected at most"),
        ({"images": FLOATS[:, :, :2]}, r"images are 3 x 2 x 5 .* \(\? x 3 x 4 x 5, float32\)"),
        ({"images": np.array([FLOATS, None], dtype=object)}, r"\[images\]: an array of Python objects"),
        ({"images": np.zeros(3, dtype=[("a", "f4")])}, r"shape 3; expected 4 axes"),
        ({"images": np.zeros((1, 3, 4, 5), dtype="U3")}, r"images are <U3; expected float32"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = npz(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as error:
        load_images(path, expected=SPEC)
    assert str(error.value).startswith(str(path))


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", b"")
    with pytest.raises(DataError, match="holds nothing; expected an array named 'images'"):
        load_images(tmp_path / "a.npz")


def test_npy_of_bytes_has_no_place_for_mean_and_std(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BYTES)
    with pytest.raises(DataError, match="no place for mean and std"):
        load_images(tmp_path / "a.npy")


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        load_images(tmp_path / "a.npy")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    with pytest.raises(DataError, match="not a readable NumPy file"):
        load_images(tmp_path / "b.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shape", ["(1000000, 3, 10000, 10000)", f"({10**30}, 3, 4, 5)"])
@pytest.mark.parametrize("limit", [None, 10**6])
def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path: Path, shape: str, limit: int | None) -> None:
    (tmp_path / "a.npy").write_bytes(header_bytes(shape))
    with pytest.raises(DataError, match=r"GiB; expected at most|cut off"):
        load_images(tmp_path / "a.npy", limit=limit)
    with pytest.raises(DataError, match=r"bytes for .* expected .* write it again"):
        load_images(zip_of(tmp_path, images=header_bytes(shape) + bytes(1000)), limit=limit)


def test_a_bomb_of_zeros_is_read_only_as_far_as_asked(tmp_path: Path) -> None:
    content = header_bytes("(200, 3, 256, 256)") + bytes(200 * 3 * 256 * 256 * 4)
    path = zip_of(tmp_path, images=content)
    assert path.stat().st_size < 10**6
    images = load_images(path, limit=2)
    assert images.pixels.base is None or images.pixels.base.nbytes == 2 * 3 * 256 * 256 * 4


def test_damage_behind_what_is_read_is_found(tmp_path: Path) -> None:
    path = npz(tmp_path, images=np.random.default_rng(0).random((64, 3, 40, 50), np.float32))
    content = bytearray(path.read_bytes())
    content[-100_000:-90_000] = bytes(10_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable NumPy file .*CRC"):
        load_images(path, limit=2)


@pytest.mark.parametrize("shape", ["(-1, 3, 4, 5)", "(True, 3, 4, 5)", "('a',)", "7"])
def test_shapes_that_are_none(tmp_path: Path, shape: str) -> None:
    (tmp_path / "a.npy").write_bytes(header_bytes(shape) + bytes(1000))
    with pytest.raises(DataError):
        load_images(tmp_path / "a.npy", expected=SPEC)


def test_truncated_npy(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(FLOATS)[:-10])
    with pytest.raises(DataError, match=r"cut off: 1,430 of 1,440 bytes"):
        load_images(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x09\x00"])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_not_numpy_at_all(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.np[zy]: "):
        load_images(path)


@pytest.mark.parametrize("name", ["missing.npz", "missing"])
def test_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"no such file or folder; expected images as \.npz, \.npy or a folder"):
        load_images(tmp_path / name)


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"suffix '\.txt' is not known; expected images as"):
        load_images(tmp_path / "a.txt")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path, images=FLOATS)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_images(path)


@pytest.mark.parametrize("limit", [0, -3])
def test_limits_below_one(tmp_path: Path, limit: int) -> None:
    with pytest.raises(DataError, match=f"{limit} images asked for; expected at least 1"):
        load_images(npz(tmp_path, images=FLOATS), limit=limit)


def test_fewer_images_than_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(load_images(npz(tmp_path, images=FLOATS), limit=1024)) == 6
    assert "6 images, fewer than the 1024 of the preset or the options: all are taken" in caplog.text


def test_cifar(shared_data: Path) -> None:
    images = load_images(shared_data / "cifar10_calib.npz", expected=InputSpec(name="x", shape=(None, 3, 32, 32)))
    assert (len(images), images.image_shape) == (2048, (3, 32, 32))
    assert abs(images.array(256).mean()) < 0.3


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'shape': (3,", "{'descr': " + "(" * 500, "{'descr': 3}", ""])
def test_headers_that_are_no_python_literals(tmp_path: Path, header: str) -> None:
    path = tmp_path / "images.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(DataError, match="not a readable NumPy file"):
        load_images(path)
