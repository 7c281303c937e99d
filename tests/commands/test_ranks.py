"""Processes that quantize together, as torchrun starts them: one message, one file, and a run that goes on.

They come from a server that has imported what they need; the test stands in for torchrun, whose store outlives them.
"""

import datetime
import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.distributed import TCPStore

from pdq_export.calibrate.journal import Journal
from pdq_export.commands import keeping
from pdq_export.commands.quantize import Result, quantize_together
from pdq_export.commands.seen import digest_images
from pdq_export.config.config import make_config
from pdq_export.errors import CheckpointError, RankError
from pdq_export.ranks import Ranks
from pdq_export.validate import runtime

from ..thread_ranks import on_ranks
from .test_resume import BLOCKS, change_state, fill_scales, network

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a server that forks")
_SECONDS = 60


class Launcher:
    """Starts ranks of a command line; ``dies``: a rank that is killed when it begins with its third block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["pdq_export.commands.quantize", "pdq_export.ranks.joining", "pdq_export.cli"]
        )

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
    from pdq_export import cli
    from pdq_export.numerics import search
    from pdq_export.ranks import together

    search.FRACTIONS, search._MAX_ENUMERATED_BITS = 1, 0  # which has tests of its own
    together._SMALL = 0  # as if tensors were large
    begin = Journal.begin

    def begin_or_die(self: Journal, position: int, block: Any, steps: int) -> None:
        if dies and position == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, position, block, steps)

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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_search: None) -> Path:
    """With two models and two sets of images, where the process is."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    images, labels = rng.normal(size=(70, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 70)
    np.savez("images.npz", images=images, labels=labels)
    np.savez("shuffled.npz", images=images[::-1], labels=labels[::-1])
    np.savez("fewer.npz", images=images[:40], labels=labels[:40])
    np.savez("labelled.npz", images=images, labels=labels[::-1])
    onnx.save(network(), "net.onnx")
    onnx.save(network(seed=1), "other.onnx")
    return tmp_path


NEAREST = {"calib": "images.npz", "eval": "images.npz", "method": "nearest", "samples": 32, "device": "cpu"}


def together(ranks: Ranks, model: str = "net.onnx", **fields: Any) -> Result | None:
    """What one of several threads makes of a run."""
    return quantize_together(ranks, model, config=make_config(NEAREST | fields), progress=None)


@pytest.mark.usefixtures("folder")
def test_figures_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is searched on histograms alone is the same, so all that is measured of 5 batches is, too.

    Metrics are the first rank's, and validation has the threads of one rank among several.
    """
    Path("ranks_own.py").write_text(
        "import threading\nCALLERS = []\n"
        "def own(outputs, labels):\n    CALLERS.append(threading.get_ident())\n    return float(labels[0])\n"
    )
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    options, threads = runtime._options, list[int | None]()
    monkeypatch.setattr(runtime, "_options", lambda given, *others: threads.append(given) or options(1, *others))
    (alone,) = on_ranks(1, lambda ranks: together(ranks, metric="ranks_own:own"))
    assert 3 not in threads
    callers = importlib.import_module("ranks_own").CALLERS
    callers.clear()
    first, *others = on_ranks(3, lambda ranks: together(ranks, metric="ranks_own:own"))
    assert len(set(callers)) == 1
    assert threads.count(3) == 2 * 3
    assert others == [None, None]
    found, wanted = (json.loads(one.report.to_json()) for one in (first, alone) if one is not None)
    assert found["images"] == 70
    for name in ("accuracy", "outputs", "top1_changes", "kernels", "metrics"):
        assert found[name] == wanted[name], name


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"eval": "shuffled.npz"}, r"in evaluation images, evaluation labels;.*in one order \(shuffle=False"),
        ({"eval": "labelled.npz"}, r"in evaluation labels;"),
        ({"eval": "fewer.npz"}, r"number of evaluation images \(70, now 40\)"),
        ({"calib": "shuffled.npz"}, r"in calibration images;"),
        ({"calib": "fewer.npz", "samples": 48}, r"number of calibration images \(32, now 40\), samples"),
        ({"model": "other.onnx"}, r"in graph, model;"),
        ({"method": "qdrop"}, r"in .*iters"),
        ({"bits": "4/8"}, r"in bits \(4/4, now 4/8\), graph;"),
    ],
)
def test_ranks_that_are_not_alike_are_refused_first(own: dict[str, Any], told: str) -> None:
    """Before they exchange anything else, whatever it is that differs."""
    with pytest.raises(RankError, match=rf"rank 1 of 2: its run differs from that of rank 0 .*{told}"):
        on_ranks(2, lambda ranks: together(ranks, **(own if ranks.rank == 1 else {})))


@pytest.mark.usefixtures("folder")
def test_ranks_on_machines_of_other_kinds_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    made = keeping.describe_machine

    def describe_machine(device: torch.device) -> dict[str, str]:
        return made(device) | {"processor": threading.current_thread().name}

    monkeypatch.setattr(keeping, "describe_machine", describe_machine)
    assert on_ranks(2, together)[0] is not None


@pytest.mark.usefixtures("folder")
def test_every_rank_tells_of_blocks_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is interrupted first; and the first tells which file is damaged, before others have what is in it."""
    begin, told = Journal.begin, dict[int, list[str]]()

    def begin_or_end(self: Journal, position: int, block: Any, steps: int) -> None:
        if position == 2:
            raise KeyboardInterrupt
        begin(self, position, block, steps)

    def run(ranks: Ranks) -> None:
        try:
            together(ranks, work_dir="work")
        except BaseException as error:
            told[ranks.rank] = error.__notes__

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "begin", begin_or_end)
        on_ranks(2, run)
    note = f"2 of {BLOCKS} blocks are kept: the same command with --resume goes on with the others"
    assert told == {0: [note], 1: [note]}
    (path,) = Path("work").rglob("block-0002.jsonl")
    change_state(path, fill_scales(float("nan")))
    with pytest.raises(CheckpointError, match=r"block-0002.jsonl: is damaged"):
        on_ranks(2, lambda ranks: together(ranks, work_dir="work", resume=True))
