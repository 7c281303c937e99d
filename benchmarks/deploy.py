"""Latency, size and integer nodes by target and bits, against FP32 and onnxruntime's own static INT8.

    python -m benchmarks.deploy resnet18 resnet50 --output deploy.jsonl

A model is an ONNX file or the name of a network in `benchmarks/architectures.py`, with random weights. Latency and size
do not depend on how well weights are rounded, so files are calibrated by rounding to nearest, on a few noise images;
`pdq_export.convert` writes the targets that share a calibration. All files of a model are timed in turn.
With ``--output`` a finished model is a JSON line, and what is there is not run again.
"""

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

import pdq_export
from benchmarks.calibration import make_model
from benchmarks.common import Array, append_line, digest, markdown, noise, quantize_with_onnxruntime, read_lines
from pdq_export.errors import PdqError, ValidationError
from pdq_export.graph.load import external_files
from pdq_export.graph.save import save_model
from pdq_export.targets import find_target, target_names
from pdq_export.validate import Session, Timing, count_kernels, needed_config, time_files

NETWORKS = ("resnet18", "resnet50", "mobilenetv2", "regnetx_600m", "mnasnet")
TARGETS = ("ort", "native", "qcdq", "tensorrt")
RESOLUTION = 224
SAMPLES = 4
FLOAT, OWN_INT8 = "FP32", "onnxruntime INT8"

# What files for onnxruntime have to hold below 8 bits, by model where it is not for all.
MOST_OF_INT8 = 1.08
MOST_OF_FLOAT = {f"{name}, 224x224": 0.45 for name in ("resnet18", "resnet50", "regnetx_600m")}
MOST_OF_SIZE = {
    "resnet18, 224x224": {"4/4": 0.132, "3/3": 0.103, "2/2": 0.08},
    "resnet50, 224x224": {"4/4": 0.14, "2/2": 0.08},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is written and timed. ``seconds``: least time of one timing."""

    model: str
    targets: Sequence[str]
    bits: Sequence[str]
    batches: Sequence[int]
    threads: int
    rounds: int
    seconds: float
    model_sha256: str = ""  # lines of older outputs lack it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployed:
    """One file, and what onnxruntime makes of it.

    ``target``: of pdq-export, or FP32, or onnxruntime INT8. ``size`` in bytes. ``integer``, ``floating``: weighted
    nodes of the graph that onnxruntime runs, by kernel; ``between_pairs``: other nodes that run in float between
    integers. ``config``: session options without which it does not load. ``milliseconds``: per call, a number a round,
    by batch size. ``failure``: why there is nothing of this.
    """

    target: str
    bits: str | None = None
    size: int = 0
    integer: Mapping[str, int] = dataclasses.field(default_factory=dict)
    floating: Mapping[str, int] = dataclasses.field(default_factory=dict)
    between_pairs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    milliseconds: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    failure: str | None = None

    @property
    def name(self) -> str:
        """Target and bits."""
        return f"{self.target} {self.bits or ''}".strip()

    def timing(self, batch: int) -> Timing:
        """The times at one batch size."""
        return Timing(milliseconds=tuple(self.milliseconds[str(batch)]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """All files of one model: FP32, onnxruntime's INT8, then those of pdq-export."""

    work: Work
    rows: Sequence[Deployed]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Result":
        """From a line of the output."""
        rows = [Deployed(**row) for row in fields["rows"]]
        return cls(work=Work(**fields["work"]), rows=rows, versions=fields["versions"])


def write_files(model: Path, work: Work, folder: Path) -> Iterator[tuple[str, str | None, Path | PdqError]]:
    """Target, bits and file, or why there is none; FP32 first."""
    images = noise(model, SAMPLES)
    yield FLOAT, None, model
    yield OWN_INT8, None, quantize_with_onnxruntime(model, images.images, folder)
    for bits in work.bits:
        calibrated: onnx.ModelProto | None = None
        for target in work.targets:
            if min(map(int, bits.split("/"))) < find_target(target).fewest_bits:
                continue
            convertible, path = find_target(target).convertible, folder / f"{target}-{bits.replace('/', '-')}.onnx"
            try:
                if convertible and calibrated is not None:
                    save_model(path, pdq_export.convert(calibrated, target))
                else:
                    written = pdq_export.quantize(
                        model, bits=bits, calib=images, target=target, output=path, method="nearest", device="cpu"
                    ).model
                    calibrated = written if convertible else calibrated
            except PdqError as error:
                yield target, bits, error
            else:
                yield target, bits, path


def examine(target: str, bits: str | None, path: Path, batches: Sequence[Array]) -> Deployed:
    """What onnxruntime makes of a file; the row says where it does not load, or fails on one of the batches."""
    size = sum(file.stat().st_size for file in (path, *external_files(path)))
    try:
        config = needed_config(path)
        session = Session(path, config=config)
        for batch in batches:
            session.run(batch)
        kernels = count_kernels(path, config)
    except ValidationError as error:
        return Deployed(target=target, bits=bits, size=size, failure=str(error).replace(str(path), path.name))
    return Deployed(
        target=target,
        bits=bits,
        size=size,
        integer=kernels.integer,
        floating=kernels.floating,
        between_pairs=kernels.between_pairs,
        config=config,
    )


def run(model: Path, work: Work) -> Result:
    """Write all files of a model and time those that run. Raises PdqError where FP32 does not."""
    batches = [noise(model, size, seed=1).images for size in work.batches]
    rows, paths = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for target, bits, path in write_files(model, work, Path(folder)):
            if isinstance(path, PdqError):
                rows.append(Deployed(target=target, bits=bits, failure=str(path)))
                continue
            rows.append(examine(target, bits, path, batches))
            paths[rows[-1].name] = path
        for row in rows[:2]:
            if row.failure is not None:
                raise ValidationError(f"{row.name}: {row.failure}")
        running = {row.name: paths[row.name] for row in rows if row.failure is None}
        timed: dict[str, dict[str, Sequence[float]]] = {name: {} for name in running}
        for size, batch in zip(work.batches, batches, strict=True):
            found = time_files(
                list(running.values()), batch, threads=work.threads, rounds=work.rounds, least=work.seconds
            )
            for name, timing in zip(running, found, strict=True):
                timed[name][str(size)] = timing.milliseconds
    rows = [dataclasses.replace(row, milliseconds=timed.get(row.name, {})) for row in rows]
    versions = {"pdq-export": pdq_export.__version__, "onnxruntime": str(onnxruntime.__version__)}
    return Result(work=work, rows=rows, versions=versions)


def missed(row: Deployed, result: Result) -> list[str]:
    """The limits that a file for onnxruntime does not hold."""
    model, (floating, own) = result.work.model, result.rows[:2]
    if row.target != "ort" or row.bits == "8/8":
        return []
    if row.failure is not None:
        return ["does not run"]
    found = [f"float {kernel}" for kernel in row.floating if "Conv" in kernel]
    ratios = [("size", row.size / floating.size, MOST_OF_SIZE.get(model, {}).get(row.bits or ""))]
    for batch in result.work.batches:
        for reference, most in ((own, MOST_OF_INT8), (floating, MOST_OF_FLOAT.get(model))):
            ratio = row.timing(batch).ratio(reference.timing(batch))
            ratios.append((f"x {reference.name} at batch {batch}", ratio.median, most))
    return found + [f"{what}: {ratio:.4f} > {most}" for what, ratio, most in ratios if most and ratio > most]


def table(result: Result) -> str:
    """A row a file: size, nodes, and by batch size milliseconds and ratios with their quartiles."""
    work, (floating, own) = result.work, result.rows[:2]
    head = ["file", "kB", "x size", "integer nodes", "float nodes"]
    for batch in work.batches:
        head += [f"batch {batch}: ms", "x FP32", "x INT8"]
    lines = []
    for row in result.rows:
        cells = [row.name, f"{row.size / 1000:,.0f}", f"{row.size / floating.size:.3f}"]
        cells += [_kernels(row.integer), _kernels(row.floating)]
        if row.between_pairs:
            cells[-1] += f"; between pairs: {_kernels(row.between_pairs)}"
        for batch in work.batches if row.failure is None else ():
            timing = row.timing(batch)
            cells.append(f"{timing.median:.1f}")
            for reference in (floating, own):
                ratio = timing.ratio(reference.timing(batch))
                cells.append(f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})")
        lines.append([*cells, *[""] * (len(head) - len(cells)), _remark(row, result)])
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    title = f"**{work.model}** ({versions}; threads: {work.threads}; {work.rounds} rounds)"
    return f"{title}\n\n{markdown([*head, 'remarks'], lines)}"


