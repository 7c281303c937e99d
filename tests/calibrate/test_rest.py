"""Predictions in less than float32: only gradients of a block's outputs come from it."""

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pdq_export.calibrate import BlockProgress, precision, rest, step
from pdq_export.calibrate.precision import settled_torch, tf32_products
from pdq_export.calibrate.rest import check_precision, measured_in
from pdq_export.config.method import choose_options
from pdq_export.errors import CalibrationError, OptionError
from tests.calibrate.networks import calibrate_example, residual
from tests.calibrate.test_captured import LAUNCHED, launched
from tests.calibrate.test_precision import by_backend
from tests.calibrate.test_precision import precision as set_for

TF32 = dataclasses.replace(LAUNCHED, prediction_precision="tf32")
ROUNDED = dataclasses.replace(LAUNCHED, prediction_precision="bfloat16")


def square(x: Sequence[Tensor]) -> Tensor:
    """A number of a product, which is what is rounded, and of something beside it."""
    return (x[0] @ x[0].T + x[1]).float().square().mean()


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, beside = torch.randn(6, 40, generator=generator), torch.randn(6, 6, generator=generator)
    return [x.requires_grad_(True), beside]


def gradients(kind: str) -> tuple[Tensor, Tensor]:
    given = inputs()
    value = measured_in(kind, square, given)
    (gradient,) = torch.autograd.grad(3 * value, given[:1])
    return value.detach(), gradient


def test_gradients_at_once_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In full precision, times what is above; what needs none has none."""
    wanted = gradients("float32")
    monkeypatch.setattr(rest, "_bfloat16", lambda _: contextlib.nullcontext())
    for value, exact in zip(gradients("bfloat16"), wanted, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


def test_bfloat16_is_near() -> None:
    for value, exact in zip(gradients("bfloat16"), gradients("float32"), strict=True):
        assert value.dtype == torch.float32
        distance = float((value - exact).norm() / exact.norm())
        assert 0 < distance < 2.0**-6


class Rounded(TorchDispatchMode):
    """Notes which operators give numbers in bfloat16, within `measured_in` and outside of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.within: set[str] = set()
        self.outside: set[str] = set()
        self.is_within = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in tree_leaves(result)):
            (self.within if self.is_within else self.outside).add(func.overloadpacket.__name__)
        return result

    def measured_in(self, *arguments: Any) -> Tensor:
        self.is_within = True
        try:
            return measured_in(*arguments)
        finally:
            self.is_within = False


@pytest.mark.usefixtures("short_search")
def test_what_later_blocks_see_is_made_in_float32() -> None:
    """All numbers but those of the predictions while a block learns; a block without them is as it was."""
    example, rounded = residual(images=16), Rounded()
    with rounded, mock.patch.object(step, "measured_in", rounded.measured_in):
        found = calibrate_example(example, ROUNDED)
    assert {"convolution", "addmm", "convolution_backward"} <= rounded.within
    assert not rounded.outside
    exact = launched()
    assert found.tensors.keys() == exact.tensors.keys()
    scales = [name for name, tensor in found.tensors.items() if tensor.integers is None]
    assert any((found.tensors[name].scale != exact.tensors[name].scale).any() for name in scales)
    for name in scales:
        assert found.tensors[name].scale == pytest.approx(exact.tensors[name].scale, rel=0.05)


def test_tf32_is_of_gpus() -> None:
    with pytest.raises(OptionError, match="tf32 is a precision of NVIDIA's GPUs, and calibration runs on cpu"):
        check_precision("tf32", torch.device("cpu"))
    check_precision("tf32", torch.device("cuda"))
    check_precision("bfloat16", torch.device("cpu"))


def test_it_needs_predictions() -> None:
    with pytest.raises(OptionError, match="prediction_precision is given, but it has no effect"):
        choose_options(method="qdrop", overrides={"prediction_precision": "bfloat16"})
    with pytest.raises(OptionError, match="prediction_precision is 'half'; expected"):
        choose_options(overrides={"prediction_precision": "half"})


OWNERS = ("cudnn.conv", "cuda.matmul")


@by_backend
def test_tf32_holds_as_long_as_predictions_are_measured() -> None:
    with settled_torch():
        seen = []

        def look(x: Sequence[Tensor]) -> Tensor:
            seen.append([set_for(owner) for owner in OWNERS])
            return x[0].sum()

        x = torch.ones(2, requires_grad=True)
        torch.autograd.grad(measured_in("tf32", look, [x]), [x])
        seen.append([set_for(owner) for owner in OWNERS])
    assert seen == [["tf32", "tf32"], ["ieee", "ieee"]]


def test_tf32_by_the_flags_of_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags:
        allow_tf32 = False

    cudnn, matmul = Flags(), Flags()
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    with contextlib.ExitStack() as stack:
        precision._tf32_by_flag(stack)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)


def test_tf32_is_nobody_elses() -> None:
    """Torch keeps it for the whole process: beside another call it is refused, before anything is calibrated."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with settled_torch():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert entered.wait(20)
        with pytest.raises(CalibrationError, match="another thread of this process works with torch"):
            calibrate_example(residual(images=8), TF32, progress=pytest.fail)
        with pytest.raises(CalibrationError, match="another thread of this process works with torch"), tf32_products():
            pass
    finally:
        leave.set()
        thread.join()


@pytest.mark.usefixtures("short_search")
def test_what_begins_beside_tf32_is_refused() -> None:
    """At any step of a calibration, which goes on to its end; its own thread may do anything."""
    refused: list[str] = []

    def begin() -> None:
        try:
            with settled_torch():
                pass
        except CalibrationError as error:
            refused.append(str(error))

    def meanwhile(at: BlockProgress) -> None:
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        with settled_torch():
            told.append(at)

    told: list[BlockProgress] = []
    found = calibrate_example(residual(images=16), TF32, progress=meanwhile)
    assert found.tensors.keys() == launched().tensors.keys()
    assert len(refused) == len(told) > 0
    assert "another thread of this process calibrates with prediction_precision tf32" in refused[0]
    begin()
    assert len(refused) == len(told)
