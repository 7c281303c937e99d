"""Size of each form of a file, and what it takes to load it in onnxruntime: time and peak memory, in fresh processes.

    python -m benchmarks.load resnet18 mobilenetv2 --bits 2/2 3/3 4/4 --output load.jsonl

A model is an ONNX file or the name of a network in `benchmarks/architectures.py`, with random weights. Nothing is
calibrated: sizes, and what loading takes, do not depend on what is learned, so files have estimated scales and random
integers. The forms of a model are loaded in turn, each in a process that has onnxruntime alone; ``--runtime`` gives it
another one.
"""

import argparse
import dataclasses
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pdq_export
from benchmarks.architectures import ARCHITECTURES
from benchmarks.calibration import make_model
from benchmarks.common import append_line, digest, markdown, parse_setting, read_lines
from pdq_export.commands.dry_run import dry_run
from pdq_export.commands.estimates import estimate_tensors
from pdq_export.commands.settle import choose, plan_options, settle
from pdq_export.config.option import INSPECT
from pdq_export.errors import PdqError, ValidationError
from pdq_export.spec import QuantizedTensor, QuantizedTensors
from pdq_export.validate.fresh import Fresh, measure_fresh
from pdq_export.work import PlannedModel, open_model

FLOAT, INT8 = "FP32", "ort 8/8"
RESOLUTION = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is loaded, and how often.

    ``forms``: a target, or one with ``:`` and the oldest onnxruntime that has to load it. ``added``: files by the name
    of their row. ``runtime``: folder with another onnxruntime. ``config``: session options.
    """

    model: str
    model_sha256: str
    forms: Sequence[str]
    bits: Sequence[str]
    added: Mapping[str, str]
    runtime: str
    config: Mapping[str, str]
    rounds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """One file; ``size`` in bytes. By round: CPU and wall seconds, and bytes over those before loading.

    ``failure``: why there are none.
    """

    name: str
    size: int
    cpu: Sequence[float] = ()
    wall: Sequence[float] = ()
    peak: Sequence[int] = ()
    after: Sequence[int] = ()
    failure: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """All files of one model, FP32 first."""

    work: Work
    rows: Sequence[Loaded]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Result":
        """From a line of the output."""
        rows = [Loaded(**row) for row in fields["rows"]]
        return cls(work=Work(**fields["work"]), rows=rows, versions=fields["versions"])


def write_forms(model: Path, work: Work, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each form: FP32, INT8 weights, what was asked for, what was added."""
    yield FLOAT, model
    asked = [(form, bits) for bits in work.bits for form in work.forms if f"{form} {bits}" != INT8]
    for form, bits in [("ort", "8/8"), *asked]:
        try:
            content = write_uncalibrated(model, form, bits)
        except PdqError as error:
            print(f"{work.model}, {form} {bits}: {error}", file=sys.stderr, flush=True)
            continue
        path = folder / f"{form.replace(':', '-')}-{bits.replace('/', '-')}.onnx"
        path.write_bytes(content)
        yield f"{form} {bits}", path
    yield from ((name, Path(path)) for name, path in work.added.items())


def write_uncalibrated(model: Path, form: str, bits: str) -> bytes:
    """A file with estimated scales and random integers; ``form`` as in `Work`. Raises PdqError where there is none."""
    target, _, runtime = form.partition(":")
    settled = settle(None, {"target": target, "bits": bits, "runtime": runtime or None}, command=INSPECT)
    file, _ = open_model(model)
    planned = PlannedModel.of(file, plan_options(settled, choose(settled)), settled.file)
    generator = np.random.default_rng(0)
    tensors: QuantizedTensors = {
        name: _with_integers(tensor, generator)
        for name, tensor in estimate_tensors(planned.prepared, planned.plan).items()
    }
    return dry_run(planned.prepared, planned.plan, target, loading=planned.loading, tensors=tensors).content


def _with_integers(tensor: QuantizedTensor, generator: np.random.Generator) -> QuantizedTensor:
    if tensor.integers is None:
        return tensor
    low, high = tensor.point.qmin, tensor.point.qmax
    return dataclasses.replace(tensor, integers=generator.integers(low, high + 1, tensor.integers.shape, np.int16))


def load(path: Path, work: Work) -> Fresh:
    """Load a file in a fresh process; raises ValidationError with what it said last where that fails."""
    python = [sys.executable, *(["-S"] if work.runtime else [])]
    environment = os.environ | {"PYTHONPATH": work.runtime} if work.runtime else None
    found = measure_fresh(path, config=work.config, python=python, environment=environment)
    if found.load_peak is None:
        raise ValidationError("memory is measured on Linux alone, where /proc/self/clear_refs can be written")
    return found


