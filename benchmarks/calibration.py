"""Seconds and peak memory of calibration, by block and in total, and how they grow.

    python -m benchmarks.calibration resnet20.onnx resnet18 resnet50 --presets fast balanced --samples 64 --iters 21
    python -m benchmarks.calibration resnet18 --sweep images --samples 64 --iters 21

A model is an ONNX file or the name of a network in `benchmarks/architectures.py`, with random weights. Images are
noise; every row runs in a process of its own. ``--samples`` and ``--iters`` cut the preset's budget to what the
machine can do: the column "extrapolated" then says what the whole of it would take. With ``--output`` rows are kept
as JSON lines, and rows that are there are not run again.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.architectures import ARCHITECTURES, BasicBlock, ResNet, build, export, randomized
from benchmarks.common import append_line, markdown, parse_setting, read_lines
from benchmarks.measure import MEGABYTE, BlockTime, Job, Measurement, measure
from pdq_export.config.method import METHODS, PRESETS
from pdq_export.errors import PdqError

# What --sweep varies where --values does not say: images, steps a block, side of the image, units in each stage.
SWEEPS = {"images": (32, 64, 128), "iters": (11, 21, 41), "resolution": (64, 128, 224), "depth": (1, 2, 4)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: the model's ``path``, and what is run on it; ``label`` is the first cell."""

    label: str
    path: Path
    job: Job


def make_model(name: str, folder: Path, *, resolution: int, depth: int | None = None) -> tuple[str, Path]:
    """What to call a model, and its file: one that is there, or a network with random weights, exported.

    ``depth``: instead of a named network a ResNet of so many basic units in each of its four stages. Raises
    FileNotFoundError for a name that is neither a network nor a file.
    """
    if depth is None and name not in ARCHITECTURES:
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name}: no such file; expected one, or one of {', '.join(ARCHITECTURES)}")
        return Path(name).name, Path(name)
    if depth is None:
        label, network = f"{name}, {resolution}x{resolution}", build(name, seed=0)
    else:
        label = f"basic units {depth}+{depth}+{depth}+{depth}, {resolution}x{resolution}"
        network = randomized(lambda: ResNet(BasicBlock, (depth,) * 4, 1000), seed=0)
    path = folder / f"{label}.onnx"
    if not path.exists():
        export(network, path, keep_batch_norm=True, image_size=resolution)
    return label, path


