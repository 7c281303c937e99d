"""The runs of a sweep as tasks of a Ray cluster, which starts one again elsewhere where its worker is lost."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pdq_export.commands.sweep import Executor, Job, perform
from pdq_export.errors import OptionError
from pdq_export.process import ray_is_quiet, tune_process, work_in
from pdq_export.report.sweep import Finished

_RETRIES = 3  # of a run whose worker is lost; what it had finished of the calibration is kept
LOCAL = "local"


def on_ray(address: str, *, cores: int) -> Executor:
    """An executor over the cluster at ``address``, or a new one on this machine for "local"; each run has ``cores``.

    Workers go to the folder that this process is in, which has to be there on every machine of the cluster under the
    same name, with models and data. Raises OptionError where Ray is not installed or the cluster cannot be reached.
    """
    if cores < 1:
        raise OptionError(f"--cores {cores}: expected a whole number, 1 or more")
    try:
        ray_is_quiet()
        import ray
    except ImportError as error:
        raise OptionError(
            "--ray: the package ray is not installed; expected it; pip install 'pdq-export[ray]', or leave --ray out "
            "to make the runs one after the other"
        ) from error

    def execute(jobs: Sequence[Job]) -> Iterator[tuple[Job, Finished]]:
        if not jobs:
            return
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        try:
            yield from _execute(ray, jobs, cores)
        finally:
            if ours:
                ray.shutdown()

    return execute


def _connect(ray: Any, address: str) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}  # stdout is for results
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise OptionError(
            f"--ray {address}: the cluster cannot be reached ({told}); expected the address of one, as `ray start "
            "--head` prints it, or local"
        ) from error


def _execute(ray: Any, jobs: Sequence[Job], cores: int) -> Iterator[tuple[Job, Finished]]:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = [gpus_of(job, machines, cores) for job in jobs]  # all, before the first begins
    waiting = {}
    for job, gpus in zip(jobs, needed, strict=True):
        task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=_RETRIES)(in_worker)
        waiting[task.remote(job, os.getcwd(), cores)] = job
    while waiting:
        (reference, *_), _ = ray.wait(list(waiting), num_returns=1)
        job = waiting.pop(reference)
        try:
            yield job, ray.get(reference)
        except ray.exceptions.RayError as error:
            told = " ".join(str(error).split())[:500]
            lost = f"{type(error).__name__}, after {_RETRIES} retries where a worker was lost"
            yield job, job.ended(error=f"{lost}: {told}")


def gpus_of(job: Job, machines: Sequence[Mapping[str, float]], cores: int) -> int:
    """How many GPUs a run needs, 0 or 1; ``machines``: the resources of each, as Ray counts them.

    Raises OptionError for what no machine has: Ray would wait for one for ever.
    """
    most = int(max((machine.get("CPU", 0) for machine in machines), default=0))
    if most < cores:
        raise OptionError(
            f"--cores {cores}: no machine of the cluster has so many, the largest has {most}; expected no more"
        )
    device = job.run.config.run.device
    fits = any(machine.get("GPU", 0) >= 1 and machine.get("CPU", 0) >= cores for machine in machines)
    if device.startswith("cuda:") and device != "cuda:0":
        raise OptionError(
            f"--device {device}: a run on a cluster sees one GPU, the one that it is given; expected cuda, auto or cpu"
        )
    if device.startswith("cuda") and not fits:
        raise OptionError(
            f"--device {device}: no machine of the cluster has a GPU and --cores {cores} beside it; expected one; "
            'start Ray where there is one, or give device = "cpu" in [run]'
        )
    return int(fits and device != "cpu")


def in_worker(job: Job, folder: str, cores: int) -> Finished:
    """Make a run in a process of Ray's, in the folder of the one that asked for it."""
    tune_process(limited=job.run.config.run.max_memory is not None, threads=cores)
    work_in(folder)
    return perform(job)