def run(model: Path, work: Work) -> Result:
    """Write all forms of a model and load them in turn, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        paths = dict(write_forms(model, work, Path(folder)))
        found: dict[str, list[Fresh]] = {name: [] for name in paths}
        failures: dict[str, str] = {}
        for _ in range(work.rounds):
            for name, path in paths.items():
                try:
                    if name not in failures:
                        found[name].append(load(path, work))
                except ValidationError as error:
                    failures[name] = str(error).replace(str(path), path.name)
        rows = [_row(name, path.stat().st_size, found[name], failures.get(name)) for name, path in paths.items()]
    runtimes = {fresh.onnxruntime for loads in found.values() for fresh in loads}
    versions = {"pdq-export": pdq_export.__version__, "onnxruntime": ", ".join(sorted(runtimes))}
    return Result(work=work, rows=rows, versions=versions)


def _row(name: str, size: int, loads: Sequence[Fresh], failure: str | None) -> Loaded:
    if failure is not None or not loads:
        return Loaded(name=name, size=size, failure=failure)
    return Loaded(
        name=name,
        size=size,
        cpu=[fresh.cpu for fresh in loads],
        wall=[fresh.wall for fresh in loads],
        peak=[fresh.load_peak for fresh in loads if fresh.load_peak is not None],
        after=[fresh.after for fresh in loads if fresh.after is not None],
    )


def table(result: Result) -> str:
    """A row a file: size, CPU time of loading with its quartiles, and memory; ratios of medians to FP32 and INT8."""
    work, (floating, own) = result.work, result.rows[:2]
    head = ["file", "kB", "x FP32", "load: CPU ms", "x FP32", "x INT8", "peak: MB", "over INT8", "afterwards: MB"]
    lines = []
    for row in result.rows:
        cells = [row.name, f"{row.size / 1000:,.0f}", f"{row.size / floating.size:.4f}"]
        if row.failure is not None or not row.cpu:
            lines.append([*cells, (row.failure or "").replace("|", "/"), *[""] * (len(head) - 4)])
            continue
        middle, low, high = (float(value) * 1e3 for value in np.quantile(row.cpu, [0.5, 0.25, 0.75]))
        cells.append(f"{middle:.0f} ({low:.0f}–{high:.0f})")
        cells += [f"{middle / 1e3 / statistics.median(o.cpu):.2f}" if o.cpu else "" for o in (floating, own)]
        peak = statistics.median(row.peak)
        cells += [f"{peak / 1e6:.0f}", f"{(peak - statistics.median(own.peak)) / 1e6:+.0f}" if own.peak else ""]
        lines.append([*cells, f"{statistics.median(row.after) / 1e6:.0f}"])
    title = f"**{work.model}** (onnxruntime {result.versions['onnxruntime']}; one thread; {work.rounds} rounds)"
    return f"{title}\n\n{markdown(head, lines)}"


def read(output: Path | None) -> list[Result]:
    """The finished models of a file."""
    return [] if output is None else [Result.of(fields) for fields in read_lines(output)]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(ARCHITECTURES), help="ONNX files or networks of ours")
    parser.add_argument("--forms", nargs="+", default=["ort"], metavar="TARGET[:VERSION]", help="for an onnxruntime")
    parser.add_argument("--bits", nargs="+", default=["2/2", "3/3", "4/4", "5/5", "6/6"], metavar="W/A")
    parser.add_argument(
        *("--add", "-a"), type=parse_setting, action="append", default=[], metavar="NAME=FILE", help="one more file"
    )
    parser.add_argument("--runtime", default="", metavar="FOLDER", help="with onnxruntime: pip install --target FOLDER")
    parser.add_argument(
        "--set", type=parse_setting, action="append", default=[], metavar="NAME=VALUE", help="session options"
    )
    parser.add_argument("--rounds", type=int, default=7, help="0: sizes alone")
    parser.add_argument("--output", type=Path, help="JSON lines; models that are there are not run again")
    parser.add_argument("--table", action="store_true", help="print the tables of --output and run nothing")
    options = parser.parse_args(arguments)
    if options.table and options.output is None:
        parser.error("--table needs --output")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where a model failed, which does not stop the others."""
    options = parse_arguments(arguments)
    logging.getLogger("pdq_export").setLevel(logging.ERROR)
    found, failed = read(options.output) if options.table else [], False
    for name in [] if options.table else options.models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                label, path = make_model(name, Path(folder), resolution=RESOLUTION)
                work = Work(
                    model=label,
                    model_sha256=digest(path.read_bytes()),
                    forms=options.forms,
                    bits=options.bits,
                    added=dict(options.add),
                    runtime=options.runtime,
                    config=dict(options.set),
                    rounds=options.rounds,
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
    print("\n\n".join(map(table, found)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