def plan_rows(options: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows that the command line asks for."""
    if options.sweep:
        return _swept(options, folder)
    rows = []
    for name in options.models:
        label, path = make_model(name, folder, resolution=options.resolution)
        for device in options.devices:
            for preset in options.presets:
                job = _job(options, label, preset, device, options.budget)
                rows.append(Row(label=f"{label}, {preset}, {device}", path=path, job=job))
    return rows


def _swept(options: argparse.Namespace, folder: Path) -> list[Row]:
    option = {"images": "samples", "iters": "iters"}.get(options.sweep)
    rows = []
    for value in options.values or SWEEPS[options.sweep]:
        resolution = value if options.sweep == "resolution" else options.resolution
        depth = value if options.sweep == "depth" else None
        name, path = make_model(options.models[0], folder, resolution=resolution, depth=depth)
        budget = {**options.budget, **({} if option is None else {option: str(value)})}
        job = _job(options, name, options.presets[0], options.devices[0], budget)
        rows.append(Row(label=str(value), path=path, job=job))
    return rows


def _job(options: argparse.Namespace, model: str, preset: str, device: str, budget: dict[str, str]) -> Job:
    return Job(
        model=model,
        preset=preset,
        device=device,
        bits=options.bits,
        method=options.method,
        overrides={**options.set, **budget},
        max_memory=options.max_memory,
        threads=options.threads,
    )


def run(row: Row, output: Path | None) -> Measurement:
    """Measure in a fresh process, whose peak memory is the row's own, or take what ``output`` holds.

    Raises PdqError, and BrokenProcessPool where the process was killed, as for want of memory.
    """
    for fields in [] if output is None else reversed(read_lines(output)):
        if fields["job"] == dataclasses.asdict(row.job):
            blocks = tuple(BlockTime(**block) for block in fields["blocks"])
            return Measurement(**{**fields, "job": row.job, "blocks": blocks})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(measure, row.job, row.path).result()
    if output is not None:
        append_line(output, json.dumps(dataclasses.asdict(found), sort_keys=True, allow_nan=False))
    return found


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


# Head and cell of every column of the table of totals.
COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "model MB": lambda m: f"{m.model_bytes / MEGABYTE:.1f}",
    "blocks": lambda m: str(len(m.blocks)),
    "images": lambda m: str(m.job.options().samples),
    "steps a block": lambda m: "–".join(map(str, sorted({b.steps for b in m.blocks}))),
    "seconds": lambda m: f"{m.seconds:.1f}",
    "CPU s": lambda m: f"{m.cpu_seconds:.1f}",
    "ms a step, all blocks": lambda m: _number(_milliseconds(m.step_seconds), ".1f"),
    "s besides steps": lambda m: _number(m.other_seconds, ".1f"),
    "of it fixed": lambda m: _number(m.fixed_seconds, ".1f"),
    "extrapolated to the preset, s": lambda m: _number(m.extrapolated(), ",.0f"),
    "peak MB": lambda m: f"{m.peak_memory / MEGABYTE:,.0f}",
    "of it until export": lambda m: f"{m.calibration_memory / MEGABYTE:,.0f}",
    "before the call": lambda m: f"{m.start_memory / MEGABYTE:,.0f}",
    "CUDA MB": lambda m: "" if m.device_memory is None else f"{m.device_memory / MEGABYTE:,.0f}",
}


def table(head: str, found: Sequence[tuple[str, Measurement]]) -> str:
    """A row a measurement, with the first cell given."""
    return markdown([head, *COLUMNS], [[label, *(cell(m) for cell in COLUMNS.values())] for label, m in found])


def block_table(found: Measurement) -> str:
    """A row a block."""
    rows = [
        [
            *(b.block, f"{b.seconds:.2f}", str(b.steps)),
            *(_number(_milliseconds(b.step_seconds), ".2f"), _number(b.other_seconds, ".2f")),
        ]
        for b in found.blocks
    ]
    return markdown(["block", "seconds", "steps", "ms a step", "s besides steps"], rows)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help=f"ONNX files, or {', '.join(ARCHITECTURES)}")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["balanced"])
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    parser.add_argument("--bits", default="4/4", metavar="W/A")
    parser.add_argument("--method", choices=list(METHODS), default="pdq")
    parser.add_argument("--samples", help="images, instead of the preset's")
    parser.add_argument("--iters", help="steps a block, instead of the preset's")
    parser.add_argument("--set", nargs="+", type=parse_setting, action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--max-memory", help="handed to quantize, such as 4GB")
    parser.add_argument("--resolution", type=int, default=224, help="of networks with random weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweep", choices=list(SWEEPS), help="vary one quantity, for the first model and preset")
    parser.add_argument("--values", nargs="+", type=int, help="of what is varied")
    parser.add_argument("--blocks", action="store_true", help="a table of the blocks of each row as well")
    parser.add_argument("--output", type=Path, help="JSON lines; rows that are there are not run again")
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    given = {"samples": options.samples, "iters": options.iters}
    options.budget = {name: value for name, value in given.items() if value is not None}
    if not options.models and options.sweep != "depth":
        parser.error("expected a model")
    if options.sweep == "resolution" and options.models[0] not in ARCHITECTURES:
        parser.error("--sweep resolution needs a network with random weights: a file has its resolution")
    options.models = options.models or [""]  # a depth is a network of its own
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where a row failed, which does not stop the others."""
    options = parse_arguments(arguments)
    found: list[tuple[str, Measurement]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = plan_rows(options, Path(folder))
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        for row in rows:
            try:
                found.append((row.label, run(row, options.output)))
            except (PdqError, BrokenProcessPool) as error:
                print(f"{row.label}: {error}", file=sys.stderr, flush=True)
                continue
            print(f"{row.label}: {found[-1][1].seconds:.1f} s", file=sys.stderr, flush=True)
    if found:
        print(table(options.sweep or "model, preset, device", found))
    for label, measurement in found if options.blocks else []:
        print(f"\n{label}:\n\n{block_table(measurement)}")
    return 0 if len(found) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
