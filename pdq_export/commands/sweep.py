"""`run_sweep`: many runs of `quantize`, here or on a Ray cluster; what comes of each is kept and not made again.

A sweep's folder has a JSON file a finished run, under the key of all that decides it, and the table as results.csv and
results.md. A run that failed has a file that says why, and is tried again by the next call; one that was interrupted
has its finished blocks below `unfinished`, and goes on.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from pdq_export.commands.keeping import digest_code
from pdq_export.commands.progress import Progress, ProgressCallback
from pdq_export.commands.settle import check
from pdq_export.config.config import make_config
from pdq_export.config.sweep import Sweep, SweepRun, read_sweep, settled
from pdq_export.data import check_exists
from pdq_export.errors import ModelError, OptionError, PdqError
from pdq_export.files import write_atomically
from pdq_export.graph.external import external_locations
from pdq_export.graph.load import read_structure
from pdq_export.report import ModelInfo
from pdq_export.report.report import versions
from pdq_export.report.sweep import Finished, SweepTable
from pdq_export.runs.lock import acquire

logger = logging.getLogger(__name__)

_KEPT = "pdq-export sweep run"
_VERSION = 1
_DIGITS = 16  # of a key, in the names of files
_UNFINISHED = "unfinished"

Told = Callable[[Finished, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run with its ``key``: SHA-256 of the model, the data, every option and the versions, in hexadecimal.

    ``folder``: the sweep's.
    """

    key: str
    run: SweepRun
    folder: Path

    @property
    def file(self) -> Path:
        """The file that keeps what comes of it."""
        return self.folder / f"{Path(self.run.model).stem}-{self.key[:_DIGITS]}.json"

    @property
    def blocks(self) -> Path:
        """Where its finished blocks are while it is not."""
        return self.folder / _UNFINISHED / self.key[:_DIGITS]

    def ended(self, **result: Any) -> Finished:
        """The run with what came of it."""
        run = self.run
        return Finished(key=self.key, model=run.model, varied=dict(run.varied), change=run.change, **result)


Executor = Callable[[Sequence[Job]], Iterator[tuple[Job, Finished]]]


def run_sweep(
    sweep: str | Path | Sweep,
    folder: str | Path,
    *,
    ray: str | None = None,
    cores: int = 1,
    told: Told | None = None,
    progress: ProgressCallback | None = None,
) -> SweepTable:
    """Make every run of a sweep that is not kept in ``folder`` yet, and return the table of all.

    ``sweep``: a `Sweep`, or the path of a TOML file that asks for one. Runs are made here, one after the other, or with
    ``ray`` as tasks of a cluster: its address, or "local" for one on this machine; each then has ``cores`` CPU cores,
    and a GPU where it calibrates on one, and is made again where its worker is lost. ``told``: called with what came of
    a run, how many runs are done and how many there are. ``progress``: as in `quantize`, of runs that are made here.

    A run that fails does not stop the others. Raises PdqError, before any run, for what is wrong in the sweep, files
    that are missing, a folder that cannot be written or in which another sweep is at work, and without Ray.
    """
    runs = (sweep if isinstance(sweep, Sweep) else read_sweep(sweep)).runs()
    folder = Path(folder)
    jobs = find_jobs(runs, folder)
    if ray is None:
        executor = _one_by_one(progress)
    else:
        from pdq_export.commands.sweep_ray import on_ray

        executor = on_ray(ray, cores=cores)
    with _held(folder):
        return complete(jobs, folder, executor, told)


def complete(jobs: Sequence[Job], folder: Path, executor: Executor, told: Told | None = None) -> SweepTable:
    """Have ``executor`` make the runs that ``folder`` does not keep, and keep each at once; the table of all."""
    kept = {job.key: found for job in jobs if (found := read_finished(job.file, job.key)) is not None}
    missing = [job for job in jobs if job.key not in kept or kept[job.key].error is not None]
    done = len(jobs) - len(missing)
    if done:
        logger.info("%s: %d of %d runs are there already", folder, done, len(jobs))
    for job, finished in executor(missing):
        kept[job.key] = finished
        write_atomically(job.file, _to_json(finished), overwrite=True)
        _write_table(jobs, kept, folder)
        done += 1
        if told is not None:
            told(finished, done, len(jobs))
    return _write_table(jobs, kept, folder)


