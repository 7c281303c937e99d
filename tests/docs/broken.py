"""What the page of errors shows errors of: models and data that are refused, by the name that the page calls them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

_SAMPLING = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,16,16] image) => (float[N,4] scores) {
    [conv] c = Conv(image, k)
    [sampling] z = Bernoulli(c)
    p = GlobalAveragePool(z)
    f = Flatten(p)
    [head] scores = MatMul(f, w)
}"""


def _pixels(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16), dtype=np.float32)


def _sampling(path: Path) -> None:
    model = onnx.parser.parse_model(_SAMPLING)
    for name, shape in {"k": (4, 3, 3, 3), "w": (4, 4)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, path)


def _photos(path: Path) -> None:
    path.mkdir()
    for number, grey in enumerate((30, 100, 170, 240)):
        Image.new("RGB", (24, 20), (grey, 255 - grey, 128)).save(path / f"{number}.png")


def _classes(path: Path) -> None:
    for name in ("1", "2", "3", "10"):
        (path / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (10 * int(name), 0, 0)).save(path / name / "image.png")


def _nan(path: Path) -> None:
    images = _pixels(8)
    images[3, 0, 0, 0] = np.nan
    np.savez(path, images=images)


BROKEN: Mapping[str, Callable[[Path], None]] = {
    "sampling.onnx": _sampling,
    "photos": _photos,
    "classes": _classes,
    "nan.npz": _nan,
    "float.npz": lambda path: np.savez(path, images=_pixels(8)),
    "nhwc.npz": lambda path: np.savez(path, images=_pixels(8).transpose(0, 2, 3, 1)),
    "unlabelled.npz": lambda path: np.savez(path, images=_pixels(8)),
}
