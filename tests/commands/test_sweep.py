"""Sweeps: what is made, what is kept, and what a cluster that loses a worker makes of it."""

import csv
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.commands import sweep as sweeps
from pdq_export.commands import sweep_clock
from pdq_export.commands.progress import Progress
from pdq_export.commands.sweep import Job, complete, find_jobs, perform, run_sweep
from pdq_export.commands.sweep_ray import gpus_of
from pdq_export.config.sweep import Sweep
from pdq_export.errors import CalibrationError, DataError, ModelError, OptionError
from pdq_export.report.sweep import Finished

from ..onnx_text import fill, parse
from .sweep_data import FALLEN

NETWORK = """c = Conv <pads = [1, 1, 1, 1]> (image, w1) r = Relu(c) d = Conv <pads = [1, 1, 1, 1]> (r, w2)
    q = Relu(d) p = GlobalAveragePool(q) f = Flatten(p) y = Gemm <transB = 1> (f, w3)"""
TINY = {"samples": 8, "iters": 2, "correction_iters": 0, "batch_size": 4, "reduce_range": True, "device": "cpu"}
AXES = {"bits": ("8/8", "2/2"), "method": ("nearest", "qdrop"), "seed": (0, 1)}

QUICK = {"calib": "images.npy", "method": "nearest", "samples": 8, "device": "cpu"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with two networks and images."""
    monkeypatch.chdir(tmp_path)
    for name, width in (("a", 4), ("b", 5)):
        shapes = {"w1": (width, 3, 3, 3), "w2": (width, width, 3, 3), "w3": (5, width)}
        onnx.save(fill(parse(NETWORK), shapes), f"{name}.onnx")
    np.save("images.npy", np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32))
    return tmp_path


def sweep(*models: str, calib: str = "images.npy", **axes: tuple[object, ...]) -> Sweep:
    return Sweep(models=models or ("a.onnx",), base={**TINY, "calib": calib}, axes=axes or {"bits": ("8/8", "4/4")})


def alone(model: str, *values: object) -> str:
    """The SHA-256 of what one combination of the values in AXES gives by itself."""
    given: dict[str, Any] = {**TINY, "calib": "images.npy", **dict(zip(AXES, values, strict=True))}
    left_out = ("iters", "batch_size", "seed") if given["method"] == "nearest" else ()
    options = {name: value for name, value in given.items() if name not in left_out}
    return pdq_export.quantize(model, **options).report.quantized.sha256


def test_each_result_is_that_of_a_single_run(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    table = run_sweep(sweep("a.onnx", "b.onnx", **AXES), "results", told=lambda _, *at: told.append(at))
    assert told == [(done, 12) for done in range(1, 13)]  # the seed of rounding to nearest draws nothing
    assert not table.failed
    for finished, combination in (
        (table.runs[0], ("a.onnx", "8/8", "nearest", 0)),
        (table.runs[-2], ("b.onnx", "2/2", "qdrop", 0)),
        (table.runs[-1], ("b.onnx", "2/2", "qdrop", 1)),
    ):
        assert finished.report is not None
        assert finished.report["quantized"]["sha256"] == alone(*combination)
    assert len({run.report["quantized"]["sha256"] for run in table.runs if run.report is not None}) == 12
    rows = list(csv.DictReader(Path("results/results.csv").read_text().splitlines()))
    assert [(row["model"], row["bits"], row["method"], row["seed"]) for row in rows[:4]] == [
        ("a.onnx", "8/8", "nearest", ""),
        ("a.onnx", "8/8", "qdrop", "0"),
        ("a.onnx", "8/8", "qdrop", "1"),
        ("a.onnx", "2/2", "nearest", ""),
    ]
    assert float(rows[0]["size_ratio"]) == table.runs[0].report["size_ratio"]
    assert Path("results/results.md").read_text() == table.to_markdown()
    assert [run["key"] for run in json.loads(table.to_json())["runs"]] == [row["key"] for row in rows]
    assert not any(Path("results").rglob("block-*"))


def counted(made: list[Job]) -> sweeps.Executor:
    def execute(jobs: Sequence[Job]) -> Iterator[tuple[Job, Finished]]:
        for job in jobs:
            made.append(job)
            yield job, perform(job)

    return execute


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    made: list[Job] = []
    results = Path("results")
    results.mkdir()
    jobs = find_jobs(sweep(bits=("8/8", "4/4", "2/2")).runs(), results, threads=1)

    def interrupted(jobs: Sequence[Job]) -> Iterator[tuple[Job, Finished]]:
        yield jobs[0], perform(jobs[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(jobs, results, interrupted)
    assert len(list(csv.reader((results / "results.csv").open()))) == 2  # the head, and the run that has ended
    whole = complete(jobs, results, counted(made))
    assert made == jobs[1:]
    assert complete(jobs, results, counted(made)) == whole
    assert made == jobs[1:]


def key(model: str = "a.onnx", threads: int = 1, **changes: object) -> str:
    asked = Sweep(models=(model,), base={**TINY, "calib": "images.npy", **changes})
    (job,) = find_jobs(asked.runs(), Path("results"), threads=threads)
    return job.key


def test_whatever_decides_a_result_is_in_its_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key()
    assert first == key(max_memory="1GB", preset="balanced", samples=8)
    others = [key(bits="2/2"), key(iters=3), key(target="qcdq"), key(eval="images.npy"), key(lambda_r=0.5)]
    others.append(key(threads=2))
    shutil.copy("b.onnx", "a.onnx")
    others.append(key())
    np.save("images.npy", np.zeros((8, 3, 8, 8), np.float32))
    others.append(key())
    monkeypatch.setattr("pdq_export.__version__", "99")
    others.append(key())
    assert len({first, *others}) == 10


def test_whatever_a_run_reads_is_in_its_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    bits, code = Path("bits.json"), Path("own_functions_of_a_sweep.py")
    plan = {"bits_from": "bits.json"}
    own = {"calib": "own_functions_of_a_sweep:images"}
    measured = {"metric": ("own_functions_of_a_sweep:score",)}
    bits.write_text("{}")
    code.write_text("def images(): return 1\n\ndef score(outputs, labels): return 1.0\n")
    before = [key(**given) for given in (plan, own, {**own, "eval": own["calib"]}, measured)]
    assert before == [key(**given) for given in (plan, own, {**own, "eval": own["calib"]}, measured)]
    bits.write_text("{} ")
    code.write_text("def images(): return 2\n\ndef score(outputs, labels): return 2.0\n")
    after = [key(**given) for given in (plan, own, {**own, "eval": own["calib"]}, measured)]
    assert len({*before, *after}) == 8
    bits.unlink()
    with pytest.raises(OptionError, match=r"bits\.json: cannot be read"):
        key(**plan)
    assert key(calib="synthetic")


def test_equal_files_of_other_names_are_other_runs(folder: Path) -> None:
    shutil.copy("a.onnx", "c.onnx")
    jobs = find_jobs(sweep("a.onnx", "c.onnx", bits=("8/8",)).runs(), Path("results"), threads=1)
    assert len({job.key for job in jobs}) == 2
    assert len({job.blocks for job in jobs}) == 2


def test_what_is_kept_has_the_names_of_those_who_ask(folder: Path) -> None:
    weights = {"symmetric": {"weights": "symmetric"}, "7 bits": {"reduce_range": True}}
    asked = Sweep(models=("a.onnx",), base=QUICK, changes=weights)
    first = run_sweep(asked, "results")
    assert [run.change for run in first.runs] == ["", "symmetric", "7 bits"]
    other = dict(zip(weights, reversed(weights.values()), strict=True))
    again = run_sweep(dataclasses.replace(asked, changes=other), "results")
    assert [run.change for run in again.runs] == ["", "symmetric", "7 bits"]
    assert [run.report for run in again.runs] == [first.runs[number].report for number in (0, 2, 1)]
    rows = list(csv.DictReader(Path("results/results.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == [first.runs[number].key for number in (0, 2, 1)]
    named = Sweep(models=("a.onnx",), base=QUICK, axes={"reduce_range": (False, True)})
    renamed = run_sweep(named, "results")
    assert [run.varied for run in renamed.runs] == [{"reduce_range": False}, {"reduce_range": True}]
    assert renamed.runs[1].report == first.runs[2].report
    rows = list(csv.DictReader(Path("results/results.csv").read_text().splitlines()))
    assert [row["reduce_range"] for row in rows] == ["false", "true"]


def test_tables_of_somebody_else_stay(folder: Path) -> None:
    asked = Sweep(models=("a.onnx",), base=QUICK)
    for name in ("results.csv", "results.md", "results.html"):
        Path(name).write_text("mine")
        Path("other.json").write_text('{"kind": "mine"}')
        with pytest.raises(OptionError, match=rf"{name}: exists, and .* keeps no run of a sweep"):
            run_sweep(asked, ".")
        assert Path(name).read_text() == "mine"
        Path(name).rename(f"my-{name}")
    run_sweep(asked, ".")
    assert len(run_sweep(asked, ".").runs) == 1


def interrupted_job(monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run that has one block and then was interrupted; the seconds that it had taken are noted."""
    monkeypatch.setattr(sweep_clock, "_EVERY", 0.0)
    (job,) = find_jobs(sweep(bits=("4/4",)).runs(), Path("results"), threads=1)

    def interrupt(at: Progress) -> None:
        if at.block is not None and at.block.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(job, interrupt)
    assert any(job.blocks.rglob("block-*"))
    return job


def test_a_damaged_block_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = interrupted_job(monkeypatch)
    (block,) = job.blocks.rglob("block-*")
    block.write_bytes(block.read_bytes()[:-20])
    finished = perform(job)
    assert finished.error is None
    assert "is damaged" in caplog.text
    assert "its blocks are removed, and the run starts afresh" in caplog.text
    assert not job.blocks.exists()


def test_seconds_are_those_of_all_attempts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = interrupted_job(monkeypatch)
    noted = json.loads((job.blocks / "seconds.json").read_text())
    assert noted["wall"] > 0
    (job.blocks / "seconds.json").write_text('{"wall":5000.0,"cpu":7000.0}')
    finished = perform(job)
    assert finished.calibration_seconds is not None
    assert finished.calibration_cpu_seconds is not None
    assert 5000 < finished.calibration_seconds < 6000
    assert 7000 < finished.calibration_cpu_seconds < 8000
    job = interrupted_job(monkeypatch)
    (job.blocks / "seconds.json").write_text('{"wall":-1.0,"cpu":"x"}')
    again = perform(job)
    assert again.error is None
    assert again.calibration_seconds is not None
    assert 0 < again.calibration_seconds < 5000
    assert "seconds of earlier attempts are not counted" in caplog.text


MACHINES: list[Mapping[str, float]] = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("device", "cores", "gpus"), [("auto", 2, 1), ("auto", 4, 0), ("cpu", 4, 0), ("cuda", 2, 1), ("cuda:0", 1, 1)]
)
def test_gpus_of_a_run(folder: Path, device: str, cores: int, gpus: int) -> None:
    assert gpus_of(job_on(device), MACHINES, cores) == gpus


