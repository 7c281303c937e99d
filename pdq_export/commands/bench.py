"""`bench`: what files take in onnxruntime on this machine, beside the first of them."""

import dataclasses
import math
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pdq_export.commands.benchmark import BenchedFile, Benchmark, Latency, Loading
from pdq_export.commands.progress import ProgressCallback, Tell
from pdq_export.errors import ModelError, OptionError, ValidationError
from pdq_export.exhaustion import tells_of_memory
from pdq_export.graph.external import external_locations
from pdq_export.graph.load import read_structure
from pdq_export.report import ModelInfo
from pdq_export.validate import Session, Spread, Timing, Value, kernels_saturate, may_reuse_memory, open_session
from pdq_export.validate.fresh import Fresh, measure_fresh
from pdq_export.validate.latency import (
    MOST_ROUNDS,
    counts_cpu_time,
    load_average,
    ratio_by_round,
    time_sessions,
    usable_cores,
)
from pdq_export.validate.noise import NoiseInput, choose_sizes, random_batch
from pdq_export.validate.pair import match_inputs

SECONDS, LOADS = 1.0, 5
_FEWEST_FOR_P95 = 20  # calls: of fewer, the slowest is more than a twentieth


@tells_of_memory(calibrates=False)
def bench_models(
    models: Sequence[str | Path],
    *,
    batch: int | Sequence[int] | None = None,
    threads: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = SECONDS,
    loads: int = LOADS,
    progress: ProgressCallback | None = None,
) -> Benchmark:
    """Measure ONNX files in onnxruntime on the CPU, in turn and on the same random inputs, beside the first of them.

    ``batch``: sizes, by default 1 or what the files fix. ``threads``: of one operator; on one, latency is CPU time.
    ``shapes``: of inputs by name, where files leave axes free; images are 3 x 224 x 224 without. ``seconds``: about how
    long to time each file at each batch size; ``loads``: how many fresh processes load each, for load time and memory.

    Raises OptionError, ModelError or ValidationError, with the file's name, where options are wrong, where a file does
    not load or run, and where its inputs are not those of the first.
    """
    tell = Tell(progress)
    _check_options(threads=threads, seconds=seconds, loads=loads)
    if isinstance(models, str | Path) or not models:
        raise OptionError("no list of ONNX files is given to bench; expected one file or more, as [PATH, ...]")
    paths = [Path(model) for model in models]
    before = load_average()
    tell.stage("load")
    files = [_info(path) for path in paths]
    sessions, values = _open(paths, threads)
    inputs = choose_sizes(values, shapes or {})
    sizes = _batches(inputs, batch)
    tell.stage("time")
    timings = {size: _time(paths, sessions, inputs, size, threads, seconds) for size in sizes}
    tell.stage("fresh")
    largest = random_batch(inputs, max(sizes))
    fresh = list(_load(paths, sessions, largest, threads, loads))
    return Benchmark(
        files=tuple(
            BenchedFile(
                name=info.name,
                sha256=info.sha256,
                size=info.size,
                size_ratio=info.size / files[0].size,
                config=session.config,
                renamed=_renamed(inputs, session),
                latency=tuple(_latency(size, timings[size], index) for size in sizes),
                loading=_loading(max(sizes), fresh, index) if fresh else None,
            )
            for index, (info, session) in enumerate(zip(files, sessions, strict=True))
        ),
        machine=_machine(threads, before),
        settings={
            "batch": list(sizes),
            "seconds": seconds,
            "loads": loads,
            "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
        },
        inputs=tuple(
            {"name": one.value.name, "type": one.value.kind, "shape": list(one.sizes), "chosen": one.chosen}
            for one in inputs
        ),
    )


def _check_options(*, threads: int, seconds: float, loads: int) -> None:
    for name, value, least in (("--threads", threads, 1), ("--loads", loads, 0)):
        if type(value) is not int or value < least:
            raise OptionError(f"{name} {value!r}: expected a whole number, {least} or more")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise OptionError(f"--seconds {seconds!r}: expected a number, 0 or more")


def _info(path: Path) -> ModelInfo:
    others = [path.parent / location for location in external_locations(read_structure(path))]
    try:
        return ModelInfo.of_files(path, *others)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(paths: Sequence[Path], threads: int) -> tuple[list[Session], Sequence[Value]]:
    """A session of each file, which takes batches as the first does, and the inputs with what all say of them."""
    sessions = [open_session(path, threads=threads) for path in paths]
    values: Sequence[Value] = sessions[0].takes
    for path, session in zip(paths, sessions, strict=True):
        try:
            pairs = match_inputs(values, session.takes)
            values = [_merge(a, b) for a, b in pairs]
        except ModelError as error:
            raise ModelError(f"{path} beside {paths[0]}: {error}") from error
        session.rename([b.name for _, b in pairs], {name: name for name in session.outputs})
    return sessions, values


