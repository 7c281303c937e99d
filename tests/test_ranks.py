"""What ranks add up and in which order, what a launcher says of them, and who tells why they end."""

import datetime
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import TCPStore

from pdq_export import ranks as module
from pdq_export.calibrate.device import choose_device
from pdq_export.errors import OptionError, RankError
from pdq_export.numerics.search import choose_weight_qparams
from pdq_export.process import Launch, find_launch
from pdq_export.ranks import ALONE, Ranks, check_enough, is_first_to_tell

from .thread_ranks import on_ranks

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


@given(count=st.integers(0, 50), size=st.integers(1, 9))
def test_shares_are_all_there_is_and_nearly_equal(count: int, size: int) -> None:
    every = [Ranks(rank=rank, size=size) for rank in range(size)]
    assert sorted(number for one in every for number in one.mine(count)) == list(range(count))
    assert [len(one.mine(count)) for one in every] == [one.share_of(count) for one in every]
    assert max(one.share_of(count) for one in every) - min(one.share_of(count) for one in every) <= 1


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("small", [0, 2**20])
def test_sums_are_in_the_order_of_ranks(size: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers whose sum depends on the order, a tensor that no number of ranks divides, cut into parts or whole."""
    monkeypatch.setattr(module, "_SMALL", small)
    values = torch.randn(size, 3, 7, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(7)
    wanted = values[0].clone()
    for value in values[1:]:
        wanted += value
    for (found,) in on_ranks(size, lambda ranks: ranks.sum_over(values[ranks.rank])):
        assert torch.equal(found, wanted)


def test_an_average_is_that_of_the_whole_batch() -> None:
    """The weights are the shares; what has no gradient has none on any rank."""
    x, w = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.ones(3, requires_grad=True)

    def gradient(rows: torch.Tensor) -> list[torch.Tensor | None]:
        loss = (rows @ w).square().mean()
        return [loss.detach(), None, *torch.autograd.grad(loss, [w])]

    found = on_ranks(3, lambda ranks: ranks.average(gradient(x[ranks.rank :: 3]), ranks.share_of(7) / 7))
    for loss, none, slope in found:
        assert none is None
        for value, wanted in zip((loss, slope), gradient(x)[::2], strict=True):
            torch.testing.assert_close(value, wanted)
    whole = gradient(x)
    assert ALONE.average(whole, 1.0) is whole


def test_ranks_that_differ_are_named_on_every_rank() -> None:
    def check(ranks: Ranks) -> str:
        with pytest.raises(RankError, match=r"block 'b'.*rank 1 of 3.*take others") as told:
            ranks.check_same("block 'b'", "other" if ranks.rank == 1 else "same", "take others")
        return str(told.value)

    assert len(set(on_ranks(3, check))) == 1
    on_ranks(2, lambda ranks: ranks.check_same("block 'b'", "same", ""))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_rows_come_in_the_order_of_ranks(dtype: torch.dtype) -> None:
    """As many from each as it has, also none."""
    whole = torch.arange(14).view(7, 2).to(dtype)
    parts = whole.split([4, 0, 3])
    for found in on_ranks(3, lambda ranks: ranks.rows(parts[ranks.rank])):
        assert found.dtype == dtype
        assert torch.equal(found, whole)


@pytest.mark.parametrize(("bits", "signed"), [(2, False), (8, False), (8, True)])
def test_channels_are_searched_as_by_one(bits: int, signed: bool) -> None:
    """With fewer channels than ranks, one of zeros, and one far smaller than the largest, which bounds its scale."""
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.0], [1e-9], [1.0]])
    low, high = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    wanted = choose_weight_qparams(weight, low, high)
    for found in on_ranks(4, lambda ranks: choose_weight_qparams(weight, low, high, ranks=ranks)):
        assert torch.equal(found.scale, wanted.scale)
        assert torch.equal(found.zero_point, wanted.zero_point)


def test_the_first_does_what_only_one_shall_do() -> None:
    def first(ranks: Ranks) -> int:
        return ranks.done_by_first(lambda: 7 if ranks.is_first else 1 // 0)

    assert on_ranks(2, first) == [7, 7]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"images": 3}, r"calibration images is 3.*--samples N.*at most 3 ranks \(torchrun --nproc-per-node 3\)"),
        ({"batch_size": 2}, r"batch_size is 2.*--set batch_size=N"),
        ({"search_samples": 1}, r"search_samples is 1.*--set search_samples=N"),
    ],
)
def test_more_ranks_than_work_are_refused(found: dict[str, int], told: str) -> None:
    enough = {"images": 4, "batch_size": 4, "search_samples": 4}
    check_enough(Ranks(size=4), **enough)
    with pytest.raises(OptionError, match=told):
        check_enough(Ranks(size=4), **enough | found)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        (TORCHRUN, Launch(rank=2, size=4, local_rank=1)),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"}, None),  # of a cluster
        ({}, None),
    ],
)
def test_what_torchrun_has_started(environment: dict[str, str], wanted: Launch | None) -> None:
    assert find_launch(environment) == wanted


def test_one_rank_tells_and_all_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(rank=0, size=2, local_rank=0)
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=datetime.timedelta(seconds=10), wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [is_first_to_tell(launch) for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_first_to_tell(launch)
    monkeypatch.delenv("MASTER_PORT")
    assert [is_first_to_tell(launch) for _ in range(2)] == [True, True]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_each_rank_has_a_gpu_of_its_own(gpus: Callable[[int], None]) -> None:
    gpus(2)
    assert [choose_device(name, 1) for name in ("auto", "cuda", "cpu")] == [
        *[torch.device("cuda:1")] * 2,
        torch.device("cpu"),
    ]
    with pytest.raises(OptionError, match=r"process 2 .* torch sees 2.*--nproc-per-node gpu"):
        choose_device("auto", 2)
    with pytest.raises(OptionError, match=r"cuda:1.*CUDA_VISIBLE_DEVICES"):
        choose_device("cuda:1", 0)
    gpus(0)
    assert choose_device("auto", 5) == torch.device("cpu")
