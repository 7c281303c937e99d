"""What the calling process has set about torch neither changes a result nor is changed by it."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pdq_export.calibrate.precision import _set_by_flag as precision_of_versions_before_2_9
from pdq_export.calibrate.precision import exact_sums, full_float32, same_bits, settled_torch, tf32_products
from pdq_export.commands.quantize import quantize
from pdq_export.errors import CalibrationError
from pdq_export.frontend.ops import interpolate

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image) => (float[N,5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (image, w1)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w2)
}"""
FAST = {"samples": 16, "iters": 4, "correction_iters": 1, "batch_size": 4}
BACKENDS: Any = torch.backends
OPERATORS = ("cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul", "mkldnn.rnn")
by_backend = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has flags only")


def precision(owner: str = "") -> str:
    value: Any = BACKENDS
    for part in filter(None, owner.split(".")):
        value = getattr(value, part)
    return str(value.fp32_precision)


def set_precision(owner: str, value: str) -> None:
    *path, last = ["backends", *filter(None, owner.split(".")), "fp32_precision"]
    where: Any = torch
    for part in path:
        where = getattr(where, part)
    setattr(where, last, value)


def precise() -> bool:
    """Whether products of matrices have float32 in full."""
    if hasattr(torch.backends, "fp32_precision"):
        return precision("cuda.matmul") == precision("mkldnn.matmul") == "ieee"
    return torch.get_float32_matmul_precision() == "highest"


def written() -> bytes:
    x = np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)
    model = onnx.parser.parse_model(NETWORK)
    for name, shape in (("w1", (4, 3, 3, 3)), ("w2", (5, 4))):
        weight = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return quantize(model, bits="4/4", calib=x, options=FAST, device="cpu").model.SerializeToString(deterministic=True)


@functools.cache
def ordinary() -> bytes:
    return written()


@pytest.fixture
def expected() -> bytes:
    """Made once, but by a test: what plans are depends on a fixture (tests/conftest.py)."""
    return ordinary()


@pytest.fixture
def _as_before() -> Iterator[None]:
    """Put back what the tests set, in the newer interface, or those after them could not read the older one."""
    yield
    if hasattr(torch.backends, "fp32_precision"):
        for owner in ("", "cudnn", *OPERATORS):
            set_precision(owner, "none")
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


SETTINGS: dict[str, Callable[[], object]] = {
    "everything": lambda: set_precision("", "tf32"),
    "everything but": lambda: [set_precision("", "ieee"), set_precision("cuda.matmul", "tf32")],
    "CUDA": lambda: set_precision("cudnn", "tf32"),
    **{owner: lambda owner=owner: set_precision(owner, "tf32") for owner in OPERATORS},
    "bfloat16": lambda: set_precision("mkldnn.matmul", "bf16"),
    "flags": lambda: [torch.set_float32_matmul_precision("medium"), setattr(torch.backends.cudnn, "allow_tf32", False)],
}


@pytest.mark.usefixtures("_as_before")
@by_backend
@pytest.mark.parametrize("setting", SETTINGS)
def test_precisions_of_the_calling_process(setting: str, expected: bytes) -> None:
    SETTINGS[setting]()
    owners = ("", "cudnn", *OPERATORS)
    before, kept = [precision(owner) for owner in owners], own_values()
    with full_float32():
        assert {precision(owner) for owner in owners} == {"ieee"}
    assert written() == expected
    assert [precision(owner) for owner in owners] == before
    assert own_values() == kept


@pytest.mark.usefixtures("_as_before")
@by_backend
@pytest.mark.parametrize("setting", ["nothing", *SETTINGS])
def test_what_follows_another_does_so_after_tf32(setting: str) -> None:
    """Values that were inherited are not kept as own ones, be it within a call or after it."""
    SETTINGS.get(setting, lambda: None)()
    owners = ("", "cudnn", *OPERATORS)
    before, kept, following = [precision(owner) for owner in owners], own_values(), followers()
    with settled_torch():
        within = followers()
        with tf32_products():
            assert {precision(owner) for owner in ("cudnn.conv", "cudnn.rnn", "cuda.matmul")} == {"tf32"}
        assert {precision(owner) for owner in owners} == {"ieee"}
        assert followers() == within
    assert [precision(owner) for owner in owners] == before
    assert own_values() == kept
    assert followers() == following


def followers() -> set[str]:
    """What reads TF32 when the precision of everything is that."""
    everything = precision()
    set_precision("", "tf32")
    found = {owner for owner in ("cudnn", *OPERATORS) if precision(owner) == "tf32"}
    set_precision("", everything)
    return found


