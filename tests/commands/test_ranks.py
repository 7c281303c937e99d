"""Processes that quantize together, as torchrun starts them: one message, one file, and a run that goes on.

They come from a server that has imported what they need; the test stands in for torchrun, whose store outlives them.
"""

import datetime
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.distributed import TCPStore

from pdq_export.commands.machine import describe_machine
from pdq_export.commands.seen import check_alike, digest_images
from pdq_export.errors import RankError
from pdq_export.ranks import Ranks
from pdq_export.runs import Run, RunKey

from ..thread_ranks import on_ranks
from .test_resume import BLOCKS, network

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a server that forks")
_SECONDS = 60


class Launcher:
    """Starts ranks of a command line; ``dies``: a rank that is killed when it begins with its third block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pdq_export.commands.quantize", "pdq_export.ranks", "pdq_export.cli"])

    def __call__(
        self, size: int, arguments: Sequence[str], dies: int | None = None
    ) -> tuple[list[int | None], str, str]:
        """Exit codes by rank, and all that they have printed to stdout and stderr."""
        seconds = datetime.timedelta(seconds=_SECONDS)
        store = TCPStore("127.0.0.1", 0, is_master=True, timeout=seconds, wait_for_workers=False)
        given = {
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "OMP_NUM_THREADS": "1",
        }
        ranks = []
        for rank in range(size):
            environment = given | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            target = functools.partial(_be_rank, self._folder, environment, list(arguments), rank == dies)
            ranks.append(self._context.Process(target=target))
            ranks[-1].start()
        for one in ranks:
            one.join(_SECONDS)
        assert not any(one.is_alive() for one in ranks)
        printed = ["".join(path.read_text() for path in sorted(self._folder.glob(f"{name}-*"))) for name in ("1", "2")]
        return [one.exitcode for one in ranks], printed[0], printed[1]


def _be_rank(folder: Path, environment: dict[str, str], arguments: list[str], dies: bool) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor in (1, 2):
        file = os.open(f"{descriptor}-{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    from pdq_export import cli, ranks
    from pdq_export.calibrate.journal import Journal
    from pdq_export.numerics import search

    search.FRACTIONS, search._MAX_ENUMERATED_BITS = 1, 0  # which has tests of its own
    ranks._SMALL = 0  # as if tensors were large
    begin = Journal.begin

    def begin_or_die(self: Journal, position: int, block: Any) -> None:
        if dies and position == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, position, block)

    Journal.begin = begin_or_die  # type: ignore[method-assign]
    sys.argv = ["pdq-export", *arguments]
    cli.main()


def test_a_killed_rank_ends_all_and_another_number_goes_on(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    images = rng.normal(size=(19, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images, labels=rng.integers(0, 5, 19))
    options = "--samples 19 --iters 4 --correction-iters 1 --set batch_size=8 --device cpu --work-dir work"
    command = f"quantize net.onnx --calib images.npz --eval images.npz {options} --output q.onnx".split()
    launch = Launcher(tmp_path)

    codes, out, err = launch(2, command, dies=1)
    assert codes == [2, -signal.SIGKILL]
    assert not out
    (message,) = (line for line in err.splitlines() if "error" in line)
    assert message.startswith("pdq-export: error: rank 0 of 2: another rank has ended")
    assert message.endswith(f"on any number of ranks; 2 of {BLOCKS} blocks are kept")
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "images.npz", "work", *"1-0 1-1 2-0 2-1".split()}

    codes, out, err = launch(3, [*command, "--resume"])
    assert codes == [0, 0, 0]
    assert f"2 of {BLOCKS} blocks are finished" in err
    assert "19 images of images.npz" in out
    assert out.count("wrote q.onnx") == 1
    made = {entry.key: entry.value for entry in onnx.load(tmp_path / "q.onnx").metadata_props}
    assert '"ranks": 3' in made["pdq_export.made_by"]


def test_images_have_one_digest_whoever_goes_over_them() -> None:
    """A run is taken up by another number of ranks; some of them may have no part."""
    inputs = [torch.arange(150.0).view(150, 1), torch.arange(20).view(10, 2)]
    wanted = digest_images(inputs)
    assert on_ranks(4, lambda ranks: digest_images(inputs, ranks)) == [wanted] * 4
    assert digest_images([inputs[0].flip(0), inputs[1]]) != wanted


def test_ranks_with_other_options_are_refused_and_other_machines_are_not() -> None:
    cpu = torch.device("cpu")
    machine = describe_machine(cpu)

    def check(ranks: Ranks, **own: str) -> None:
        key = RunKey(parts={"model": "m", "iters": "5", **machine, "threads": str(ranks.rank), **own})
        run = Run(model="m", bits="4/4", created="now", digest=key.digest, key=key, blocks=1)
        check_alike(run, cpu, ranks)

    on_ranks(2, check)
    with pytest.raises(RankError, match=r"rank 1 of 2: .* in iters"):
        on_ranks(2, lambda ranks: check(ranks, iters=str(ranks.rank)))