def _merge(first: Value, second: Value) -> Value:
    assert first.dtype is not None
    assert second.dtype is not None
    if (first.dtype.kind == "f") != (second.dtype.kind == "f"):
        raise ModelError(
            f"input {second} is {first} in the first; expected the same kind of numbers; measure them one by one"
        )
    if first.shape is None or second.shape is None:
        return first if second.shape is None else dataclasses.replace(first, shape=second.shape)
    for a, b in zip(first.shape, second.shape, strict=True):
        if a is not None and b is not None and a != b:
            raise ModelError(f"input {second} is {first} in the first; expected the same shape; export both alike")
    sizes = zip(first.shape, second.shape, strict=True)
    return dataclasses.replace(first, shape=tuple(a if a is not None else b for a, b in sizes))


def _batches(inputs: Sequence[NoiseInput], asked: int | Sequence[int] | None) -> tuple[int, ...]:
    """The batch sizes: those that were asked for, where an axis follows them, or the one that there is."""
    sizes = () if asked is None else (asked,) if isinstance(asked, int) else tuple(asked)
    for size in sizes:
        if type(size) is not int or size < 1:
            raise OptionError(f"--batch {size!r}: expected a whole number, 1 or more")
    if any(None in one.sizes for one in inputs):
        return tuple(dict.fromkeys(sizes)) or (1,)
    fixed = next((size for one in inputs for size in one.sizes[:1] if size is not None), 1)
    if other := [size for size in sizes if size != fixed]:
        raise OptionError(
            f"--batch {other[0]}: the batch size is fixed to {fixed}, by --shape or by a file; leave --batch out, give "
            "1 for the first axis of --shape, or export the files with a dynamic batch axis"
        )
    return (fixed,)


def _time(
    paths: Sequence[Path],
    sessions: Sequence[Session],
    inputs: Sequence[NoiseInput],
    size: int,
    threads: int,
    seconds: float,
) -> list[Timing]:
    batch = random_batch(inputs, size)
    for path, session in zip(paths, sessions, strict=True):
        try:
            session.run(batch)
        except ValidationError as error:
            raise ValidationError(f"{path}: {error}; {_remedy(inputs, size)}") from error
    return time_sessions(sessions, batch, threads=threads, least=seconds / MOST_ROUNDS, seconds=seconds * len(sessions))


def _renamed(inputs: Sequence[NoiseInput], session: Session) -> dict[str, str]:
    pairs = zip((one.value.name for one in inputs), session.inputs, strict=True)
    return {name: own for name, own in pairs if name != own}


def _remedy(inputs: Sequence[NoiseInput], size: int) -> str:
    shape = ", ".join(f"{one.value.name}={'x'.join(map(str, one.shape(size)))}" for one in inputs)
    return f"the inputs are random, of shape {shape}; give others with --shape or --batch"


def _load(
    paths: Sequence[Path],
    sessions: Sequence[Session],
    batch: tuple[NDArray[Any], ...],
    threads: int,
    loads: int,
) -> Iterator[list[Fresh]]:
    """Round by round, each file in a process of its own, with the session options that it is timed with."""
    spinning = {"session.intra_op.allow_spinning": "0"}
    for _ in range(loads):
        yield [
            measure_fresh(
                path,
                feed=session.feed(batch),
                threads=threads,
                config=spinning | session.config,
                reuse_memory=may_reuse_memory(path),
            )
            for path, session in zip(paths, sessions, strict=True)
        ]


def _latency(size: int, timings: Sequence[Timing], index: int) -> Latency:
    timing = timings[index]
    count = len(timing.calls)
    return Latency(
        batch=size,
        median_ms=statistics.median(timing.calls),
        p95_ms=float(np.quantile(timing.calls, 0.95)) if count >= _FEWEST_FOR_P95 else None,
        samples_per_second=size * count * 1e3 / max(sum(timing.calls), 1e-9),
        calls=count,
        rounds=len(timing.milliseconds),
        ratio=timing.ratio(timings[0]) if index else None,
    )


def _loading(batch: int, rounds: Sequence[Sequence[Fresh]], index: int) -> Loading:
    def values(field: str, file: int = index) -> list[float] | None:
        found = [getattr(fresh[file], field) for fresh in rounds]
        return None if None in found else found

    def median(field: str) -> float | None:
        found = values(field)
        return None if found is None else statistics.median(found)

    def ratio(field: str) -> Spread | None:
        own, first = values(field), values(field, 0)
        # Of what is too small for the kernel's pages there is no ratio.
        return ratio_by_round(own, first) if index and own and first and min(first) > 0 else None

    return Loading(
        cpu_ms=1e3 * statistics.median(fresh[index].cpu for fresh in rounds),
        wall_ms=1e3 * statistics.median(fresh[index].wall for fresh in rounds),
        load_peak=median("load_peak"),
        after=median("after"),
        peak=median("peak"),
        batch=batch,
        processes=len(rounds),
        cpu_ratio=ratio("cpu"),
        wall_ratio=ratio("wall"),
        load_peak_ratio=ratio("load_peak"),
        peak_ratio=ratio("peak"),
    )


def _machine(threads: int, load_before: float | None) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "onnxruntime": str(onnxruntime.__version__),
        "threads": threads,
        "clock": "cpu" if counts_cpu_time(threads) else "wall",
        "saturates": kernels_saturate(),
        "load_before": load_before,
        "load_after": load_average(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
