"""`run_sweep`: many runs of `quantize`, here or on a Ray cluster; what comes of each is kept and not made again.

A sweep's folder has a JSON file a finished run, under the key of all that decides it, and the table as results.csv,
results.md and results.html. A run that failed has a file that says why, and is tried again by the next call; one that
was interrupted has its finished blocks below `unfinished`, and goes on.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from pdq_export.commands.progress import ProgressCallback
from pdq_export.commands.settle import check
from pdq_export.commands.sweep_clock import Clock
from pdq_export.commands.sweep_key import Keys
from pdq_export.config.config import make_config
from pdq_export.config.sweep import Sweep, SweepRun, read_sweep
from pdq_export.errors import CheckpointError, OptionError, PdqError, counted
from pdq_export.files import write_atomically
from pdq_export.report.reading import LONGEST
from pdq_export.report.sweep import Finished, SweepTable
from pdq_export.report.sweep_file import KIND, parse_finished, write_finished
from pdq_export.runs import InUseError
from pdq_export.runs.header import read_bounded
from pdq_export.runs.lock import acquire

logger = logging.getLogger(__name__)

_DIGITS = 16  # of a key, in the names of files
_UNFINISHED = "unfinished"
_HEAD = 200  # bytes of a file that say what it is
_TABLES = ("results.csv", "results.md", "results.html")

Told = Callable[[Finished, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run with its ``key``: see `pdq_export.commands.sweep_key.Keys`; ``folder``: the sweep's."""

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
    if ray is None:
        executor, threads = _one_by_one(progress), torch.get_num_threads()
    else:
        from pdq_export.commands.sweep_ray import on_ray

        executor, threads = on_ray(ray, cores=cores), cores
    jobs = find_jobs(runs, folder, threads=threads)
    with _held(folder):
        _check_tables(jobs, folder)
        return complete(jobs, folder, executor, told)


def complete(jobs: Sequence[Job], folder: Path, executor: Executor, told: Told | None = None) -> SweepTable:
    """Have ``executor`` make the runs that ``folder`` does not keep, and keep each at once; the table of all."""
    kept = {job.key: found for job in jobs if (found := read_finished(job)) is not None}
    missing = [job for job in jobs if job.key not in kept or kept[job.key].error is not None]
    done = len(jobs) - len(missing)
    if done:
        logger.info("%s: %d of %s there already", folder, done, counted(len(jobs), "run"))
    for job, finished in executor(missing):
        kept[job.key] = finished
        write_atomically(job.file, write_finished(finished), overwrite=True)
        _write_table(jobs, kept, folder)
        done += 1
        if told is not None:
            told(finished, done, len(jobs))
    return _write_table(jobs, kept, folder)


def find_jobs(runs: Iterable[SweepRun], folder: Path, *, threads: int) -> list[Job]:
    """The runs with their keys, kept in ``folder``; ``threads``: that each calibrates with, which decide the bytes.

    Raises PdqError for wrong options and missing files.
    """
    jobs, keys = [], Keys(threads=threads)
    for run in runs:
        check(run.config)
        if run.config.data.calib is None:
            raise OptionError("calib is not given; expected calibration data in the section [data] of a sweep")
        jobs.append(Job(key=keys.of(run), run=run, folder=folder))
    return jobs


def perform(job: Job, progress: ProgressCallback | None = None) -> Finished:
    """Make a run, or go on with it; what goes wrong with it becomes part of the result, but for Ctrl-C."""
    try:
        try:
            return _perform(job, progress, resume=any(job.blocks.rglob("block-*")))
        except InUseError:
            raise
        except CheckpointError as error:  # it would fail so for ever
            logger.warning("%s; its blocks are removed, and the run starts afresh", error)
            shutil.rmtree(job.blocks)
            return _perform(job, progress, resume=False)
    except Exception as error:  # one of a hundred that stops the others for a bug is of no use
        kind = "" if isinstance(error, PdqError) else f"{type(error).__name__}: "
        logger.debug("raised here", exc_info=error)
        return job.ended(error=f"{kind}{' '.join(str(error).split())}")


def _perform(job: Job, progress: ProgressCallback | None, *, resume: bool) -> Finished:
    from pdq_export.commands.quantize import quantize

    clock = Clock(job.blocks / "seconds.json", progress, resume=resume)
    config = make_config({"work_dir": job.blocks, "resume": resume}, base=job.run.config)
    report = quantize(job.run.model, config=config, progress=clock).report
    shutil.rmtree(job.blocks, ignore_errors=True)
    wall, cpu = clock.calibration
    return job.ended(report=json.loads(report.to_json()), calibration_seconds=wall, calibration_cpu_seconds=cpu)


def _one_by_one(progress: ProgressCallback | None) -> Executor:
    return lambda jobs: ((job, perform(job, progress)) for job in jobs)


def read_finished(job: Job) -> Finished | None:
    """What the folder keeps of a run, or None. Of a file that is damaged a warning tells, and it counts for none.

    Names of options and changes are those of the job: whoever has made the run may have called it otherwise.
    """
    try:
        found = parse_finished(read_bounded(job.file, LONGEST).decode(), job.key)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        logger.warning("%s: is damaged (%s); its run is made again", job.file, " ".join(str(error).split())[:200])
        return None
    return dataclasses.replace(found, model=job.run.model, varied=dict(job.run.varied), change=job.run.change)


def _write_table(jobs: Sequence[Job], kept: Mapping[str, Finished], folder: Path) -> SweepTable:
    """The table of what there is, in the order of the runs; in the folder it is always up to date."""
    table = SweepTable(runs=tuple(kept[job.key] for job in jobs if job.key in kept), count=len(jobs))
    contents = (table.to_csv().encode(), table.to_markdown().encode(), table.to_html())
    for name, content in zip(_TABLES, contents, strict=True):
        write_atomically(folder / name, content, overwrite=True)
    return table


def _check_tables(jobs: Sequence[Job], folder: Path) -> None:
    """Raise OptionError for a file of the table's name in a folder that keeps no run: somebody else's."""
    there = [folder / name for name in _TABLES if os.path.lexists(folder / name)]
    ours = any(job.file.exists() for job in jobs) or any(map(_is_kept, folder.glob("*.json")))  # some may be damaged
    if there and not ours:
        raise OptionError(
            f"{there[0]}: exists, and {folder} keeps no run of a sweep, which would replace it; expected a folder for "
            "the sweep alone; name another folder, or move the file"
        )


def _is_kept(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return f'"kind": "{KIND}"'.encode() in stream.read(_HEAD)
    except OSError:
        return False


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
