"""A model and a few images, so that a benchmark takes seconds."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ..onnx_text import fill, name_nodes, parse

DATA = Path(__file__).resolve().parents[2] / "calib_data"


@pytest.fixture
def model() -> Path:
    """The embedded network."""
    return DATA / "fashion_resnet.onnx"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a few small layers."""
    body = """a = Conv <pads = [1, 1, 1, 1]> (image, u) b = Relu(a) c = Conv <pads = [1, 1, 1, 1]> (b, v) d = Relu(c)
        e = Conv <pads = [1, 1, 1, 1]> (d, v) f = Add(e, b) g = Relu(f) p = GlobalAveragePool(g) q = Flatten(p)
        y = Gemm <transB = 1> (q, w)"""
    path = tmp_path_factory.mktemp("small") / "m.onnx"
    onnx.save(name_nodes(fill(parse(body), {"u": (8, 3, 3, 3), "v": (8, 8, 3, 3), "w": (5, 8)})), path)
    return path


@pytest.fixture(scope="session")
def small_images(small: Path) -> tuple[Path, Path]:
    """As `images`, of noise, with the small network's classes."""
    paths = small.with_name("calib.npz"), small.with_name("eval.npz")
    for seed, (path, count) in enumerate(zip(paths, (8, 20), strict=True)):
        noise = np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)
        (scores,) = onnxruntime.InferenceSession(small).run(None, {"image": noise})
        np.savez(path, images=noise, labels=scores.argmax(axis=1))
    return paths


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Eight calibration images and twenty evaluation images, labelled."""
    return _head("calib.npz", 8, tmp_path), _head("eval.npz", 20, tmp_path)


def _head(name: str, count: int, folder: Path) -> Path:
    with np.load(DATA / name) as data:
        arrays = {key: data[key][:count] if key in ("images", "labels") else data[key] for key in data}
    np.savez(folder / name, **arrays)
    return folder / name
