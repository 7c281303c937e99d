"""Caches give back the bits that went in, from every tier, within their budget, and leave nothing behind."""

import errno
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.calibrate import memory, spill
from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.memory import parse_size, resident_bytes
from pdq_export.calibrate.offload import Offload
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.store import Store
from pdq_export.errors import CalibrationError, OptionError
from pdq_export.numerics import search
from pdq_export.numerics.search import QParams, choose_activation_qparams
from pdq_export.spec import Point, Role

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
BUDGETS = {
    "unlimited": {"device_bytes": None},
    "device": {"device_bytes": 2**40},
    "host": {"device_bytes": 0, "host_bytes": None},
    "file": {"device_bytes": 0},
}


def open_files(folder: Path) -> int:
    """Files of ``folder`` that this process holds open, with or without a name."""
    links = Path("/proc/self/fd")
    if not links.exists():
        pytest.skip("needs /proc")
    targets = []
    for link in links.iterdir():
        try:
            targets.append(str(link.readlink()))
        except OSError:
            continue  # the listing's own
    return sum(target.startswith(str(folder)) for target in targets)


def filled(store: Store, x: torch.Tensor, quantizer: ActivationQuantizer | None = None, size: int = 5) -> Cache:
    cache = store.new(x.shape, x.dtype, quantizer)
    for batch in x.split(size):
        cache.append(batch.to(store.device))
    return cache


def bits(x: torch.Tensor) -> bytes:
    return x.cpu().contiguous().numpy().tobytes()


def quantizer_of(width: int, scale: float, zero_point: int, *, symmetric: bool = False) -> ActivationQuantizer:
    qparams = QParams(scale=torch.tensor(scale, dtype=torch.float32), zero_point=torch.tensor(float(zero_point)))
    point = Point(tensor="x", role=Role.ACTIVATION, bits=width, symmetric=symmetric)
    return ActivationQuantizer(point, qparams)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tier", BUDGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(17,), (17, 3), (17, 2, 3, 4), (17, 0), (1, 5)])
def test_the_same_bits_come_back(tier: str, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype)
    store = Store(torch.device(device), **BUDGETS[tier])
    cache = filled(store, x)
    assert cache.tier == ("device" if tier == "unlimited" or not x.nbytes else tier)
    assert (len(cache), cache.shape, cache.dtype) == (len(x), tuple(x.shape), dtype)
    chosen = torch.randint(len(x), (9,), generator=generator)  # with repetitions
    rows = cache[chosen.to(device)]
    assert rows.device.type == device
    assert bits(rows) == bits(x[chosen])
    for _ in range(2):
        assert [bits(batch) for batch in cache.batches(4)] == [bits(batch) for batch in x.split(4)]
    assert b"".join(bits(batch) for batch in cache.batches(4, 6)) == bits(x[:6])
    assert bits(cache.slice(0, len(x))) == bits(x)
    cache.close()
    assert sum(store.used.values()) == 0


def test_rows_are_the_readers_own() -> None:
    for budget in BUDGETS.values():
        x = torch.randn(8, 3)
        cache = filled(Store(CPU, **budget), x.clone())
        cache[torch.arange(8)].zero_()
        assert bits(cache[torch.arange(8)]) == bits(x)


@given(
    st.integers(2, 8),
    st.floats(2**-40, 2**20, width=32),
    st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=40),
    st.booleans(),
    st.data(),
)
def test_quantized_values_are_kept_in_a_byte_each(
    width: int, scale: float, values: list[float], symmetric: bool, data: st.DataObject
) -> None:
    zero_point = 0 if symmetric else data.draw(st.integers(0, 2**width - 1))
    quantizer = quantizer_of(width, scale, zero_point, symmetric=symmetric)
    every = torch.arange(quantizer.low, quantizer.high + 1) * quantizer.scale
    with torch.no_grad():
        y = torch.cat([quantizer(torch.tensor(values, dtype=torch.float32)), quantizer(every), every])
    expected = bits(y + 0.0)
    for name, budget in BUDGETS.items():
        store = Store(CPU, **budget)
        cache = filled(store, y, quantizer)
        assert bits(cache.slice(0, len(y))) == expected
        assert bits(cache[torch.arange(len(y))]) == expected
        assert cache.dtype == torch.float32
        assert cache.nbytes == len(y) * (4 if name == "unlimited" else 1)
        cache.close()


