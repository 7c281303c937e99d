"""`quantize` that is interrupted and taken up again: the same file, and what is said about it."""

import base64
import dataclasses
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pdq_export.calibrate.checkpoint import read_records
from pdq_export.commands.quantize import Progress, quantize
from pdq_export.errors import CheckpointError, OptionError, ResourceError
from pdq_export.runs import Run, find_runs, open_run
from pdq_export.runs.folder import read_block
from pdq_export.spec import arrays
from pdq_export.spec.arrays import Stored
from pdq_export.spec.plain import to_text

from ..onnx_text import fill, name_nodes, parse

BLOCKS = 4
OPTIONS: dict[str, Any] = {"samples": 16, "iters": 4, "correction_iters": 1, "batch_size": 8, "search_samples": 16}


def network(seed: int = 0) -> onnx.ModelProto:
    """Three convolutions and a classifier: four blocks."""
    model = parse(
        """c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(image, w1, b1) a1 = Relu(c1)
           c2 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a1, w2, b2) a2 = Relu(c2)
           c3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a2, w3, b3) a3 = Relu(c3)
           p = GlobalAveragePool(a3) f = Flatten(p) y = Gemm<transB=1>(f, w4, b4)"""
    )
    shapes: dict[str, tuple[int, ...]] = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (5, 8)}
    biases = {"b1": (8,), "b2": (8,), "b3": (8,), "b4": (5,)}
    return name_nodes(fill(model, {**shapes, **biases}, seed=seed))


@pytest.fixture(autouse=True)
def _few_fractions(short_search: None) -> None:
    """The search for scales, which has tests of its own, takes most of the time of so small a run."""


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)


class Quantize:
    """Runs `quantize` in a folder; ``stop``: is called with every report of progress."""

    def __init__(self, folder: Path, images: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self.folder, self.images = folder, images
        self.model = folder / "net.onnx"
        onnx.save(network(), self.model)
        self.output, self.work = folder / "out" / "q.onnx", folder / "work"
        self.output.parent.mkdir()

    def __call__(self, *, stop: Callable[[Progress], None] | None = None, **changes: Any) -> bytes:
        options = {**OPTIONS, **changes.pop("options", {})}
        arguments = {"calib": self.images, "output": self.output, "work_dir": self.work, "device": "cpu", **changes}
        quantize(self.model, overwrite=True, options=options, progress=stop, **arguments)
        return self.output.read_bytes()

    def interrupted(self, at: int = 2, **changes: Any) -> str:
        """Ctrl-C in the block at a position; gives what is noted about it."""

        def stop(progress: Progress) -> None:
            if progress.block is not None and progress.block.index == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as raised:
            self(stop=stop, **changes)
        return " ".join(getattr(raised.value, "__notes__", []))


@pytest.fixture
def run(tmp_path: Path, images: np.ndarray[Any, np.dtype[np.float32]]) -> Quantize:
    return Quantize(tmp_path, images)


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="pdq_export.commands.keeping"):
        yield


def test_a_resumed_run_gives_the_same_file(run: Quantize, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(work_dir=tmp_path / "elsewhere")
    note = run.interrupted()
    assert note == f"2 of {BLOCKS} blocks are kept: the same command with --resume goes on with the others"
    calibrated = []
    assert run(resume=True, stop=lambda at: calibrated.append(at.block)) == expected
    assert f"2 of {BLOCKS} blocks are finished; the run goes on with the others" in caplog.text
    assert {at.index for at in calibrated if at is not None and at.step} == {2, 3}
    assert run(resume=True) == expected  # and once more, from nothing but finished blocks
    (kept,) = find_runs(run.work)
    assert (kept.done, kept.run and kept.run.blocks) == (BLOCKS, BLOCKS)
    records = read_records(kept.path)
    assert [len(record.losses) for record in records.values()] == [OPTIONS["iters"]] * BLOCKS
    assert all(record.seconds["steps"] > 0 for record in records.values())


def test_without_resume_it_starts_afresh_and_says_so(run: Quantize, caplog: pytest.LogCaptureFixture) -> None:
    run.interrupted()
    run.interrupted(at=0)
    assert f"2 of {BLOCKS} blocks were finished by an earlier run with the same plan" in caplog.text
    (kept,) = find_runs(run.work)
    assert kept.done == 2  # nothing has taken their place yet
    calibrated = []
    run(stop=lambda at: calibrated.append(at.block))
    assert {at.index for at in calibrated if at is not None and at.step} == set(range(BLOCKS))


def change_model(run: Quantize) -> dict[str, Any]:
    onnx.save(network(seed=1), run.model)
    return {}


def change_image(run: Quantize) -> dict[str, Any]:
    images = run.images.copy()
    images[3, 0, 0, 0] += 0.5
    return {"calib": images}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_model, "differs in model"),
        (change_image, "differs in images"),
        (lambda run: {"bits": "2/4"}, "differs in bits (4/4, now 2/4)"),
        (lambda run: {"options": {"iters": 5}}, "differs in iters (4, now 5)"),
        (lambda run: {"options": {"seed": 7}}, "differs in seed (0, now 7)"),
        (lambda run: {"exclude": ["c2"]}, "differs in exclude"),
    ],
)
def test_what_is_changed_starts_afresh_and_says_so(
    run: Quantize,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Quantize], dict[str, Any]],
    told: str,
) -> None:
    run.interrupted()
    calibrated = []
    run(resume=True, stop=lambda at: calibrated.append(at.block), **change(run))
    assert f"--resume: the run starts afresh, for what is kept of net.onnx {told}" in caplog.text
    assert 0 in {at.index for at in calibrated if at is not None and at.step}