def _kernels(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kernel}" for kernel, count in counts.items()) or "0"


def _remark(row: Deployed, result: Result) -> str:
    needed = ", ".join(f"{key}={value}" for key, value in row.config.items())
    texts = [row.failure] if row.failure else [f"loads only with {needed}"] if needed else []
    limits = missed(row, result)
    if row.target == "ort" and row.bits != "8/8":
        texts.append("missed: " + ", ".join(limits) if limits else "limits held")
    return "; ".join(texts).replace("|", "/")


def read(output: Path | None) -> list[Result]:
    """The finished models of a file."""
    return [] if output is None else [Result.of(fields) for fields in read_lines(output)]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETWORKS, help="ONNX files or networks with random weights")
    parser.add_argument("--targets", nargs="+", choices=target_names(), default=list(TARGETS))
    parser.add_argument("--bits", nargs="+", default=["8/8", "4/4", "2/2"], metavar="W/A")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=0.05, help="least time of one timing")
    parser.add_argument("--output", type=Path, help="JSON lines; models that are there are not run again")
    parser.add_argument("--table", action="store_true", help="print the tables of --output and run nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is missed")
    options = parser.parse_args(arguments)
    if options.table and options.output is None:
        parser.error("--table needs --output")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where a model failed, which does not stop the others, or with --check missed a limit."""
    options = parse_arguments(arguments)
    logging.getLogger("pdq_export").setLevel(logging.ERROR)  # noise on random weights gives no network worth a warning
    found, failed = read(options.output) if options.table else [], False
    for name in [] if options.table else options.models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                label, path = make_model(name, Path(folder), resolution=RESOLUTION)
                work = Work(
                    model=label,
                    model_sha256=digest(path.read_bytes()),
                    targets=options.targets,
                    bits=options.bits,
                    batches=options.batch,
                    threads=options.threads,
                    rounds=options.rounds,
                    seconds=options.seconds,
                )
                known = [result for result in read(options.output) if result.work == work]
                result = known[-1] if known else run(path, work)
            except (PdqError, OSError) as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
        if options.output is not None and not known:
            append_line(options.output, json.dumps(dataclasses.asdict(result), allow_nan=False))
        found.append(result)
        print(f"{label}: done", file=sys.stderr, flush=True)
    print("\n\n".join(table(result) for result in found))
    broken = options.check and any(missed(row, result) for result in found for row in result.rows)
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
