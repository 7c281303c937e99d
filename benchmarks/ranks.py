"""What several ranks gain, and what they send: one calibration in one process, and again in several.

    OMP_NUM_THREADS=1 python -m benchmarks.ranks model.onnx --calib calib.npz --bits 4/4 --preset fast --iters 20

Processes of this machine, one thread each, which gloo connects. Where others use the cores as well, wall times say
little. So the CPU seconds of each rank between two exchanges are taken, too: the longest of each, added up, is the
*path*, what ranks on cores of their own take, and what exchanges take themselves is in it as CPU time. What more GPUs
and machines would take is computed from bytes and exchanges, with links as `LINKS` has them.
"""

import argparse
import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing

from benchmarks.common import markdown
from pdq_export.calibrate import BlockRecord, calibrate
from pdq_export.calibrate.block_state import BlockState
from pdq_export.commands.settle import choose, plan_options
from pdq_export.config.config import make_config
from pdq_export.data import load_images
from pdq_export.process import Launch, tune_process
from pdq_export.ranks import ALONE, Ranks
from pdq_export.ranks.joining import joined
from pdq_export.ranks.together import Together
from pdq_export.spec import Block
from pdq_export.work import PlannedModel, import_planned, open_model

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """Assumed of what connects ranks: bytes a second that each sends, and seconds that an exchange takes at least."""

    name: str
    ranks: int
    rate: float
    latency: float


