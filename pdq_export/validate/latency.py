"""Latency of files in onnxruntime, interleaved: whatever else the machine does meets all of them alike."""

import dataclasses
import itertools
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from pdq_export.errors import ValidationError
from pdq_export.validate.runtime import Batch, Session, batch_size, open_session

logger = logging.getLogger(__name__)

SECONDS = 1.0  # of measuring, about, where nothing else is asked for
_LEAST = 0.005  # seconds of one timing, which repeats short calls
_FEWEST_ROUNDS, MOST_ROUNDS = 3, 61
_WARM_UP, _WARM_UP_SECONDS = 3, 0.1
_OWN_LOAD = 0.25  # what a calibration on all cores leaves in the average besides them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of a ratio over all rounds, and its quartiles."""

    median: float
    low: float
    high: float

    @property
    def spans_one(self) -> bool:
        """Whether the ratio may as well be 1: no difference is shown."""
        return self.low <= 1 <= self.high


def ratio_by_round(values: Sequence[float], others: Sequence[float]) -> Spread:
    """How many times ``others`` are ``values``, taken round by round."""
    middle, low, high = np.quantile(np.divide(values, others), [0.5, 0.25, 0.75])
    return Spread(median=float(middle), low=float(low), high=float(high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds a call of one model: ``milliseconds``, a mean a round; ``calls``, each by itself."""

    milliseconds: tuple[float, ...]
    calls: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Milliseconds a call in the median round."""
        return statistics.median(self.milliseconds)

    def ratio(self, other: "Timing") -> Spread:
        """How many times as long as ``other`` it takes, round by round."""
        return ratio_by_round(self.milliseconds, other.milliseconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyPair:
    """What a call takes in FP32 and quantized, on a batch of ``batch`` samples.

    ``float_ms``, ``quantized_ms``: medians, in milliseconds. ``ratio``: quantized to FP32. ``clips``: how many nodes
    hold activations to fewer than 8 bits, and ``clip_ratio`` what a call takes with them to what it takes without,
    which is with activations of 8 bits; None where there are none, or where the file does not run without them.
    ``load``: the load average of the machine, which has ``cores`` for this process; None where they are not known.
    """

    batch: int
    threads: int
    float_ms: float
    quantized_ms: float
    ratio: Spread
    clips: int = 0
    clip_ratio: Spread | None = None
    load: float | None = None
    cores: int | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether more ran on the machine than it has cores for: times then tell of the others, too."""
        return self.load is not None and self.cores is not None and self.load > self.cores + _OWN_LOAD


def measure_latency(
    original: bytes | str | Path,
    quantized: bytes | str | Path,
    batch: Batch,
    *,
    threads: int = 1,
    optimize: bool = True,
    inputs: Sequence[str] | None = None,
    seconds: float | None = None,
) -> LatencyPair:
    """Time a file beside the one that it was made of, and beside itself with 8-bit activations, on one batch.

    ``optimize``: of the original, see `Comparison`. ``inputs``: the quantized file's, in the order of the original's,
    by default its own. ``seconds``: about how long to measure, by default `SECONDS`.
    Raises ValidationError where a file does not load or run.
    """
    seconds = SECONDS if seconds is None else seconds
    wide, clips = _with_wide_activations(quantized)
    sessions = [Session(original, threads=threads, optimize=optimize)]
    for model in (quantized, wide):
        if model is None:
            continue
        try:
            session = open_session(model, threads=threads)
            session.rename(inputs or session.inputs, {name: name for name in session.outputs})
            session.run(batch)
        except ValidationError as error:
            if model is quantized:
                raise
            logger.warning("what activations below 8 bits cost is not measured: %s", error)
        else:
            sessions.append(session)
    least = min(_LEAST, seconds / MOST_ROUNDS)
    floating, low, *unclipped = time_sessions(sessions, batch, threads=threads, least=least, seconds=seconds)
    return LatencyPair(
        batch=batch_size(batch),
        threads=threads,
        float_ms=floating.median,
        quantized_ms=low.median,
        ratio=low.ratio(floating),
        clips=clips,
        clip_ratio=low.ratio(unclipped[0]) if unclipped else None,
        load=load_average(),
        cores=usable_cores(),
    )


def load_average() -> float | None:
    """How many threads have run or waited for a core in the last minute; None where that is not known."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return None


def usable_cores() -> int | None:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def try_latency(
    original: bytes | str | Path, quantized: bytes | str | Path, batch: Batch, **options: Any
) -> LatencyPair | None:
    """`measure_latency`; None, with a warning, where a file does not run on that batch: it may on larger ones."""
    try:
        return measure_latency(original, quantized, batch, **options)
    except ValidationError as error:
        logger.warning("latency is not measured: %s", error)
        return None


def time_files(
    models: Sequence[Path], batch: Batch, *, threads: int, rounds: int | None = None, least: float = _LEAST
) -> list[Timing]:
    """`time_sessions` of files with the session options that they need. Raises ValidationError where one fails."""
    sessions = [open_session(path, threads=threads) for path in models]
    return time_sessions(sessions, batch, threads=threads, rounds=rounds, least=least)


def time_sessions(
    sessions: Sequence[Session],
    batch: Batch,
    *,
    threads: int,
    rounds: int | None = None,
    least: float = _LEAST,
    seconds: float = SECONDS,
) -> list[Timing]:
    """Time each session once a round, in turn. Each timing repeats the call for at least ``least`` seconds.

    ``rounds``: by default as many as take about ``seconds``, 3 to 61. On one thread it is the CPU time of this thread
    that counts, which leaves out when others had the core. Raises ValidationError where a session does not run.
    """
    clock = _clock(threads)
    feeds = [session.feed(batch) for session in sessions]
    fed = list(zip(sessions, feeds, strict=True))
    repeats = [_repeats(session, feed, least) for session, feed in fed]
    calls: list[list[float]] = [[] for _ in sessions]

    def turn() -> list[float]:
        means = []
        for (session, feed), count, own in zip(fed, repeats, calls, strict=True):
            marks = [clock()]
            for _ in range(count):
                session.run_fed(feed)
                marks.append(clock())
            own.extend((after - before) * 1e3 for before, after in itertools.pairwise(marks))
            means.append((marks[-1] - marks[0]) / count * 1e3)
        return means

    start = time.perf_counter()
    taken = [turn()]
    if rounds is None:
        fits = seconds / max(time.perf_counter() - start, 1e-9)
        rounds = round(min(max(fits, _FEWEST_ROUNDS), MOST_ROUNDS))
    taken += [turn() for _ in range(rounds - 1)]
    return [
        Timing(milliseconds=means, calls=tuple(own)) for means, own in zip(zip(*taken, strict=True), calls, strict=True)
    ]


def counts_cpu_time(threads: int) -> bool:
    """Whether times on so many threads are CPU time."""
    return threads == 1 and sys.platform != "win32"  # where it goes in steps of 16 ms


def _clock(threads: int) -> Callable[[], float]:
    return time.thread_time if counts_cpu_time(threads) else time.perf_counter


def _repeats(session: Session, feed: Mapping[str, NDArray[Any]], least: float) -> int:
    begin = time.perf_counter()
    for _ in range(_WARM_UP):
        session.run_fed(feed)
        if time.perf_counter() - begin > _WARM_UP_SECONDS:
            break
    start = time.perf_counter()
    session.run_fed(feed)
    return max(1, round(least / max(time.perf_counter() - start, 1e-6)))


def _with_wide_activations(model: bytes | str | Path) -> tuple[bytes | None, int]:
    """The model without the Clips that hold UINT8 to fewer than 8 bits, None where it has none; and their number."""
    changed = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    graph = changed.graph
    scalars = {t.name: t for t in graph.initializer if t.data_type == TensorProto.UINT8 and not t.dims}

    given = {value.name for value in graph.output}

    def is_low(node: NodeProto) -> bool:
        if node.op_type != "Clip" or len(node.input) < 3 or node.input[2] not in scalars:
            return False
        if node.output[0] in given:
            return False
        return int(onnx.numpy_helper.to_array(scalars[node.input[2]])) < 128

    read: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [read.get(name, name) for name in node.input]
        if is_low(node):
            read[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    if not read:
        return None, 0
    del graph.node[:]
    graph.node.extend(kept)
    return bytes(changed.SerializeToString()), len(read)
