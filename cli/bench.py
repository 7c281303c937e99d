"""``pdq-export bench``: what files take in onnxruntime on this machine, beside the first of them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdq_export.errors import OptionError, printable
from pdq_export.nearby import near_path

from .command import Frame, Outcome, command
from .paths import ModelPath
from .render import session_note

if TYPE_CHECKING:
    from pdq_export.commands.benchmark import Benchmark
    from pdq_export.validate import Spread

_WITHIN = "≈"


class _ModelPath(ModelPath):
    """A file to read; a number where none is has been meant for --batch."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raise OptionError for a number that is no file."""
        if str(value).isdigit() and not Path(value).exists():
            raise OptionError(
                f"{value}: no such file; expected an ONNX model; several batch sizes are --batch 1 --batch {value}"
                f"{near_path(value, '.onnx')}"
            )
        return super().convert(value, param, ctx)


@command(
    summary="Measure latency, load time, memory and size of files beside each other.",
    example="pdq-export bench model.onnx model-8-8.onnx model-4-4.onnx --batch 1 --batch 8",
    json_schema="pdq_export.commands.benchmark",
)
@click.argument("models", type=_ModelPath(), metavar="A.onnx [B.onnx ...]", nargs=-1, required=True)
@click.option(
    "--batch",
    type=click.INT,
    multiple=True,
    metavar="N",
    help="Samples in a call; again for more.  [default: 1, or what the files fix]",
)
@click.option("--threads", type=click.INT, default=1, metavar="N", show_default=True, help="Threads of one operator.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1x3x224x224",
    help="Shape of an input that leaves axes free; again for more.  [default of images: 3x224x224]",
)
@click.option(
    "--seconds",
    type=click.FLOAT,
    default=1.0,
    metavar="S",
    show_default=True,
    help="About how long to time each file at each batch size.",
)
@click.option(
    "--loads",
    type=click.INT,
    default=5,
    metavar="N",
    show_default=True,
    help="Fresh processes that load and run each file, for load time and memory; 0 for none.",
)
def bench(
    frame: Frame, *, models: tuple[Path, ...], batch: tuple[int, ...], shapes: tuple[str, ...], **numbers: Any
) -> Outcome:
    """Measure ONNX files in onnxruntime on the CPU, in turn and on the same random inputs.

    Shown are latency (median and 95th percentile of single calls), throughput, load time and peak memory in fresh
    processes, and size; each beside the first file's, with the quartiles over rounds in which every file has its turn:
    what else the machine does meets all of them alike. Where the ratio may as well be 1, it says so.
    """
    given = _parse_shapes(shapes)
    with frame.progress() as progress, frame.work():
        from pdq_export.commands.bench import bench_models

        found = bench_models(models, batch=batch or None, shapes=given, progress=progress, **numbers)
    return Outcome(text=_lines(found), to_json=found.to_json)


def _parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if not (name and equals and re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", sizes)):
            raise OptionError(f"--shape {text!r}: expected NAME=SIZES, as x=1x3x224x224")
        if name in shapes:
            raise OptionError(f"--shape {text!r}: is given twice for {name!r}; expected one shape for an input")
        shapes[name] = tuple(map(int, sizes.split("x")))
    return shapes


def _lines(found: "Benchmark") -> Iterable[RenderableType]:
    machine, several = found.machine, len(found.files) > 1
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads, which do not spin"
    yield f"onnxruntime {machine['onnxruntime']}, {threads}, {machine['processor']}, {machine['cores']} cores"
    yield from _conditions(found)
    yield _latency_table(found, several)
    yield _file_table(found, several)
    if found.files[0].loading is not None:
        yield _memory_table(found, several)
    if several:
        yield (
            f"×: beside {found.files[0].name}, the median over rounds (quartiles); {_WITHIN}: within the spread, no "
            "difference is shown"
        )
    yield from _remarks(found)


def _conditions(found: "Benchmark") -> Iterable[str]:
    machine = found.machine
    if machine["load_before"] is not None:
        what = "CPU time, which leaves out" if machine["clock"] == "cpu" else "wall time, which counts"
        yield (
            f"load average {machine['load_before']:.1f} before, {machine['load_after']:.1f} after; latency is {what} "
            "while other programs have the core"
        )
    for one in found.inputs:
        shape = " x ".join("batch" if size is None else str(size) for size in one["shape"]) or "scalar"
        note = "; sizes by default, --shape gives others" if one["chosen"] else ""
        yield f"random input {one['name']}: {shape}, {one['type']}{note}"
    for file in found.files:
        yield from (f"{name} is {other} in {file.name}" for name, other in file.renamed.items())


def _remarks(found: "Benchmark") -> Iterable[str]:
    timed = [latency for file in found.files for latency in file.latency]
    if any(latency.p95_ms is None for latency in timed):
        yield "p95: of fewer than 20 calls there is none; measure longer with --seconds"
    loading = found.files[0].loading
    if loading is not None:
        memory = "" if loading.peak is not None else "; memory is measured on Linux alone"
        yield (
            f"load time and memory: medians of {loading.processes} fresh processes; memory is over that of a process "
            f"with onnxruntime, running is loading and two calls at batch {loading.batch}{memory}"
        )
    if found.machine["saturates"]:
        yield "this processor has no VNNI instructions: those that have them run integer kernels faster"
    for file in found.files:
        if file.config:
            yield f"{file.name}: {session_note(file.config)}"


def _latency_table(found: "Benchmark", several: bool) -> Table:
    table = _table("batch", "file", "median ms", "p95 ms", "samples/s", *(["× latency"] if several else []))
    for index in range(len(found.settings["batch"])):
        for file in found.files:
            latency = file.latency[index]
            cells = [str(latency.batch), file.name, _number(latency.median_ms), _number(latency.p95_ms)]
            cells.append(_number(latency.samples_per_second))
            table.add_row(*map(_text, [*cells, *([_ratio(latency.ratio)] if several else [])]))
    return table


def _file_table(found: "Benchmark", several: bool) -> Table:
    loaded = found.files[0].loading is not None
    load = ["load: CPU ms", "wall ms", *(["× CPU"] if several else [])] if loaded else []
    table = _table("file", "size kB", *(["× size"] if several else []), *load)
    for file in found.files:
        cells = [file.name, f"{file.size / 1000:,.1f}", *([f"{file.size_ratio:.3f}"] if several else [])]
        if (loading := file.loading) is not None:
            cells += [_number(loading.cpu_ms), _number(loading.wall_ms)]
            cells += [_ratio(loading.cpu_ratio)] if several else []
        table.add_row(*map(_text, cells))
    return table


def _memory_table(found: "Benchmark", several: bool) -> Table:
    ratio = ["×"] if several else []
    table = _table("file", "peak MB: loading", *ratio, "running", *ratio)
    for file in found.files:
        assert file.loading is not None
        cells = [file.name]
        for value, spread in (
            (file.loading.load_peak, file.loading.load_peak_ratio),
            (file.loading.peak, file.loading.peak_ratio),
        ):
            cells += ["–" if value is None else f"{value / 1e6:,.1f}", *([_ratio(spread)] if several else [])]
        table.add_row(*map(_text, cells))
    return table


def _table(*head: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in head:
        table.add_column(name, justify="left" if name == "file" else "right")
    return table


def _text(cell: str) -> Text:
    return Text(printable(cell))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.1g}"


def _ratio(ratio: "Spread | None") -> str:
    if ratio is None:
        return ""
    text = f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
    return f"{_WITHIN} {text}" if ratio.spans_one else text