def test_a_zero_has_one_sign_in_every_tier() -> None:
    quantizer = quantizer_of(4, 0.5, 8)
    y = quantizer(torch.tensor([-0.1, 0.1]))
    assert np.signbit(y.detach().numpy()).tolist() == [True, False]
    for budget in BUDGETS.values():
        cache = filled(Store(CPU, **budget), y.detach(), quantizer)
        assert not np.signbit(cache.slice(0, 2).numpy()).any()


def test_what_is_not_on_the_grid_is_not_kept_silently() -> None:
    """It is found before anything is read, once for all that was added."""
    for ask in (Cache.verify, lambda cache: cache[torch.arange(1)], lambda cache: cache.slice(0, 1)):
        cache = Store(CPU, device_bytes=0).new((3,), torch.float32, quantizer_of(4, 0.5, 8))
        cache.append(torch.tensor([0.0, float("nan")]))
        cache.append(torch.tensor([0.5]))
        with pytest.raises(CalibrationError, match="NaN"):
            ask(cache)


def test_more_rows_than_announced() -> None:
    """Where the first axis does not count images."""
    x = torch.randn(12, 2)
    for budget in BUDGETS.values():
        store = Store(CPU, **budget)
        cache = store.new((7, 2), x.dtype)
        for batch in x.split(5):
            cache.append(batch)
        assert bits(cache.slice(0, 12)) == bits(x)
        assert sum(store.used.values()) == x.nbytes


def test_accounting() -> None:
    store = Store(CPU, device_bytes=800, host_bytes=200)
    first = store.new((25,), torch.float32)
    second = store.new((75,), torch.float32)
    third = store.new((25,), torch.float32)
    fourth = store.new((50,), torch.float32)
    assert [cache.tier for cache in (first, second, third, fourth)] == ["device", "device", "host", "file"]
    assert store.used == {"device": 400, "host": 100, "file": 200}
    del second
    assert store.used["device"] == 100
    assert store.new((75,), torch.float32).tier == "device"
    adopted = store.adopt(torch.zeros(1000))
    assert (adopted.tier, adopted.nbytes) == ("device", 0)
    assert store.peak == 700
    store.close()
    assert sum(store.used.values()) == 0


def test_caches_make_way_for_a_step() -> None:
    store = Store(CPU, device_bytes=2000)
    values = [torch.randn(n, 5) for n in (10, 20, 15)]
    caches = [filled(store, x) for x in values]
    adopted = store.adopt(values[0])
    store.reserve(1400)
    assert [cache.tier for cache in caches] == ["device", "file", "device"]  # the largest goes first
    store.reserve(5000)
    assert {cache.tier for cache in caches} == {"file"}
    assert adopted.tier == "device"  # the caller's own
    assert all(bits(cache.slice(0, len(x))) == bits(x) for cache, x in zip(caches, values, strict=True))
    store.reserve(0)
    assert store.new((10,), torch.float32).tier == "device"


def test_no_file_is_left(folder: Path) -> None:
    store = Store(CPU, device_bytes=0)
    kept, dropped = (filled(store, torch.randn(100, 10)) for _ in range(2))
    assert open_files(folder) == 2
    del dropped
    assert open_files(folder) == 1
    store.close()
    assert open_files(folder) == 0
    assert list(folder.iterdir()) == []
    assert len(kept) == 0


def test_a_full_disk_is_noticed_before_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30 - 5000, 5000))
    store = Store(CPU, device_bytes=0)
    announced = store.new((1000,), torch.float32)
    with pytest.raises(CalibrationError, match="TMPDIR"):
        store.new((1000,), torch.float32)  # what is announced and not yet written counts
    announced.append(torch.zeros(1000))
    store.new((1000,), torch.float32)