# A half to two thirds of what is printed on them, or less where GPUs share them.
LINKS = (
    Link(name="8 GPUs, NVLink of 450 GB/s a direction, 250 taken", ranks=8, rate=250e9, latency=30e-6),
    Link(name="8 GPUs, PCIe 5 of 64 GB/s, 20 taken", ranks=8, rate=20e9, latency=40e-6),
    Link(name="4 nodes of 8, InfiniBand of 50 GB/s a GPU, 30 taken", ranks=32, rate=30e9, latency=80e-6),
    Link(name="4 nodes of 8, Ethernet of 12.5 GB/s a node, 1 GB/s a GPU taken", ranks=32, rate=1e9, latency=2e-4),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(Together):
    """Notes CPU seconds at the beginning and the end of each exchange, and how many elements averages are of."""

    marks: list[float]
    averaged: list[int]

    @contextlib.contextmanager
    def _exchange(self, sent: int) -> Iterator[None]:
        self.marks.append(time.process_time())
        with super()._exchange(sent):
            yield
        self.marks.append(time.process_time())

    def average(self, values: Sequence[Tensor | None], weight: float) -> Sequence[Tensor | None]:
        """As `Together` does it."""
        self.averaged.append(sum(x.numel() for x in values if x is not None))
        return super().average(values, weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Of one rank: wall and CPU seconds, the latter also ``between`` exchanges and ``inside`` of them.

    ``waited``: wall seconds in exchanges, of which there were so many, with so many bytes ``sent``. ``elements``: by
    block, what a step averages.
    """

    wall: float
    cpu: float
    between: Sequence[float] = ()
    inside: float = 0.0
    waited: float = 0.0
    exchanges: int = 0
    sent: int = 0
    elements: Sequence[int] = ()


class EnoughError(Exception):
    """So many blocks have been calibrated as were asked for."""


class Noted:
    """A checkpoint that keeps nothing but how many elements a step of each block averages."""

    def __init__(self, averaged: list[int], most: int | None) -> None:
        self._averaged, self._most, self.blocks = averaged, most, list[int]()

    def load(self, position: int, block: Block) -> BlockState | None:
        """None: nothing is kept."""
        return None

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        """Note a block."""
        self.blocks.append(max(self._averaged, default=0))
        self._averaged.clear()
        if len(self.blocks) == self._most:
            raise EnoughError


def measure(ranks: Ranks, arguments: argparse.Namespace) -> Found:
    """Calibrate on this rank's share."""
    given = {name: getattr(arguments, name) for name in ("bits", "preset", "samples", "iters", "batch_size")}
    config = make_config({"calib": str(arguments.calib), **given})
    file, _ = open_model(arguments.model)
    planned = PlannedModel.of(file, plan_options(config, choose(config)), config.file)
    options = choose(config, family=planned.family)
    images = load_images(arguments.calib, expected=planned.inputs[0], limit=options.samples)
    mine = torch.from_numpy(images.take(ranks.mine(len(images))).array())
    network = import_planned(planned)
    if isinstance(ranks, Together):
        ranks = Timed(**{f.name: getattr(ranks, f.name) for f in dataclasses.fields(ranks)}, marks=[], averaged=[])
        ranks.gather(None)  # all begin together
        ranks.marks.clear()
    noted = Noted(ranks.averaged if isinstance(ranks, Timed) else [], arguments.blocks)
    wall, cpu = time.perf_counter(), time.process_time()
    statistics = planned.prepared.statistics
    with contextlib.suppress(EnoughError):
        calibrate(network, planned.plan, statistics, [mine], options, device=CPU, ranks=ranks, checkpoint=noted)
    end = time.process_time()
    wall = time.perf_counter() - wall
    if not isinstance(ranks, Timed):
        return Found(wall=wall, cpu=end - cpu, between=[end - cpu])
    marks = [cpu, *ranks.marks, end]
    traffic = ranks.traffic
    return Found(
        wall=wall,
        cpu=end - cpu,
        between=[b - a for a, b in zip(marks[::2], marks[1::2], strict=True)],
        inside=sum(b - a for a, b in zip(marks[1:-1:2], marks[2:-1:2], strict=True)),
        waited=traffic.seconds,
        exchanges=traffic.exchanges,
        sent=traffic.sent,
        elements=noted.blocks,
    )


def _be_rank(rank: int, size: int, port: int, arguments: argparse.Namespace, found: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    tune_process(threads=1)
    with joined(Launch(rank=rank, size=size, local_rank=rank), CPU) as ranks:
        found.put((rank, measure(ranks, arguments)))


def _be_alone(_: int, arguments: argparse.Namespace, found: Any) -> None:
    tune_process(threads=1)
    found.put((0, measure(ALONE, arguments)))


def on_processes(size: int, arguments: argparse.Namespace) -> list[Found]:
    """What each of so many processes has found, by rank."""
    spawn: Any = multiprocessing.spawn  # type: ignore[attr-defined]
    found: Any = multiprocessing.get_context("spawn").SimpleQueue()
    if size == 1:
        spawn(_be_alone, (arguments, found), nprocs=1)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        spawn(_be_rank, (size, port, arguments, found), nprocs=size)
    return [one for _, one in sorted((found.get() for _ in range(size)), key=lambda pair: pair[0])]


def path(ranks: Sequence[Found]) -> float:
    """CPU seconds of the slowest rank between each two exchanges, and of the exchanges."""
    longest: list[float] = [max(parts) for parts in zip(*(one.between for one in ranks), strict=True)]
    return sum(longest) + max(one.inside for one in ranks)


def sent_a_step(elements: int, ranks: int, *, small: int = 2**20) -> float:
    """Bytes that each rank sends in a step that averages so many float32: see `Together`."""
    whole = 4 * elements
    return whole * (ranks - 1) if ranks == 2 or ranks * whole <= small else 2 * whole * (ranks - 1) / ranks


def project(elements: Sequence[int], step: float, least: float, link: Link) -> tuple[float, float, float]:
    """Mean seconds that a step exchanges, what it takes then, and how much faster that is.

    ``step``: seconds on one GPU, which ranks divide by their number, but for the ``least`` that launching takes.
    """
    exchanges = [
        (1 if link.ranks * 4 * count <= 2**20 else 2) * link.latency + sent_a_step(count, link.ranks) / link.rate
        for count in elements
    ]
    exchange = sum(exchanges) / len(exchanges)
    whole = max(step / link.ranks, least) + exchange
    return exchange, whole, step / whole


def report(alone: Found, together: Sequence[Found], arguments: argparse.Namespace) -> str:
    """Two tables."""
    size, longest = len(together), path(together)
    rows = [
        ["1", f"{alone.wall:.1f}", f"{alone.cpu:.1f}", f"{alone.cpu:.1f}", "", "", ""],
        [
            str(size),
            f"{max(one.wall for one in together):.1f}",
            " + ".join(f"{one.cpu:.1f}" for one in together),
            f"{longest:.1f}",
            f"{max(one.waited for one in together):.1f}",
            f"{alone.cpu / longest:.2f}",
            f"{alone.wall / max(one.wall for one in together):.2f}",
        ],
    ]
    head = ["ranks", "wall s", "CPU s", "path s", "in exchanges, wall s", "faster, by path", "faster, by wall"]
    elements, blocks = together[0].elements, len(together[0].elements)
    means = [sent_a_step(count, size) for count in elements]
    lines = [
        markdown(head, rows),
        f"\nA step of {size} ranks sends {sum(means) / blocks / 1e3:,.0f} kB from each on average ("
        f"{min(means) / 1e3:,.0f} to {max(means) / 1e3:,.0f} by block); all of it, {together[0].exchanges} exchanges "
        f"and {together[0].sent / 1e6:,.1f} MB.\n",
    ]
    projected = []
    for link in LINKS:
        exchange, whole, faster = project(elements, arguments.gpu_step, arguments.launching, link)
        projected.append([link.name, f"{1e3 * exchange:.2f}", f"{1e3 * whole:.2f}", f"{faster:.1f}"])
    computed = f"step of {1e3 * arguments.gpu_step:g} ms on one GPU, ms"
    return "\n".join([*lines, markdown(["on paper", "exchanged, ms", computed, "faster"], projected)])


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--bits", default="4/4")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--iters", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--blocks", type=int, help="the first so many alone")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--pairs", type=int, default=1, help="how often both are run in turn; the fastest of each count"
    )
    parser.add_argument(
        "--gpu-step", type=float, default=0.025, help="seconds of a step on one GPU, for the projection"
    )
    parser.add_argument("--launching", type=float, default=0.003, help="seconds of a step that launching takes anyhow")
    arguments = parser.parse_args(given)
    pairs = [(on_processes(1, arguments)[0], on_processes(arguments.ranks, arguments)) for _ in range(arguments.pairs)]
    alone = min((one for one, _ in pairs), key=lambda found: found.cpu)
    together = min((many for _, many in pairs), key=path)
    print(report(alone, together, arguments))


if __name__ == "__main__":
    main()
