"""Small valid sets of images in every form, and what goes wrong with them."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.models import mutated_bytes

Generator = np.random.Generator


class Harmful:
    """Unpickling it would leave a file behind; the worker looks for it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("harm-was-done", "w")


def _pick(generator: Generator, items: list) -> object:
    return items[int(generator.integers(len(items)))]


def _images(generator: Generator, dtype: type = np.float32) -> np.ndarray:
    pixels = generator.integers(0, 256, (3, 3, 8, 8))
    return pixels.astype(dtype)


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _header(text: str, data: bytes = b"") -> bytes:
    """An .npy with whatever header."""
    header = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) & 0xFFFF) + header + data


def _absurd_npy(generator: Generator) -> bytes:
    shape = _pick(
        generator,
        [
            "(3,3,8,8)",
            "(10**9,3,8,8)",
            "(1000000000,3,8,8)",
            "(-1,3,8,8)",
            "(2**62,2**62,1,1)",
            "(True,3,8,8)",
            "(3.0,3,8,8)",
            "()",
            "(3,)",
            "(0,3,8,8)",
            "(99999999999999999999,3,8,8)",
            "[3,3,8,8]",
            "('a',)",
            "((((((3,),),),),),)",
            "(3,3,8,8" + ",1" * 5000 + ")",
        ],
    )
    kind = _pick(
        generator,
        [
            "'<f4'",
            "'<f8'",
            "'|O'",
            "'<M8[s]'",
            "'|u1'",
            "'>f4'",
            "'<U8'",
            "'<c16'",
            "'|V8'",
            "'|S0'",
            "[('a','<f4')]",
            "'<f2'",
            "'nonsense'",
            "3",
            "'<f4', 'descr': '|O'",
        ],
    )
    order = _pick(generator, ["False", "True", "None", "1"])
    end = _pick(generator, ["}", "", "} ; import os", "}" + " " * 60000, "\0}"])
    return _header(f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, {end}\n", bytes(2304))


def _array(generator: Generator) -> np.ndarray:
    images = _images(generator)
    match int(generator.integers(9)):
        case 0:
            images[0, 0, 0, 0] = _pick(generator, [np.nan, np.inf, -np.inf])
        case 1:
            return images.astype(_pick(generator, [np.float64, np.int32, np.bool_, np.float16, np.complex64, "<U4"]))
        case 2:
            return np.array([Harmful(), None, 3], dtype=object)
        case 3:
            return images.reshape(_pick(generator, [(3, 192), (3, 3, 64), (9, 8, 8), (3, 8, 8, 3), (3, 3, 8, 8, 1)]))
        case 4:
            return images[:0]
        case 5:
            return np.asfortranarray(images)
        case 6:
            return images.astype(">f4")
        case 7:
            return images.astype(np.uint8)
    return images


def npy(folder: Path, generator: Generator) -> Path:
    path = folder / "images.npy"
    data = _absurd_npy(generator) if generator.random() < 0.4 else _npy(_array(generator))
    path.write_bytes(mutated_bytes(data, generator) if generator.random() < 0.4 else data)
    return path


def npz(folder: Path, generator: Generator) -> Path:
    """Archives with foreign, missing, repeated and compressed members, and lengths that lie."""
    path = folder / "images.npz"
    members = {
        "images.npy": _npy(_images(generator, np.uint8)),
        "mean.npy": _npy(np.full(3, 0.5, np.float32)),
        "std.npy": _npy(np.ones(3, np.float32)),
        "labels.npy": _npy(np.arange(3)),
    }
    name = str(_pick(generator, list(members)))
    match int(generator.integers(7)):
        case 0:
            del members[name]
        case 1:
            members[name] = _absurd_npy(generator)
        case 2:
            members[name] = _npy(_array(generator))
        case 3:
            members[name] = pickle.dumps(Harmful())
        case 4:
            members[name] = _header(
                "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000,3,8,8), }\n", bytes(10**7)
            )
        case 5:
            members["../../x.npy"], members["/etc/passwd"] = b"x", b"x"
        case _:
            value = _pick(generator, [np.nan, np.inf, -1.0, 0.0, 1e30])
            members[name] = _npy(np.full(3, value, np.float32))
    with zipfile.ZipFile(
        path, "w", zipfile.ZIP_DEFLATED if generator.random() < 0.7 else zipfile.ZIP_STORED
    ) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    if generator.random() < 0.4:
        path.write_bytes(mutated_bytes(path.read_bytes(), generator))
    return path


def _png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def _picture(generator: Generator) -> bytes:
    out = io.BytesIO()
    kind = str(_pick(generator, ["PNG", "JPEG", "BMP", "WEBP"]))
    Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, kind)
    match int(generator.integers(5)):
        case 0:
            return mutated_bytes(out.getvalue(), generator)
        case 1:
            return _png(*(int(_pick(generator, [0, 1, 8, 65535, 2**31 - 1, 2**32 - 1])) for _ in range(2)))
        case 2:
            return bytes(generator.bytes(50))
    return out.getvalue()


TOML = [
    "mean = [0.5, 0.5, 0.5]\nstd = [1.0, 1.0, 1.0]",
    "resize = 8\ncrop = 8",
    "resize = [8, 8]",
    "crop = 99999",
    "resize = 16384",
    "resize = -1",
    "mean = [nan, 0, 0]\nstd = [inf, 1, 1]",
    "mean = [1]\nstd = [0]",
    "std = 3",
    "[[x]]",
    "mean = 'x'",
    "resize = [1, 2, 3]",
    "resize = true",
    "resize = 1e300",
    "a" * 10000,
    "x = " + "[" * 3000 + "]" * 3000,
    "resize = 99999999999999999999999",
    "mean = [1e400, 1, 1]\nstd = [1, 1, 1]",
    "\0",
    "",
]
CSV = [
    "file,label\n0.png,1\n1.png,2\n",
    "file,label\n0.png\n",
    "label\n1\n",
    "file,label\n../../x,1\n",
    "file,label\n0.png,-1\n",
    "file,label\n0.png,99999999999999999999\n",
    "file,label\n0.png,1.5\n",
    "",
    "\0",
    "file,label\n" + "0.png,1\n" * 5000,
    'file,label\n"0.png',
    "file,label\n" + "x" * 200000 + ",1\n",
    "file;label\n0.png;1\n",
    "file,label\n/etc/passwd,0\n",
]


def folder(where: Path, generator: Generator) -> Path:
    path = where / "images"
    path.mkdir()
    for number in range(2):
        (path / f"{number}.png").write_bytes(_picture(generator))
    for name, texts in (("preprocess.toml", TOML), ("labels.csv", CSV)):
        if generator.random() < 0.5:
            text = str(_pick(generator, texts)).encode()
            (path / name).write_bytes(mutated_bytes(text, generator) if generator.random() < 0.4 else text)
    match int(generator.integers(8)):
        case 0:
            (path / "loop.png").symlink_to(path / "loop.png")
        case 1:
            (path / "zero.png").symlink_to("/dev/zero")
        case 2:
            (path / "folder.png").mkdir()
        case 3:
            (path / "\udcff.png").write_bytes(b"x")
    return path


def write_case(seed: int, where: Path) -> tuple[Path, str]:
    """The images of a seed, and their form."""
    generator = np.random.default_rng([2, seed])
    form = (npy, npz, folder)[int(generator.integers(3))]
    return form(where, generator), form.__name__
