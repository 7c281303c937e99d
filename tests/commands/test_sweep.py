"""Sweeps: what is made, what is kept, and what a cluster that loses a worker makes of it."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.commands import sweep as sweeps
from pdq_export.commands.sweep import Job, complete, find_jobs, perform, run_sweep
from pdq_export.config.sweep import Sweep
from pdq_export.errors import CalibrationError, DataError, ModelError, OptionError
from pdq_export.report.sweep import Finished

from ..onnx_text import fill, parse
from .sweep_data import FALLEN

NETWORK = """c = Conv <pads = [1, 1, 1, 1]> (image, w1) r = Relu(c) d = Conv <pads = [1, 1, 1, 1]> (r, w2)
    q = Relu(d) p = GlobalAveragePool(q) f = Flatten(p) y = Gemm <transB = 1> (f, w3)"""
TINY = {"samples": 8, "iters": 2, "correction_iters": 0, "batch_size": 4, "reduce_range": True, "device": "cpu"}
AXES = {"bits": ("8/8", "2/2"), "method": ("nearest", "qdrop"), "seed": (0, 1)}


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


def alone(finished: Finished) -> str:
    """The SHA-256 of what the same run gives by itself."""
    assert finished.report is not None
    asked = finished.report["settings"]["asked"]
    assert {"calib": "images.npy", **finished.varied}.items() <= {"bits": "4/4", "seed": 0, **asked}.items()
    return pdq_export.quantize(finished.model, device="cpu", **asked).report.quantized.sha256


def test_each_result_is_that_of_a_single_run(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    table = run_sweep(sweep("a.onnx", "b.onnx", **AXES), "results", told=lambda _, *at: told.append(at))
    assert told == [(done, 12) for done in range(1, 13)]  # the seed of rounding to nearest draws nothing
    assert not table.failed
    for finished in (table.runs[0], table.runs[-1]):
        assert finished.report is not None
        assert finished.report["quantized"]["sha256"] == alone(finished)
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
    jobs = find_jobs(sweep(bits=("8/8", "4/4", "2/2")).runs(), results)

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


def test_whatever_decides_a_result_is_in_its_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**changes: object) -> str:
        (job,) = find_jobs(Sweep(models=("a.onnx",), base={**TINY, "calib": "images.npy", **changes}).runs(), folder)
        return job.key

    first = key()
    assert first == key(max_memory="1GB", preset="balanced", samples=8)
    others = [key(bits="2/2"), key(iters=3), key(target="qcdq"), key(eval="images.npy"), key(lambda_r=0.5)]
    shutil.copy("b.onnx", "a.onnx")
    others.append(key())
    np.save("images.npy", np.zeros((8, 3, 8, 8), np.float32))
    others.append(key())
    monkeypatch.setattr("pdq_export.__version__", "99")
    others.append(key())
    assert len({first, *others}) == 9


def test_a_damaged_file_is_told_and_its_run_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = {"calib": "images.npy", "method": "nearest", "samples": 8, "device": "cpu"}
    asked = Sweep(models=("a.onnx",), base=base)
    (whole,) = run_sweep(asked, "results").runs
    (kept,) = Path("results").glob("*.json")
    for text in ("", "[1]", kept.read_text()[:100], kept.read_text().replace(whole.key, whole.key[::-1])):
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


def test_without_ray_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'pdq-export\[ray\]'"):
        run_sweep(sweep(), "results", ray="local")
