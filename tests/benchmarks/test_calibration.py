"""The calibration benchmark with a budget of a step or two."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import calibration
from benchmarks.calibration import main, make_model, parse_arguments, plan_rows
from benchmarks.common import StageClock
from benchmarks.measure import BlockClock, BlockTime, Job, Measurement, measure, peak_memory
from pdq_export.calibrate import BlockProgress
from pdq_export.commands.quantize import Progress
from pdq_export.config import method
from pdq_export.config.method import PRESETS

JOB = Job(
    model="m.onnx",
    preset="fast",
    device="cpu",
    bits="4/4",
    method="pdq",
    overrides={"samples": "8", "iters": "5", "correction_iters": "1", "batch_size": "4"},
    max_memory=None,
    threads=1,
)
FOUND = Measurement(
    job=JOB,
    blocks=(BlockTime(block="a", seconds=2.0, steps=2, step_seconds=0.5, bits=2),),
    seconds=5.0,
    cpu_seconds=5.0,
    fixed_seconds=1.0,
    search_seconds=1.0,
    start_memory=1,
    calibration_memory=2,
    peak_memory=3_000_000,
    device_memory=None,
    model_bytes=4,
)


def test_a_calibration_is_measured(small: Path) -> None:
    found = measure(JOB, small)
    assert len(found.blocks) == 3
    assert all(block.steps == 5 and block.step_seconds is not None for block in found.blocks)
    assert 0.0 < sum(block.seconds for block in found.blocks) <= found.seconds
    assert found.fixed_seconds is not None
    assert found.fixed_seconds > 0.0
    assert 50e6 < 0.99 * found.start_memory <= found.calibration_memory <= found.peak_memory <= 1.01 * peak_memory()
    assert found.device_memory is None
    assert found.step_seconds is not None
    assert all(block.bits >= 4 for block in found.blocks)
    assert (found.extrapolated() or 0.0) > found.step_seconds * found.job.full().for_block(4).iters


class Clock(BlockClock):
    """One whose time is set."""

    time = 0.0

    def now(self) -> tuple[float, float]:  # type: ignore[override]
        return self.time, 0.0


def test_times_of_blocks() -> None:
    times = [("a", 1, 1.0), ("a", 3, 2.0), ("a", 6, 5.0), ("b", 1, 8.0), ("c", 1, 10.0), ("c", 2, 11.0)]
    for clock in (clocks := (Clock(), Clock(interval=2), Clock(first=3))):
        for block, step, clock.time in times:
            at = BlockProgress(block=block, index=0, count=3, step=step, steps=6, loss=0.0)
            clock(Progress(stage="calibrate", block=at))
    bits = {"a": 2, "b": 4, "c": 8}
    a, b, c = clocks[0].blocks(bits)
    assert a == BlockTime(block="a", seconds=5.0, steps=6, step_seconds=0.8, bits=2)
    assert a.other_seconds == pytest.approx(0.2)
    assert b == BlockTime(block="b", seconds=3.0, steps=1, step_seconds=None, bits=4)
    assert b.other_seconds is None
    assert c.step_seconds == 1.0
    assert [block.step_seconds for block in clocks[1].blocks(bits)] == [0.5, None, None]
    assert [block.step_seconds for block in clocks[2].blocks(bits)] == [1.0, None, None]


def test_a_cut_budget_is_extrapolated() -> None:
    steps, fixed, images = PRESETS[JOB.preset]["iters"] * 0.5, 1.0, (5.0 - 2 * 0.5 - 1.0) * 256 / 8
    assert FOUND.extrapolated() == pytest.approx(steps + fixed + images)
    job = dataclasses.replace(JOB, overrides={**JOB.overrides, "search_samples": "4"})
    few = dataclasses.replace(FOUND, job=job)
    assert few.extrapolated() == pytest.approx(steps + fixed + 1.0 + (5.0 - 2 * 0.5 - 2.0) * 256 / 8)
    easy = dataclasses.replace(FOUND, blocks=(dataclasses.replace(FOUND.blocks[0], bits=4),))
    share = PRESETS[JOB.preset]["iters_share"]
    assert easy.extrapolated() == pytest.approx(share * steps + fixed + images)
    whole = dataclasses.replace(
        FOUND, job=dataclasses.replace(JOB, overrides={}), fixed_seconds=None, search_seconds=None
    )
    assert whole.extrapolated() == pytest.approx(steps + 4.0)
    unknown = dataclasses.replace(FOUND, blocks=(dataclasses.replace(FOUND.blocks[0], steps=1, step_seconds=None),))
    assert unknown.extrapolated() is None
    assert unknown.other_seconds is None


class Work(TorchDispatchMode):
    """Counts the elements that operators put out, a thousand more a call: seconds that are the same every time."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        self.done += 1e3 + sum(x.numel() for x in outputs if isinstance(x, torch.Tensor))
        return result