@pytest.mark.parametrize(
    ("device", "cores", "message"),
    [
        ("auto", 5, "--cores 5: no machine of the cluster has so many, the largest has 4"),
        ("cuda", 3, "--device cuda: no machine of the cluster has a GPU and --cores 3 beside it"),
        ("cuda:1", 1, "--device cuda:1: a run on a cluster sees one GPU"),
    ],
)
def test_what_no_machine_has_is_refused(folder: Path, device: str, cores: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        gpus_of(job_on(device), MACHINES, cores)
    with pytest.raises(OptionError, match="the largest has 0"):
        gpus_of(job_on("cpu"), [], 1)


def job_on(device: str) -> Job:
    (run,) = Sweep(models=("a.onnx",), base={"calib": "images.npy", "device": device}).runs()
    return Job(key="0", run=run, folder=Path("results"))


def test_a_damaged_file_is_told_and_its_run_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = Sweep(models=("a.onnx",), base=QUICK)
    (whole,) = run_sweep(asked, "results").runs
    (kept,) = Path("results").glob("*.json")
    plain = json.loads(kept.read_text())
    changed: list[dict[str, Any]] = [
        {"key": whole.key[::-1]},
        {"report": 5},
        {"report": None},
        {"report": {**plain["report"], "outputs": 5}},
        {"calibration_seconds": "long"},
        {"version": 2},
    ]
    for text in ("", "[1]", kept.read_text()[:100], *(json.dumps({**plain, **change}) for change in changed)):
        kept.write_text(text)
        caplog.clear()
        (again,) = run_sweep(asked, "results").runs
        assert "is damaged" in caplog.text
        assert again.report is not None
        assert again.report["quantized"] == whole.report["quantized"]


def test_a_run_that_fails_does_not_stop_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pdq_export.commands import quantize as module

    real = module.quantize

    def fails(model: str, **given: object) -> object:
        bits = given["config"].plan.bits  # type: ignore[attr-defined]
        if bits != "8/8":
            raise CalibrationError("the loss is\nnan") if bits == "4/4" else ZeroDivisionError("a bug")
        return real(model, **given)

    monkeypatch.setattr(module, "quantize", fails)
    asked = sweep(bits=("4/4", "2/2", "8/8"))
    table = run_sweep(asked, "results")
    assert [run.error for run in table.runs] == ["the loss is nan", "ZeroDivisionError: a bug", None]
    assert "| the loss is nan |" in table.to_markdown()
    monkeypatch.setattr(module, "quantize", real)
    assert not run_sweep(asked, "results").failed


def test_what_cannot_be_run_is_refused_first(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"c\.onnx"):
        run_sweep(sweep("a.onnx", "c.onnx"), "results")
    with pytest.raises(DataError, match=r"none\.npz"):
        run_sweep(sweep(calib="none.npz"), "results")
    with pytest.raises(OptionError, match="--bits 4/9: activation bits"):
        run_sweep(sweep(bits=("8/8", "4/9")), "results")
    with pytest.raises(OptionError, match="calib is not given"):
        run_sweep(Sweep(models=("a.onnx",), base=TINY), "results")
    assert not Path("results").exists()
    Path("file").touch()
    with pytest.raises(OptionError, match="cannot be written"):
        run_sweep(sweep(), "file")


def test_a_folder_is_one_sweeps(folder: Path) -> None:
    def second(*_: object) -> None:
        with pytest.raises(OptionError, match="another sweep is at work there"):
            run_sweep(sweep(), "results")
        seen.append(1)

    seen: list[int] = []
    run_sweep(sweep(bits=("8/8",)), "results", told=second)
    assert seen == [1]


def test_a_cluster_that_loses_a_worker_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve runs on two workers; the first that calibrates kills its own process."""
    ray = pytest.importorskip("ray", reason="needs the package ray: pip install 'pdq-export[ray]'")
    shutil.copy(Path(__file__).parent / "sweep_data.py", "own_data.py")
    monkeypatch.syspath_prepend(folder)  # the workers look for it in the folder that the command runs in
    axes = {"bits": ("8/8", "4/4", "2/2"), "seed": (0, 1)}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths})
    try:
        table = run_sweep(
            sweep("a.onnx", "b.onnx", calib="own_data:images_after_a_fall", **axes), "results", ray="local"
        )
    finally:
        ray.shutdown()
    assert Path(FALLEN).exists()
    assert len(table.runs) == 12
    assert not table.failed, table.failed
    single = run_sweep(sweep("a.onnx", "b.onnx", calib="own_data:images_after_a_fall", **axes), "single")
    for found, expected in zip(table.runs, single.runs, strict=True):
        assert found.report is not None
        assert expected.report is not None
        assert found.report["quantized"] == expected.report["quantized"]
        assert found.varied == expected.varied


def test_a_cluster_without_a_gpu_is_refused_at_once(folder: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs the package ray: pip install 'pdq-export[ray]'")
    ray.init(num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        asked = Sweep(models=("a.onnx",), base={**TINY, "calib": "images.npy", "device": "cuda"})
        with pytest.raises(OptionError, match="no machine of the cluster has a GPU"):
            run_sweep(asked, "results", ray="local")
        with pytest.raises(OptionError, match="--cores 2: no machine of the cluster has so many, the largest has 1"):
            run_sweep(sweep(), "results", ray="local", cores=2)
    finally:
        ray.shutdown()
    assert not list(Path("results").glob("*.json"))


def test_without_ray_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'pdq-export\[ray\]'"):
        run_sweep(sweep(), "results", ray="local")