def test_a_disk_that_fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, _: int) -> None: ...

        def write(self, _: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(CalibrationError, match="No space left on device"):
        filled(Store(CPU, device_bytes=0), torch.zeros(10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9),
        ("4gb", 4 * 10**9),
        (" 512 MB ", 512 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("64KiB", 2**16),
        ("1000", 1000),
        ("7B", 7),
        (123456, 123456),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.1", "4 XB", "4iB", "1e9", "nan", "4GB 2", "٤GB", -5, 0])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(OptionError, match="--max-memory"):
        parse_size(text)


def test_without_a_limit_what_many_images_take_goes_to_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pdq_export.calibrate.store._KEPT", 1000)
    store, x = Store.of_process(CPU, None), torch.randn(20, 10)  # 800 bytes
    inside, outside = filled(store, x), filled(store, x + 1)
    assert [cache.tier for cache in (inside, outside)] == ["device", "file"]
    assert bits(outside.slice(0, 20)) == bits(x + 1)
    quantizer = quantizer_of(4, 0.5, 8)
    y = quantizer(x).detach()
    held, narrow = filled(store, y[:4], quantizer), filled(store, y, quantizer)
    assert [cache.nbytes for cache in (held, narrow)] == [4 * 40, 200]  # floats in memory, bytes elsewhere
    assert bits(narrow.slice(0, 20)) == bits(y + 0.0)
    store.reserve(10**9)  # steps may take what they need
    assert inside.tier == "device"
    assert not store.limited
    assert open_files(folder) == 2 - (narrow.tier == "device")
    inside.close()
    assert filled(store, x).tier == "device"
    assert "block inputs" not in caplog.text


def test_without_a_limit_a_full_disk_leaves_it_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pdq_export.calibrate.store._KEPT", 1000)
    monkeypatch.setattr(spill.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100))
    store, x = Store.of_process(CPU, None), torch.randn(20, 10)
    caches = [filled(store, x) for _ in range(3)]
    assert [cache.tier for cache in caches] == ["device"] * 3
    assert all(bits(cache.slice(0, 20)) == bits(x) for cache in caches)
    assert caplog.text.count("block inputs and outputs stay in memory, beyond 1.0 kB") == 1
    assert "set TMPDIR to a folder with room" in caplog.text


def test_a_budget_that_is_taken_already(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10**7 < resident_bytes() < 10**12
    monkeypatch.setattr(memory, "resident_bytes", lambda: 900_000_000)
    with pytest.raises(OptionError, match=r"800 MB.*900 MB.*give --max-memory 1.4GB or more"):
        Store.of_process(CPU, 800_000_000).require(10**8, 0, 32)
    with pytest.raises(OptionError, match=r"800 MB.*900 MB.*give --max-memory 945MB or more"):
        Store.of_process(torch.device("cuda"), 800_000_000)
    assert Store.of_process(CPU, 1_000_000_000).limited
    assert not Store.of_process(CPU, None).limited


@pytest.mark.usefixtures("small_tensors_count")
@pytest.mark.parametrize("room", [0, 3000, 10**9])
def test_a_backward_pass_from_a_file_is_the_same(room: int, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3), torch.nn.Sigmoid()
    )
    images = [torch.randn(4, 2, 8, 8, generator=generator) for _ in range(3)]

    def gradients(x: torch.Tensor) -> list[bytes]:
        x = x.clone().requires_grad_(True)
        network.zero_grad()
        network(x).square().sum().backward()
        return [bits(x.grad), *(bits(parameter.grad) for parameter in network.parameters())]

    expected = [gradients(x) for x in images]
    with Offload(room, network.parameters()) as offload:
        ends = []
        for x, wanted in zip(images, expected, strict=True):
            assert gradients(x) == wanted
            ends.append(offload._end)
        assert offload.kept == 0
        assert offload._known == {}
        assert len(set(ends)) == 1  # the second step writes where the first one did
        assert (ends[0] == 0) == (room == 10**9)
    assert open_files(folder) == 0


def test_the_search_does_not_see_how_the_data_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(70, 90, generator=torch.Generator().manual_seed(0)) + 0.3
    whole = choose_activation_qparams(x, 4)
    monkeypatch.setattr(search, "_LARGEST_COUNT", 1000)
    parts = choose_activation_qparams(filled(Store(CPU, device_bytes=0), x).batches(11), 4)
    assert torch.equal(whole.scale, parts.scale)
    assert torch.equal(whole.zero_point, parts.zero_point)