def test_what_is_extrapolated_is_what_the_whole_run_takes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = {**PRESETS["fast"], "samples": 96, "iters": 120, "batch_size": 8, "correction_iters": 4}
    monkeypatch.setattr(method, "PRESETS", {**PRESETS, "fast": preset})
    work = Work()
    monkeypatch.setattr(StageClock, "now", staticmethod(lambda: (work.done, 0.0)))
    job = dataclasses.replace(JOB, overrides={"search_samples": "16"})
    with work:
        whole = measure(job, small)
        for iters in (9, 20):
            cut = {"samples": "24", "iters": str(iters)}
            part = measure(dataclasses.replace(job, overrides={**job.overrides, **cut}), small)
            assert part.seconds < 0.6 * whole.seconds
            assert part.extrapolated() == pytest.approx(whole.seconds, rel=0.1)


def test_blocks_of_few_bits_are_told_from_others(small: Path) -> None:
    """By the plan, not by the steps of a run for which their number is given."""
    overrides = {"iters": "1", "samples": "4", "correction_iters": "0", "search_samples": "4"}
    found = measure(dataclasses.replace(JOB, bits="2/8", overrides=overrides), small, extrapolates=False)
    assert [block.bits < 4 for block in found.blocks] == [False, True, False]
    assert {block.steps for block in found.blocks} == {1}


def test_rows_of_presets_and_sweeps(model: Path, tmp_path: Path) -> None:
    command = [str(model), "--presets", "fast", "balanced", "--iters", "3", "--set", "batch_size=4"]
    rows = plan_rows(parse_arguments([*command, "--max-memory", "4GB"]), tmp_path)
    assert [row.job.preset for row in rows] == ["fast", "balanced"]
    assert all(row.job.max_memory == "4GB" and row.path == model for row in rows)
    assert rows[1].job.options().iters == 3
    assert rows[1].job.options().samples == rows[1].job.full().samples

    swept = plan_rows(parse_arguments([*command, "--sweep", "images", "--values", "4", "6"]), tmp_path)
    assert [row.job.options().samples for row in swept] == [4, 6]
    swept = plan_rows(parse_arguments([*command, "--sweep", "iters"]), tmp_path)
    assert [row.job.options().iters for row in swept] == [11, 21, 41]


def test_networks_of_any_depth_and_resolution(tmp_path: Path) -> None:
    rows = plan_rows(parse_arguments(["--sweep", "depth", "--values", "1", "2", "--resolution", "32"]), tmp_path)
    graphs = [onnx.load(row.path).graph for row in rows]
    convolutions = [sum(node.op_type == "Conv" for node in graph.node) for graph in graphs]
    assert convolutions == [1 + 4 * 2 + 3, 1 + 8 * 2 + 3]
    assert graphs[0].input[0].type.tensor_type.shape.dim[2].dim_value == 32
    with pytest.raises(FileNotFoundError, match="resnet18"):
        make_model("resnet19", tmp_path, resolution=32)


def test_a_command_is_run_in_a_process_of_its_own_and_not_twice(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.jsonl"
    settings = ["correction_iters=1", "batch_size=4", "search_samples=4"]
    command = [str(small), "--samples", "4", "--iters", "2", "--set", *settings, "--output", str(output), "--blocks"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| m.onnx, balanced, cpu | 0.0 | 3 | 4 | 2 |" in printed
    assert "| y |" in printed
    monkeypatch.setattr(calibration, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("it was run again"))
    assert main(command) == 0
    assert capsys.readouterr().out == printed


def test_what_cannot_be_measured_is_refused(model: Path) -> None:
    for wrong in ([], [str(model), "--sweep", "resolution"], [str(model), "--presets", "slow"]):
        with pytest.raises(SystemExit):
            parse_arguments(wrong)
    assert main(["resnet19"]) == 2
