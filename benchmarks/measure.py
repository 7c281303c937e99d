"""One calibration, measured: seconds of every block and peak memory. `benchmarks.calibration` runs it in a process."""

import contextlib
import dataclasses
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import pdq_export
from benchmarks.common import StageClock, noise
from pdq_export.calibrate.block import BlockCalibrator
from pdq_export.commands.quantize import Progress
from pdq_export.config.method import CalibrationOptions, choose_options
from pdq_export.data import ImageSet
from pdq_export.spec import MAX_BITS, Block
from pdq_export.validate import BATCH_SIZE

MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is calibrated, and how. ``overrides``: fields of CalibrationOptions, the budget among them, as text."""

    model: str
    preset: str
    device: str
    bits: str
    method: str
    overrides: Mapping[str, str]
    max_memory: str | None
    threads: int

    def options(self) -> CalibrationOptions:
        """The options that are run; a network's family does not change a budget."""
        return self._chosen(self.overrides)

    def full(self) -> CalibrationOptions:
        """The same with the preset's number of images and steps."""
        others = {name: value for name, value in self.overrides.items() if name not in ("samples", "iters")}
        return self._chosen(others)

    def _chosen(self, overrides: Mapping[str, str]) -> CalibrationOptions:
        return choose_options(method=self.method, preset=self.preset, overrides=overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockTime:
    """``seconds``: from the last step of the block before it to its own last step; ``step_seconds``: of one step.

    ``bits``: the fewest of what it learns, which say how many steps it takes.
    What is not steps is correction, scale search and passes over all images; in the first block, reading the model
    and planning, too. None where too few steps were made to know the time of one.
    """

    block: str
    seconds: float
    steps: int
    step_seconds: float | None
    bits: int

    @property
    def other_seconds(self) -> float | None:
        """What the steps did not take."""
        return None if self.step_seconds is None else max(self.seconds - self.steps * self.step_seconds, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A finished `Job`. Memory in bytes.

    ``start_memory``: resident when quantize was called, with imports and images; ``calibration_memory``: the peak up
    to the export; ``peak_memory``: the peak of the whole run, with export and validation; ``device_memory``: the peak
    that torch allocated on a CUDA device. ``seconds``: from the call to the export. Where there are fewer images than
    the preset's: ``fixed_seconds``, of what does not depend on images and steps (planning, scales of weights), and
    ``search_seconds``, of what the images for scale search take.
    """

    job: Job
    blocks: tuple[BlockTime, ...]
    seconds: float
    cpu_seconds: float
    fixed_seconds: float | None
    search_seconds: float | None
    start_memory: int
    calibration_memory: int
    peak_memory: int
    device_memory: int | None
    model_bytes: int

    @property
    def step_seconds(self) -> float | None:
        """One step in each block; None where it is not known of one."""
        known = [block.step_seconds for block in self.blocks if block.step_seconds is not None]
        return sum(known) if len(known) == len(self.blocks) else None

    @property
    def other_seconds(self) -> float | None:
        """What the steps did not take."""
        if self.step_seconds is None:
            return None
        return max(self.seconds - sum(block.steps * (block.step_seconds or 0.0) for block in self.blocks), 0.0)

    def extrapolated(self) -> float | None:
        """Seconds that the preset's own budget would take; None where the time of a step is not known.

        Steps of each block in proportion to their number, scale search to its images, and everything else but what is
        fixed to the number of images.
        """
        if self.step_seconds is None or self.other_seconds is None:
            return None
        run, full = self.job.options(), self.job.full()
        fixed, search = self.fixed_seconds or 0.0, self.search_seconds or 0.0
        images = max(self.other_seconds - fixed - search, 0.0)
        search *= min(full.samples, full.search_samples) / min(run.samples, run.search_samples)
        images *= full.samples / run.samples
        steps = sum(full.for_block(block.bits).iters * (block.step_seconds or 0.0) for block in self.blocks)
        return steps + fixed + search + images


class BlockClock(StageClock):
    """Notes when the reports of a block's steps came, and memory when calibration is over.

    ``interval``: after how many steps the kinds of steps repeat. ``first``: the step after which they are timed.
    """

    def __init__(self, interval: int = 1, first: int = 1) -> None:
        super().__init__()
        self._interval, self._first = interval, first
        self._reports: dict[str, list[tuple[float, int]]] = {}
        self.calibration_memory = 0

    def __call__(self, at: Progress) -> None:
        """Take in one report of `pdq_export.quantize`."""
        super().__call__(at)
        if at.block is not None and at.block.step and not at.block.phase:  # what is done beside the steps has a phase
            self._reports.setdefault(at.block.block, []).append((self.now()[0], at.block.step))
        if at.stage == "export":
            self.calibration_memory = peak_memory()

    def blocks(self, bits: Mapping[str, int]) -> tuple[BlockTime, ...]:
        """All blocks that reported a step; ``bits``: the fewest that each learns."""
        found, before = [], self.start[0]
        for name, reports in self._reports.items():
            last, steps = reports[-1]
            time, step_seconds = last - before, self._step([at for at in reports if at[1] >= self._first])
            found.append(BlockTime(block=name, seconds=time, steps=steps, step_seconds=step_seconds, bits=bits[name]))
            before = last
        return tuple(found)

    def _step(self, reports: Sequence[tuple[float, int]]) -> float | None:
        """The mean of the steps after the first report, up to the last one a whole number of intervals later if any."""
        if not reports:
            return None
        first, first_step = reports[0]
        later = [(time, step) for time, step in reports if step - first_step >= self._interval]
        whole = [(time, step) for time, step in later if (step - first_step) % self._interval == 0]
        if not later:
            return None
        last, last_step = (whole or later)[-1]
        return (last - first) / (last_step - first_step)


def measure(job: Job, path: Path, *, extrapolates: bool = True, first: int = 1) -> Measurement:
    """Calibrate on noise of the model's shape, in this process; its peak memory is the process's own.

    ``extrapolates``: measure what `Measurement.extrapolated` asks for, too, which takes two runs with nothing learned.
    ``first``: the step after which steps are timed, one whose number is reported.
    """
    torch.set_num_threads(job.threads)
    images, judged = noise(path, job.options().samples, seed=0), noise(path, BATCH_SIZE, seed=1)
    start_memory, clock = peak_memory(), BlockClock(job.options().for_block(MAX_BITS).prediction_interval, first)
    more: dict[str, Any] = {} if job.max_memory is None else {"max_memory": job.max_memory}
    with _fewest_bits() as bits:
        pdq_export.quantize(
            path,
            bits=job.bits,
            calib=images,
            eval=judged,
            method=job.method,
            preset=job.preset,
            options=job.overrides,
            device=job.device,
            progress=clock,
            **more,
        )
    seconds, cpu_seconds = clock.until("export")
    peak = max(peak_memory(), clock.calibration_memory)  # the kernel counts in steps of some pages
    cut = extrapolates and job.options().samples < job.full().samples
    fixed, nearest = (_nearest_seconds(job, path, part) for part in (images.head(1), images)) if cut else (None, None)
    on_cuda = torch.device("cuda" if job.device == "auto" else job.device).type == "cuda" and torch.cuda.is_available()
    device_memory = torch.cuda.max_memory_allocated() if on_cuda else None
    return Measurement(
        job=job,
        blocks=clock.blocks(bits),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        fixed_seconds=fixed,
        search_seconds=None if fixed is None or nearest is None else max(nearest - fixed, 0.0),
        start_memory=start_memory,
        calibration_memory=clock.calibration_memory,
        peak_memory=peak,
        device_memory=device_memory,
        model_bytes=path.stat().st_size,
    )


@contextlib.contextmanager
def _fewest_bits() -> Iterator[Mapping[str, int]]:
    """Those of what blocks learn, by block, once each is begun."""
    found: dict[str, int] = {}
    fewest = BlockCalibrator.fewest_bits

    def noted(self: BlockCalibrator, block: Block) -> int:
        return found.setdefault(block.name, fewest(self, block))

    with mock.patch.object(BlockCalibrator, "fewest_bits", noted):
        yield found


class _EnoughError(Exception):
    """Ends a run of which only the beginning is wanted."""


def _nearest_seconds(job: Job, path: Path, images: ImageSet) -> float:
    """What the same file takes with rounding to nearest."""
    given = {name: value for name, value in job.overrides.items() if name in ("samples", "search_samples")}
    clock = StageClock()

    def watch(at: Progress) -> None:
        clock(at)
        if at.stage == "export":
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        pdq_export.quantize(
            path,
            bits=job.bits,
            calib=images,
            method="nearest",
            preset=job.preset,
            options=given,
            device=job.device,
            progress=watch,
        )
    return clock.until("export")[0]


def peak_memory() -> int:
    """The most that was resident so far, in bytes.

    On Linux from /proc: there ``ru_maxrss`` of a new process begins with what its parent held.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else 1024 * used
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
