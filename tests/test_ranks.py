"""What ranks add up and in which order, what a launcher says of them, and who tells why they end."""

import datetime
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import TCPStore

from pdq_export.calibrate.device import choose_device
from pdq_export.errors import OptionError, RankError
from pdq_export.numerics.search import choose_weight_qparams
from pdq_export.process import Launch, find_launch
from pdq_export.ranks import ALONE, Ranks, joining, together
from pdq_export.ranks.joining import is_first_to_tell
from pdq_export.ranks.together import Together

from .thread_ranks import on_ranks

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


@given(count=st.integers(0, 50), size=st.integers(1, 9))
def test_shares_are_all_there_is_and_nearly_equal(count: int, size: int) -> None:
    every = [Together(rank=rank, size=size) for rank in range(size)]
    assert sorted(number for one in every for number in one.mine(count)) == list(range(count))
    assert [len(one.mine(count)) for one in every] == [one.share_of(count) for one in every]
    assert max(one.share_of(count) for one in every) - min(one.share_of(count) for one in every) <= 1


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("small", [0, 2**20])
def test_sums_are_in_the_order_of_ranks(size: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers whose sum depends on the order, a tensor that no number of ranks divides, cut into parts or whole."""
    monkeypatch.setattr(together, "_SMALL", small)
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


def test_ranks_that_take_other_ways_are_told_so() -> None:
    """At exchanges of two kinds, and where one has had one more: nobody takes one value for another."""

    def kinds(ranks: Ranks) -> None:
        ranks.gather(1) if ranks.is_first else ranks.to_first(1)

    def numbers(ranks: Ranks) -> None:
        if ranks.rank == 1:
            ranks.traffic.exchanges += 1  # type: ignore[attr-defined]
        ranks.from_first(None)

    with pytest.raises(RankError, match=r"rank 0 at number 0 \(gather\), rank 1 at number 0 \(to_first\)"):
        on_ranks(2, kinds)
    with pytest.raises(RankError, match=r"rank 0 at number 0 \(from_first\), rank 1 at number 1 \(from_first\)"):
        on_ranks(3, numbers)


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("[pair.cc:553] Connection closed by peer [::1]:1", r"another rank has ended.*\(\[pair.cc.*--resume"),
        ("Duplicate GPU detected : rank 0 and rank 1", r"fails \(RuntimeError: Duplicate GPU.*one device for each"),
    ],
)
def test_what_fails_is_told_with_its_cause(cause: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(cause)

    monkeypatch.setattr(torch.distributed, "all_gather", fail)
    with pytest.raises(RankError, match=told) as raised:
        Together(rank=0, size=2).sum_over(torch.zeros(1))
    assert ("--resume" in str(raised.value)) == ("closed" in cause)


def test_one_alone_is_one() -> None:
    with pytest.raises(TypeError):
        Ranks(size=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Together(rank=1)  # type: ignore[call-arg]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """A launcher's."""
    seconds = datetime.timedelta(seconds=10)
    made = TCPStore("127.0.0.1", 0, is_master=True, timeout=seconds, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": made.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return made


def test_a_rank_does_not_wait_long_for_others_to_come(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that never come are named, and so is what another program's launcher has handed on; SIGTERM ends it."""
    handlers = []

    def meet(*given: Any, **others: Any) -> Any:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return found(*given, **others)

    found = joining.rendezvous
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(joining, "rendezvous", meet)
    monkeypatch.setattr(joining, "_COMING", datetime.timedelta(seconds=0.2))
    told = r"rank 1 of 3: rank 0, 2 has not come within 0.2 s.*env -u TORCHELASTIC_RUN_ID"
    with (
        pytest.raises(RankError, match=told),
        joining.joined(Launch(rank=1, size=3, local_rank=1), torch.device("cpu")),
    ):
        pass
    assert handlers == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGTERM) == before


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


def test_one_rank_tells_and_all_where_nobody_can_be_asked(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(rank=0, size=2, local_rank=0)
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
