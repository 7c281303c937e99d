"""`compare` on real networks: a layer that is broken on purpose is named first, wherever it lies."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from pdq_export import LayerReport, compare_models
from pdq_export.commands.settle import asked_preprocess, settle
from pdq_export.config.option import COMPARE
from pdq_export.data import load_images
from tests.quantized_files import quantize_by_onnxruntime, with_two_bits, with_wrong_scale

CALIBRATED, COMPARED = 8, 2  # images
BREAK: Mapping[str, Callable[[onnx.ModelProto, str], onnx.ModelProto]] = {
    "2 bits": with_two_bits,
    "wrong scale": lambda model, layer: with_wrong_scale(model, layer, 4),
}
READ: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "resnet20_cifar10": ("cifar10_calib.npz", {}),
    "efficientnet_lite0_imagenet": ("imagenet_calib", {}),
    "mobilenetv2_dogs": (
        "imagenet_calib",
        {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "resize": "160", "crop": "160"},
    ),
}


class Case:
    """A network and its file by onnxruntime's static quantization."""

    def __init__(self, name: str, models: Path, data: Path, folder: Path) -> None:
        self.model = models / f"{name}.onnx"
        source, fields = READ[name]
        read = asked_preprocess(settle(None, fields, command=COMPARE))
        (batch,) = load_images(data / source, preprocess=read).head(CALIBRATED).batches(CALIBRATED)
        assert isinstance(batch, np.ndarray)
        self.images: NDArray[Any] = batch
        self.file = quantize_by_onnxruntime(self.model, self.images, folder)

    def compared(self, file: onnx.ModelProto) -> LayerReport:
        return compare_models(self.model, file, data=self.images[:COMPARED])


@pytest.fixture(scope="module")
def case_of(shared_models: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return functools.cache(lambda name: Case(name, shared_models, shared_data, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        *(
            ("resnet20_cifar10", layer, kind)
            for layer in (
                "/layer1/layer1.0/conv1/Conv",  # early
                "/layer1/layer1.2/conv2/Conv",  # before an Add
                "/layer2/layer2.1/conv2/Conv",  # in the middle
                "/linear/Gemm",  # last
            )
            for kind in BREAK
        ),
        ("mobilenetv2_dogs", "/blocks/blocks.0/depthwise/conv/Conv", "2 bits"),
        ("mobilenetv2_dogs", "/blocks/blocks.8/project/conv/Conv", "wrong scale"),
        ("efficientnet_lite0_imagenet", "/_blocks.0/_depthwise_conv/Conv", "wrong scale"),
    ],
)
def test_a_broken_layer_is_named_first(case_of: Callable[[str], Case], name: str, layer: str, kind: str) -> None:
    case = case_of(name)
    worst = case.compared(BREAK[kind](case.file, layer)).tensors[0]
    assert worst.layers == (layer,)
