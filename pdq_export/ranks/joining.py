"""How processes that a launcher has started meet, and which of them tells why all of them end."""

import contextlib
import datetime
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from pdq_export.errors import RankError
from pdq_export.process import Launch, ends_at_once, read_environment
from pdq_export.ranks.alone import Ranks
from pdq_export.ranks.together import Together, shortened

# All ranks begin at once.
_COMING = datetime.timedelta(minutes=5)
# From then on one may work alone for long. gloo tells at once of another that has ended, whose connections close; what
# NCCL does not tell torchrun does, which ends them all.
_PATIENCE = datetime.timedelta(hours=6)
_INHERITED = (
    "where a program that torchrun has started has started this one, it has RANK, WORLD_SIZE and others of it: start "
    "it without (env -u TORCHELASTIC_RUN_ID pdq-export ...)"
)


@contextlib.contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[Ranks]:
    """The ranks that a launcher has started, as this process sees them, connected by torch.distributed.

    Tensors go by NCCL between GPUs and by gloo between CPUs. Raises RankError where others do not come within minutes.
    To be called in the main thread.
    """
    with ends_at_once():  # libraries that wait for others hear of nothing, and nothing has begun
        _join(launch, device)
    ranks = Together(rank=launch.rank, size=launch.size, local_rank=launch.local_rank)
    yield ranks
    # Not where something is raised: the others are ending as well. Until the first is done all stay, or nobody would be
    # there to tell that it has ended.
    ranks.from_first(None)
    dist.destroy_process_group()


def _join(launch: Launch, device: torch.device) -> None:
    where = f"rank {launch.rank} of {launch.size}"
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    try:
        store = next(rendezvous("env://", launch.rank, launch.size, timeout=_COMING))[0]
        own = PrefixStore(f"pdq-export/{_restarts()}", store)
        keys = [f"here/{rank}" for rank in range(launch.size)]
        own.set(keys[launch.rank], "")
        try:
            own.wait(keys, _COMING)
        except RuntimeError as error:
            missing = [str(rank) for rank, key in enumerate(keys) if not own.check([key])]
            raise RankError(
                f"{where}: rank {', '.join(missing)} has not come within {_COMING.total_seconds():g} s; expected all "
                f"of them at once; see what they say; {_INHERITED}"
            ) from error
        dist.init_process_group(backend, store=own, rank=launch.rank, world_size=launch.size, timeout=_PATIENCE)
        store.set_timeout(_PATIENCE)  # NCCL connects at its first exchange
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"{where}: the others are not to be reached ({shortened(error)}); expected all of them under the address "
            f"that torchrun gives; see its --rdzv-endpoint; {_INHERITED}"
        ) from error


def _restarts() -> str:
    """How often torchrun has started this rank again."""
    return read_environment().get("TORCHELASTIC_RESTART_COUNT", "0")


def is_first_to_tell(launch: Launch, *, timeout: float = 3.0) -> bool:
    """Whether no other rank has told yet why all of them end: whoever asks first is to tell it.

    It asks torchrun's store, which outlives every rank; where that is gone too, each rank tells it.
    """
    seconds = datetime.timedelta(seconds=timeout)
    found = read_environment()
    try:
        store = TCPStore(
            found["MASTER_ADDR"], int(found["MASTER_PORT"]), is_master=False, timeout=seconds, wait_for_workers=False
        )
        return store.add(f"pdq-export/{_restarts()}/told", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