def own_values() -> dict[str, str]:
    """What does not follow when the precision of everything is set."""
    everything = precision()
    set_precision("", "ieee")
    own = {owner: precision(owner) for owner in ("cudnn", *OPERATORS)}
    set_precision("", everything)
    return {owner: value for owner, value in own.items() if value != "ieee"}


@pytest.mark.usefixtures("_as_before")
def test_flags_of_the_calling_process() -> None:
    torch.set_float32_matmul_precision("medium")
    with ExitStack() as stack:
        precision_of_versions_before_2_9(stack)
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
)
def test_contexts_of_the_calling_process(around: Callable[[], AbstractContextManager[Any]], expected: bytes) -> None:
    with around():
        assert written() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype(dtype: torch.dtype, expected: bytes) -> None:
    torch.set_default_dtype(dtype)
    try:
        assert written() == expected
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device(expected: bytes) -> None:
    torch.set_default_device("meta")
    try:
        assert written() == expected
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def test_deterministic_algorithms(expected: bytes) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with settled_torch():
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert written() == expected
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_as_before")
def test_calls_at_once_are_settled_until_the_last_ends() -> None:
    entered, left, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with settled_torch():
            entered.set()
            inside.wait(20)
        left.set()

    inside = threading.Event()
    thread = threading.Thread(target=first)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    try:
        thread.start()
        assert entered.wait(20)
        with settled_torch():
            inside.set()
            assert left.wait(20)
            seen.append((torch.get_default_dtype(), torch.is_deterministic_algorithms_warn_only_enabled()))
            seen.append(precise())
        seen.append((torch.get_default_dtype(), torch.is_deterministic_algorithms_warn_only_enabled()))
        seen.append(precise())
    finally:
        thread.join()
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert seen == [(torch.float32, True), True, (torch.float64, False), False]


def in_turns(
    first: Callable[[], AbstractContextManager[None]],
    second: Callable[[], AbstractContextManager[None]],
    look: Callable[[], Any],
) -> list[Any]:
    """What ``look`` sees while a thread is in ``first``, this one in ``second`` as well, and alone, and neither."""
    entered, end = threading.Event(), threading.Event()
    seen = []

    def run() -> None:
        with first():
            entered.set()
            end.wait(20)

    thread = threading.Thread(target=run)
    try:
        thread.start()
        assert entered.wait(20)
        seen.append(look())
        with second():
            seen.append(look())
            end.set()
            thread.join(20)
            seen.append(look())
    finally:
        end.set()
        thread.join()
    return [*seen, look()]


def strictness() -> tuple[bool, bool]:
    """Whether operators without a kernel that is deterministic raise, and cuDNN takes others."""
    on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return on and not warns, torch.backends.cudnn.deterministic


@contextmanager
def deterministic() -> Iterator[None]:
    with settled_torch(), same_bits():
        yield


STRICT, LAX = (True, True), (False, False)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (deterministic, settled_torch, [STRICT, STRICT, LAX, LAX]),
        (settled_torch, deterministic, [LAX, STRICT, STRICT, LAX]),
        (same_bits, settled_torch, [STRICT, STRICT, LAX, LAX]),
        (deterministic, deterministic, [STRICT, STRICT, STRICT, LAX]),
    ],
)
def test_what_is_deterministic_stays_so_beside_other_calls(first: Any, second: Any, expected: list[Any]) -> None:
    assert in_turns(first, second, strictness) == expected
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_sums_at_once_leave_cudnn_as_it_was(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", enabled)

    def exact() -> AbstractContextManager[None]:
        return exact_sums(torch.device("meta"))

    assert in_turns(exact, exact, lambda: torch.backends.cudnn.enabled) == [False, False, False, enabled]
    with exact_sums(torch.device("cpu")):
        assert torch.backends.cudnn.enabled is enabled


def test_what_another_call_asked_for_is_told_as_its_own() -> None:
    """Beside a call with --deterministic, an operator raises in one without."""
    with pytest.raises(CalibrationError, match=r"--deterministic: f does not have"), settled_torch():
        raise RuntimeError("f does not have a deterministic implementation, but you set something. You can")


def test_what_is_kept_between_calls_is_given_up_with_the_last_run() -> None:
    axis, method = interpolate.Axis(size=4, out=8, scale=2.0), interpolate.Method(mode="linear")
    with settled_torch():
        with settled_torch():
            interpolate.interpolate_axis(torch.ones(1, 4), 1, axis, method)
        kept = weakref.ref(interpolate._table(axis, method, torch.float32, torch.device("cpu"))[0])
        assert interpolate._table.cache_info().hits
        assert kept() is not None
    assert kept() is None
