"""Resize over its modes, against onnxruntime, by torch's own kernels and by ours."""

from typing import Any

import numpy as np
import pytest
import torch

from pdq_export.frontend.ops import resize as module
from pdq_export.frontend.ops.resize import resize

from .models import Array, assert_agree, feeds, one_node

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
EMPTY = np.zeros(0, np.float32)


def data(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def check(inputs: list[Array | None], opset: int, constants: tuple[int, ...] = (), **attributes: Any) -> None:
    if opset == 11 and inputs[1] is None:
        inputs[1] = EMPTY  # roi was not optional
    model = one_node("Resize", inputs, opset, attributes, constants=constants)
    assert_agree(model, feeds(model, inputs))


@pytest.mark.parametrize("scales", [(2, 2), (3, 1), (1.5, 0.5), (0.4, 2.6)])
@pytest.mark.parametrize("rounding", ROUNDING)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest(coordinates: str, rounding: str, scales: tuple[float, float]) -> None:
    inputs = [data(2, 3, 7, 5), None, floats(1, 1, *scales)]
    for opset in (11, 13, 18, 19):
        check(list(inputs), opset, mode="nearest", coordinate_transformation_mode=coordinates, nearest_mode=rounding)


@pytest.mark.parametrize("sizes", [(14, 10), (3, 9), (1, 1), (7, 11)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_sizes(coordinates: str, mode: str, sizes: tuple[int, int]) -> None:
    x, wanted = data(2, 3, 7, 5), np.array([2, 3, *sizes], np.int64)
    for opset, constants in ((11, (3,)), (13, ()), (19, (3,))):
        absent = EMPTY if opset == 11 else None
        check([x, None, absent, wanted], opset, constants, mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("scales", [(2, 2), (1.5, 0.5), (0.4, 2.6)])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_linear_and_cubic(coordinates: str, scales: tuple[float, float]) -> None:
    inputs = [data(2, 3, 7, 5), None, floats(1, 1, *scales)]
    check(list(inputs), 11, mode="linear", coordinate_transformation_mode=coordinates)
    for a, outside in ((-0.75, 0), (-0.5, 0), (-0.75, 1)):
        options = {"cubic_coeff_a": a, "exclude_outside": outside}
        check(list(inputs), 13, mode="cubic", coordinate_transformation_mode=coordinates, **options)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 4, 5, 6)])
def test_one_and_three_spatial_axes(mode: str, shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    for scale in (2.0, 1.5, 0.5):
        check([data(*shape), None, floats(1, 1, *[scale] * rank)], 13, mode=mode)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(0.5, 0.6), (2, 0.3), (1.5, 3)])
def test_antialias(mode: str, scales: tuple[float, float]) -> None:
    for outside in (0, 1):
        inputs = [data(1, 2, 9, 8), None, floats(1, 1, *scales)]
        check(inputs, 18, mode=mode, antialias=1, exclude_outside=outside)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "half_pixel_symmetric"])
def test_axes_and_aspect_ratio(policy: str, coordinates: str) -> None:
    x, sizes = data(1, 2, 7, 5), np.array([10, 12], np.int64)
    options = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "coordinate_transformation_mode": coordinates}
    for mode in ("nearest", "linear", "cubic"):
        check([x, None, None, sizes], 19, (3,), mode=mode, **options)


def test_half_pixel_symmetric_by_scales() -> None:
    for mode in ("nearest", "linear", "cubic"):
        inputs = [data(1, 2, 7, 5), None, floats(1, 1, 1.3, 0.75)]
        check(inputs, 19, mode=mode, coordinate_transformation_mode="half_pixel_symmetric")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_crop(mode: str) -> None:
    """Both spatial axes change their size; onnxruntime does not crop an axis that keeps it."""
    roi = floats(0, 0, 0.1, 0.2, 1, 1, 0.7, 1.3)
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
    for sizes in ((4, 9), (11, 3)):
        wanted = np.array([1, 2, *sizes], np.int64)
        check([data(1, 2, 7, 6), roi, None, wanted], 13, (3,), mode=mode, **options)


def test_crop_keeps_to_the_definition_where_the_size_stays() -> None:
    x = torch.arange(5.0).reshape(1, 1, 5)
    roi = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    method = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    y = resize(x, roi, [1.0, 1.0, 1.0], **method)
    torch.testing.assert_close(y.flatten(), torch.linspace(2, 4, 5))


def test_half_pixel_for_nearest_neighbour() -> None:
    for scale in (2.0, 0.5, 1.6):
        inputs = [data(1, 2, 6, 5), EMPTY, floats(1, 1, scale, scale)]
        check(inputs, 11, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="tf_half_pixel_for_nn")


@pytest.mark.parametrize(
    "method",
    [
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "nearest"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "cubic"},
    ],
)
def test_usual_cases_take_the_fast_path_and_agree_with_ours(
    method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.from_numpy(data(2, 3, 6, 5))
    calls = []
    general = module.interpolate_axis
    monkeypatch.setattr(module, "interpolate_axis", lambda *args: calls.append(args) or general(*args))
    fast = resize(x, None, [1.0, 1.0, 2.0, 3.0], **method)
    assert not calls
    monkeypatch.setattr(module, "_by_torch", lambda *args: None)
    ours = resize(x, None, [1.0, 1.0, 2.0, 3.0], **method)
    assert calls
    torch.testing.assert_close(fast, ours, rtol=1e-5, atol=1e-5)


def test_nothing_to_do() -> None:
    x = torch.ones(1, 2, 3, 3)
    assert resize(x, None, [1.0] * 4) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_other_types(dtype: torch.dtype) -> None:
    x = (torch.rand(1, 1, 4, 4) * 100).to(dtype)
    for mode in ("nearest", "linear", "cubic"):
        for coordinates in ("half_pixel", "asymmetric"):
            y = resize(x, None, [1.0, 1.0, 1.5, 2.0], mode=mode, coordinate_transformation_mode=coordinates)
            assert y.dtype == dtype
            assert y.shape == (1, 1, 6, 8)