def test_another_choice_of_kernels_starts_afresh(
    run: Quantize, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    run.interrupted()
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    run.interrupted(at=0, resume=True)
    assert "differs in environment variable ONEDNN_MAX_CPU_ISA (SSE41, now not given)" in caplog.text


def test_what_changes_no_integer_is_resumed(run: Quantize, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run.interrupted()
    moved = tmp_path / "moved.onnx"
    run.model.rename(moved)
    run.model = moved
    run.output = tmp_path / "other.onnx"
    run(resume=True, max_memory="8GB", simulated_images=8)
    assert f"2 of {BLOCKS} blocks are finished" in caplog.text


def test_there_is_nothing_to_resume(run: Quantize, caplog: pytest.LogCaptureFixture) -> None:
    run.interrupted(at=0, resume=True)
    assert f"--resume: there is nothing of this run in {run.work}; it starts afresh" in caplog.text


def test_a_damaged_block_is_refused_by_name(run: Quantize) -> None:
    run.interrupted()
    (kept,) = find_runs(run.work)
    path = kept.path / "block-0002.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + whole[-19:])
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: is damaged (")):
        run(resume=True)
    path.unlink()  # the remedy
    run(resume=True)


def test_another_run_at_work(run: Quantize, caplog: pytest.LogCaptureFixture) -> None:
    run.interrupted()
    (kept,) = find_runs(run.work)
    assert isinstance(kept.run, Run)
    before = {path.name: path.read_bytes() for path in kept.path.glob("block-*")}
    with open_run(run.work, kept.run, resume=True):
        with pytest.raises(CheckpointError, match="another run of the same model, data and options is at work there"):
            run(resume=True)
        assert run.interrupted(at=3) == ""  # it goes on without, and has nothing to offer
    assert "finished blocks are not kept: " in caplog.text
    assert {path.name: path.read_bytes() for path in kept.path.glob("block-*")} == before


def test_a_cache_that_cannot_be_written(
    run: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(tmp_path / "file"))
    run(work_dir=None)
    assert "finished blocks are not kept, so the run cannot be resumed: " in caplog.text

    def stop(progress: Progress) -> None:
        raise AssertionError("work has begun")

    def homeless(*arguments: object, **options: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    caplog.clear()
    monkeypatch.delenv("PDQ_EXPORT_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", homeless)
    run(work_dir=None)
    assert "finished blocks are not kept, so the run cannot be resumed: there is no cache folder" in caplog.text

    with pytest.raises(OptionError, match=r"file: cannot be written: .*; choose another --work-dir"):
        run(work_dir=tmp_path / "file", stop=stop)


def test_a_disk_that_is_full_in_between(
    run: Quantize, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OptionError("block-0001.jsonl: cannot be written: No space left on device")

    monkeypatch.setattr("pdq_export.runs.folder.RunFolder.save", full)
    run()
    assert caplog.text.count("finished blocks are not kept from here on: block-0001.jsonl: cannot be written") == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import pdq_export.numerics.search as search
search.FRACTIONS, search._MAX_ENUMERATED_BITS = 1, 0  # as the fixture short_search
import torch
torch.set_num_threads(1)
from pdq_export.commands.quantize import quantize
folder, options, stage, block = Path(sys.argv[1]), *map(eval, sys.argv[2:])
def stop(at):
    learns = at.block is not None and at.block.index == block and at.block.step
    if at.stage == stage and (learns or at.images):
        heavy = {"torch._dynamo", "torch._inductor", "scipy.stats"} & sys.modules.keys()
        (folder / "heavy").write_text(" ".join(heavy))
        os.kill(os.getpid(), signal.SIGKILL)
quantize(
    folder / "net.onnx", calib=np.load(folder / "images.npy"), output=folder / "out" / "q.onnx",
    work_dir=folder / "work", device="cpu", options=options, first_last="4/4", progress=stop,
)
"""


@pytest.mark.parametrize(("stage", "block", "found"), [("calibrate", 2, 2), ("validate", 0, BLOCKS)])
def test_a_killed_run_leaves_nothing_behind(
    run: Quantize, caplog: pytest.LogCaptureFixture, stage: str, block: int, found: int
) -> None:
    few = {"first_last": "4/4"}  # where kernels saturate, other bits are others in the tests' own process
    expected = run(work_dir=run.folder / "elsewhere", **few)
    run.output.unlink()
    np.save(run.folder / "images.npy", run.images)
    arguments = [str(run.folder), repr(OPTIONS), repr(stage), repr(block)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert (run.folder / "heavy").read_text() == "", "takes two seconds to import, and a run has no use for it"
    left = {path.name for path in run.output.parent.iterdir()}
    assert bool(left) == (stage == "validate"), left  # the finished file, hidden, which nobody was told of
    assert run(resume=True, **few) == expected
    assert f"{found} of {BLOCKS} blocks are finished" in caplog.text
    assert {path.name for path in run.output.parent.iterdir()} == {"q.onnx"}
    (kept,) = find_runs(run.work)
    names = {path.name for path in kept.path.iterdir()} - {"lock", "pdq-export-run.json"}
    assert names == {f"block-{number:04d}.jsonl" for number in range(1, BLOCKS + 1)}


def change_state(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write another state into a block's file, well-formed."""
    header, record, state = read_block(path)
    content = json.loads(state)
    change(content)
    body = f"{record}\n{json.dumps(content)}\n".encode()
    first = dataclasses.replace(header, sha256=hashlib.sha256(body).hexdigest())
    path.write_bytes(f"{to_text(first)}\n".encode() + body)


def fill_scales(value: float) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for tensor in state["tensors"].values():
            scale = np.full(tensor["scale"]["shape"], value, np.float32)
            tensor["scale"] = Stored(np.float32).write(scale)

    return change


def spoil_bias(state: dict[str, Any]) -> None:
    state["biases"]["b2"] = Stored(np.float32).write(np.full(8, np.nan, np.float32))


def reshape_integers(state: dict[str, Any]) -> None:
    for tensor in state["tensors"].values():
        if tensor["integers"] is not None:
            tensor["integers"]["shape"].reverse()


def inflate(state: dict[str, Any]) -> None:
    """Unknown biases that take a gigabyte, in a file of a few megabytes."""
    packed = base64.b64encode(zlib.compress(bytes(400_000_000), 9)).decode()
    state["biases"] = {f"x{k}": {"dtype": "float32", "shape": [100_000_000], "data": packed} for k in range(3)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (fill_scales(float("nan")), "expected scales above 0 that keep within FP32"),
        (fill_scales(1e38), "expected scales above 0 that keep within FP32"),
        (spoil_bias, "numbers that are not finite"),
        (reshape_integers, "expected [8, 8, 3, 3]"),
        (inflate, "its arrays take 2,4"),
    ],
)
def test_a_wrong_state_is_refused_by_name(
    run: Quantize, change: Callable[[dict[str, Any]], None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"options": {"compensate_rounding": True}}
    run.interrupted(**options)
    (kept,) = find_runs(run.work)
    path = kept.path / "block-0002.jsonl"
    change_state(path, change)
    unpacked: list[int] = []
    unpack = arrays._inflate
    monkeypatch.setattr(arrays, "_inflate", lambda text, size: unpacked.append(size) or unpack(text, size))
    with pytest.raises(CheckpointError) as raised:
        run(resume=True, **options)
    assert str(raised.value).startswith(f"{path}: is damaged (")
    assert told in str(raised.value)
    assert max(unpacked) < 1e6
    assert not getattr(raised.value, "__notes__", [])
    path.unlink()  # the remedy
    run.interrupted(at=3, resume=True, **options)


def test_a_warning_of_a_finished_block_is_told_again(
    run: Quantize, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdq_export.calibrate.step.Step.power", lambda self, wanted: torch.zeros(()))
    run.interrupted()
    told = {record.getMessage() for record in caplog.records if "its loss diverged" in record.getMessage()}
    assert len(told) == 2
    caplog.clear()
    run.interrupted(at=2, resume=True)
    assert {r.getMessage() for r in caplog.records if "its loss diverged" in r.getMessage()} == told


def test_an_interruption_after_calibration_is_told_as_well(run: Quantize) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "validate":
            raise MemoryError

    with pytest.raises(ResourceError) as raised:
        run(stop=stop)
    assert f"{BLOCKS} of {BLOCKS} blocks are kept: the same command with --resume takes them up" in str(raised.value)
    assert "with --max-memory as well, while other images, batches or devices start afresh" in str(raised.value)


def test_with_gaps_what_is_on_the_disk_counts(run: Quantize) -> None:
    run()
    (kept,) = find_runs(run.work)
    (kept.path / "block-0002.jsonl").unlink()
    assert run.interrupted(at=1, resume=True).startswith(f"3 of {BLOCKS} blocks are kept")


def test_old_runs_of_the_cache_folder_go(run: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    run.interrupted()
    (old,) = find_runs(run.work)
    for path in old.path.iterdir():
        os.utime(path, (1e9, 1e9))
    run.interrupted(at=1, options={"iters": 5})
    assert len(find_runs(run.work)) == 2  # a --work-dir is the user's
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(run.work))
    run.interrupted(at=0, work_dir=None, resume=True)
    assert len(find_runs(run.work)) == 2  # what is taken up is never too old
    run.interrupted(at=0, work_dir=None, options={"iters": 6})
    assert old.path not in [kept.path for kept in find_runs(run.work)]