def find_jobs(runs: Iterable[SweepRun], folder: Path) -> list[Job]:
    """The runs with their keys, kept in ``folder``. Raises PdqError for wrong options and missing files."""
    digests: dict[str, str] = {}

    def digest(given: str, of: Callable[[str], str]) -> str:
        if given not in digests:
            digests[given] = of(given)
        return digests[given]

    jobs, used = [], {**versions(), "code": digest_code()}
    for run in runs:
        check(run.config)
        data = run.config.data
        if data.calib is None:
            raise OptionError("calib is not given; expected calibration data in the section [data] of a sweep")
        parts = {
            "model": digest(run.model, _digest_model),
            "calib": digest(data.calib, _digest_data),
            "eval": None if data.eval is None else digest(data.eval, _digest_data),
            "options": {**settled(run.config), "calib": data.calib, "max_memory": None},
            "versions": used,
        }
        text = json.dumps(parts, sort_keys=True)
        jobs.append(Job(key=hashlib.sha256(text.encode()).hexdigest(), run=run, folder=folder))
    return jobs


def perform(job: Job, progress: ProgressCallback | None = None) -> Finished:
    """Make a run, or go on with it; what goes wrong with it becomes part of the result, but for Ctrl-C."""
    from pdq_export.commands.quantize import quantize  # comes with torch

    clock = _Clock(progress)
    begun = any(job.blocks.rglob("block-*"))
    config = make_config({"work_dir": job.blocks, "resume": begun}, base=job.run.config)
    try:
        report = quantize(job.run.model, config=config, progress=clock).report
    except Exception as error:  # one of a hundred that stops the others for a bug is of no use
        kind = "" if isinstance(error, PdqError) else f"{type(error).__name__}: "
        logger.debug("raised here", exc_info=error)
        return job.ended(error=f"{kind}{' '.join(str(error).split())}")
    shutil.rmtree(job.blocks, ignore_errors=True)
    wall, cpu = clock.calibration
    return job.ended(report=json.loads(report.to_json()), calibration_seconds=wall, calibration_cpu_seconds=cpu)


class _Clock:
    """Wall and CPU seconds up to the export, of all threads, told by the progress of a run."""

    def __init__(self, progress: ProgressCallback | None) -> None:
        self._progress, self._start = progress, self._now()
        self.calibration = (0.0, 0.0)

    def __call__(self, at: Progress) -> None:
        if at.stage == "export":
            now = self._now()
            self.calibration = (now[0] - self._start[0], now[1] - self._start[1])
        if self._progress is not None:
            self._progress(at)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def _one_by_one(progress: ProgressCallback | None) -> Executor:
    return lambda jobs: ((job, perform(job, progress)) for job in jobs)


def read_finished(path: Path, key: str) -> Finished | None:
    """What a folder keeps of a run, or None. Of a file that is damaged a warning tells, and it counts for none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("kind"), content.pop("version"), content["key"]) != (_KEPT, _VERSION, key):
            raise ValueError("it is of another run or version")
        return Finished(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        logger.warning("%s: is damaged (%s); its run is made again", path, " ".join(str(error).split())[:200])
        return None


def _to_json(finished: Finished) -> bytes:
    content = {"kind": _KEPT, "version": _VERSION, **dataclasses.asdict(finished)}
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()


def _write_table(jobs: Sequence[Job], kept: Mapping[str, Finished], folder: Path) -> SweepTable:
    """The table of what there is, in the order of the runs; in the folder it is always up to date."""
    table = SweepTable(runs=tuple(kept[job.key] for job in jobs if job.key in kept))
    write_atomically(folder / "results.csv", table.to_csv().encode(), overwrite=True)
    write_atomically(folder / "results.md", table.to_markdown().encode(), overwrite=True)
    return table


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, made where there is none, for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(folder)
    except filelock.Timeout as error:
        raise OptionError(f"{folder}: another sweep is at work there; wait for it, or name another folder") from error
    except OSError as error:
        raise OptionError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _digest_model(model: str) -> str:
    path = Path(model)
    structure = read_structure(path)
    try:
        return ModelInfo.of_files(path, *(path.parent / name for name in external_locations(structure))).sha256
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _digest_data(given: str) -> str:
    """Of a file its content; of a folder names, sizes and times of its files; of a function its name."""
    check_exists(given)
    path = Path(given)
    if path.is_dir():
        found = ((file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file())
        listed = [[file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns] for file, status in found]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    if not path.is_file():
        return given
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
