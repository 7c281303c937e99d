"""What torch is told of the device: which GPU is the current one, which kernels are taken, and that all is put back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pdq_export.calibrate.device import computing_on
from pdq_export.calibrate.integer import IntegerLayer
from pdq_export.calibrate.quantizers import ActivationQuantizer, WeightQuantizer
from pdq_export.errors import CalibrationError, OptionError
from pdq_export.numerics.search import QParams, choose_activation_qparams
from pdq_export.process import tune_process
from pdq_export.spec import Point, Role
from tests.second_device import DEVICE, second_device

CUDA = torch.device("cuda:1")


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The GPUs that were made the current one."""
    entered: list[Any] = []

    @contextlib.contextmanager
    def enter(device: Any) -> Iterator[None]:
        entered.append(device)
        yield
        entered.append(None)

    monkeypatch.setattr(torch.cuda, "device", enter)
    return entered


def flags() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    filling = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, filling


def test_the_gpu_is_the_current_one(current: list[Any]) -> None:
    with computing_on(CUDA):
        assert current == [CUDA]
    assert current == [CUDA, None]
    with computing_on(torch.device("cpu"), deterministic=True):
        assert len(current) == 2
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("current")
def test_deterministic_kernels_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(OptionError, match="CUBLAS_WORKSPACE_CONFIG is None; expected :4096:8"):
        computing_on(CUDA, deterministic=True).__enter__()
    tune_process(deterministic=True)  # the remedy
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    with computing_on(CUDA, deterministic=True):
        assert flags() == (True, True, False, False)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert flags() == before


@pytest.mark.usefixtures("current")
def test_an_operator_without_a_deterministic_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    told = "max_unpool_backward does not have a deterministic implementation, but you set something. You can"
    with (
        pytest.raises(CalibrationError, match=r"max_unpool.*without --deterministic, or with --device cpu"),
        computing_on(CUDA, deterministic=True),
    ):
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another"), computing_on(CUDA, deterministic=True):
        raise RuntimeError("another")
    assert not torch.are_deterministic_algorithms_enabled()


def test_histograms_are_counted_where_algorithms_have_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU histc raises then."""
    histc, seen = torch.histc, []

    def watched(x: torch.Tensor, **keywords: Any) -> torch.Tensor:
        seen.append(x.device.type)
        return histc(x, **keywords)

    monkeypatch.setattr(torch, "histc", watched)
    x = torch.randn(100)
    expected = choose_activation_qparams(x, 4)
    with second_device():
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            try:
                found = choose_activation_qparams(x.to(DEVICE), 4)
            finally:
                torch.use_deterministic_algorithms(False)
            assert torch.equal(found.scale.cpu(), expected.scale)
    assert seen == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize("device", [torch.device("cpu"), DEVICE], ids=["cpu", "another"])
def test_sums_of_integers_keep_from_cudnn(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's and Fourier's ways round; a CPU has none of them."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    seen = []

    def convolve(*arguments: Any) -> torch.Tensor:
        seen.append(torch.backends.cudnn.enabled)
        return F.conv2d(*arguments)

    with second_device():
        one = torch.ones((), device=device)
        source = ActivationQuantizer(
            Point(tensor="x", role=Role.ACTIVATION, bits=8), QParams(scale=one, zero_point=one * 0)
        )
        point = Point(tensor="w", role=Role.WEIGHT, bits=8, axis=0, symmetric=True)
        q = torch.ones(2, 3, 3, 3, device=device)
        weight = WeightQuantizer(point, q, QParams(scale=torch.ones(2, device=device), zero_point=q[:, 0, 0, 0] * 0))
        layer = IntegerLayer(convolve, source, weight, None, None, channels_last=False)
        y = layer(torch.full((1, 3, 4, 4), 5.0, device=device))
        assert (y.cpu() == 135).all()
    assert seen == [device.type == "cpu"]
    assert torch.backends.cudnn.enabled
