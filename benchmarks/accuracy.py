"""Top-1 in onnxruntime of FP32, onnxruntime's own INT8 and every method, by bit widths, and the time it takes.

    python -m benchmarks.accuracy model.onnx --calib calib.npz --eval test.npz --output results.jsonl
    python -m benchmarks.accuracy model.onnx --calib calib.npz --eval test.npz --output results.jsonl --ablation
    python -m benchmarks.accuracy --output results.jsonl --table

Every finished run becomes a line of the output at once, and a run that is there already is skipped: an interrupted
benchmark goes on where it was, and several processes may share the work by seed. A run that fails is a line that says
why; the others go on, and the next command tries it again. The time of a calibration runs from
the call to the export (load, plan, calibrate), without reading images and without evaluation.
"""

import argparse
import dataclasses
import importlib.metadata
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

import pdq_export
from benchmarks.common import StageClock, digest, open_session, parse_setting, quantize_with_onnxruntime
from benchmarks.results import FULL, Outcome, Run, Work, append, read, tables
from pdq_export.config.config import WEIGHTS
from pdq_export.config.method import METHODS, PRESETS, choose_options
from pdq_export.data import ImageSet, count_shared_digests, image_digests, load_images
from pdq_export.errors import DataError, OptionError, PdqError
from pdq_export.graph.load import load_model
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare as prepare_model
from pdq_export.plan import network_family
from pdq_export.plan.points import find_layers
from pdq_export.validate import Accuracy, AccuracyMeter

FLOAT = "fp32"
OWN_INT8 = "onnxruntime"
ROWS = (FLOAT, OWN_INT8, "nearest", "adaround", "brecq", "qdrop", FULL)
DETERMINISTIC = (FLOAT, OWN_INT8, "nearest")
# Each part of PD-Quant off alone.
ABLATION: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    "prediction difference off": {"prediction_difference": False},
    "correction off": {"correction_iters": 0},
    "drops off": {"keep_probability": 0.0, "mix_probability": 1.0},
    "activation-scale learning off": {"learn_scales": False},
    "compensated rounding off": {"compensate_rounding": False},
}
BITS = ("8/8", "4/4", "2/4", "4/2", "2/2")
BATCH = 50
COMPARED = 50  # images on which the file is compared with its simulation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """The files of a `Work`."""

    work: Work
    model: Path
    calib: ImageSet
    eval: ImageSet


def prepare(options: argparse.Namespace) -> Task:
    """Read model and images and settle what all runs share. Raises PdqError for what cannot be run."""
    if options.calib.resolve() == options.eval.resolve():
        raise OptionError("--calib and --eval are the same; expected evaluation images that calibration never sees")
    given = {**options.set, **({} if options.samples is None else {"samples": options.samples})}
    chosen = choose_options(preset=options.preset, overrides=given)
    calib, judged = load_images(options.calib, limit=chosen.samples), load_images(options.eval)
    if judged.labels is None:
        raise OptionError(f"--eval {options.eval}: it has no labels; expected one an image, for accuracy")
    calib_digests, eval_digests = image_digests(calib, judged)
    if shared := count_shared_digests(calib_digests, eval_digests):
        raise DataError(
            f"--eval {options.eval}: {shared:,} of its {len(judged):,} images are among the {len(calib):,} of --calib "
            f"{options.calib}, pixel for pixel; expected images that calibration never sees; leave them out"
        )
    model = load_model(options.model)
    work = Work(
        model=options.model.name,
        model_sha256=digest(model.SerializeToString(deterministic=True)),
        family=_family(model),
        calib=options.calib.name,
        calib_sha256=digest(*calib_digests),
        eval=options.eval.name,
        eval_sha256=digest(*eval_digests, judged.labels.tobytes()),
        eval_images=len(judged),
        preset=options.preset,
        weights=options.weights,
        wide_residuals=options.wide_residuals,
        reduce_range=options.reduce_range,
        samples=len(calib),
        iters=chosen.iters,
        correction_iters=chosen.correction_iters,
        overrides={name: value for name, value in sorted(options.set.items()) if name != "samples"},
        threads=options.threads,
        device=options.device,
        versions=_versions(),
    )
    return Task(work=work, model=options.model, calib=calib, eval=judged)


def _family(model: onnx.ModelProto) -> str:
    index = GraphIndex(prepare_model(model).model)
    return network_family(index, find_layers(index))


def plan_runs(work: Work, rows: Sequence[str], bits: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """All runs, one seed after the other; what is deterministic comes once, onnxruntime only at 8/8."""
    for position, seed in enumerate(seeds):
        for pair in bits:
            for row in rows:
                if row in DETERMINISTIC and position > 0:
                    continue
                if (row == FLOAT and pair != bits[0]) or (row == OWN_INT8 and pair != "8/8"):
                    continue
                drawn = None if row in DETERMINISTIC else seed
                settled = {} if row in (FLOAT, OWN_INT8) else _settled(work, row, drawn)
                if row in ABLATION and row != FULL and settled == _settled(work, FULL, drawn):
                    continue  # the preset has it off anyway
                yield Run(work=work, row=row, bits=None if row == FLOAT else pair, seed=drawn, options=settled)


def _settled(work: Work, row: str, seed: int | None) -> dict[str, Any]:
    """Every number of `CalibrationOptions` that the row comes to."""
    chosen = choose_options(
        method=method_of(row), preset=work.preset, family=work.family, overrides=overrides(work, row, seed)
    )
    return dataclasses.asdict(chosen)


def perform(task: Task, run: Run) -> Outcome:
    """Do one run."""
    if run.row == FLOAT:
        return Outcome(run=run, top1=evaluate(task.model, task).top1)
    with tempfile.TemporaryDirectory() as folder:
        if run.row == OWN_INT8:
            return _own_int8(task, run, Path(folder))
        return _quantize(task, run, Path(folder) / "quantized.onnx")


def _own_int8(task: Task, run: Run, folder: Path) -> Outcome:
    images = task.calib.images
    wall, cpu = time.perf_counter(), time.process_time()
    path = quantize_with_onnxruntime(task.model, images, folder, reduce_range=task.work.reduce_range)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Outcome(run=run, top1=evaluate(path, task).top1, wall_seconds=wall, cpu_seconds=cpu)


def _quantize(task: Task, run: Run, path: Path) -> Outcome:
    assert run.bits is not None
    clock = StageClock()
    result = pdq_export.quantize(
        task.model,
        bits=run.bits,
        calib=task.calib,
        eval=task.eval.head(COMPARED),
        output=path,
        method=method_of(run.row),
        preset=run.work.preset,
        weights=run.work.weights,
        wide_residuals=run.work.wide_residuals,
        reduce_range=run.work.reduce_range,
        options=overrides(run.work, run.row, run.seed),
        device=run.work.device,
        progress=clock,
    )
    wall, cpu = clock.until("export")
    simulated = result.report.outputs[0].quantized_simulated
    return Outcome(
        run=run,
        top1=evaluate(path, task).top1,
        wall_seconds=wall,
        cpu_seconds=cpu,
        agreement=None if simulated is None else simulated.argmax_agreement,
        size_ratio=result.report.size_ratio,
    )


def method_of(row: str) -> str:
    """The method of a row; those of the ablation are pd-quant."""
    return FULL if row in ABLATION else row


def overrides(work: Work, row: str, seed: int | None) -> dict[str, Any]:
    """The options of a run: those set for all rows, without those that this row switches off or has no use for."""
    method, parts = method_of(row), ABLATION.get(row, {})
    fixed = {**METHODS[method], **parts}
    found = {**parts, "samples": work.samples, **({} if seed is None else {"seed": seed})}
    for name, value in work.overrides.items():
        if name in fixed:
            continue
        try:
            choose_options(method=method, preset=work.preset, overrides={**parts, name: value})
        except OptionError:
            continue  # it was right for pd-quant, so this row lacks the part that it belongs to
        found[name] = value
    return found


def evaluate(model: Path, task: Task) -> Accuracy:
    """Accuracy of a file in onnxruntime on the evaluation images; those that do not fill a fixed batch are left out."""
    session = open_session(model, task.work.threads)
    (source, *_) = session.get_inputs()
    size = source.shape[0] if isinstance(source.shape[0], int) else BATCH
    count = len(task.eval) - (len(task.eval) % size if size == source.shape[0] else 0)
    meter, labels = AccuracyMeter(), task.eval.labels
    assert labels is not None
    for position, batch in enumerate(task.eval.head(count).batches(size)):
        (outputs, *_) = session.run(None, {source.name: batch})
        meter.update(outputs, labels[position * size :][: len(batch)])
    return meter.result()


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("onnx", "torch")}
    return {"pdq-export": pdq_export.__version__, "onnxruntime": onnxruntime.__version__, **found}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="the FP32 ONNX file")
    parser.add_argument("--calib", type=Path, help="calibration images: .npz, .npy or folder")
    parser.add_argument("--eval", type=Path, help="labelled evaluation images: others than --calib")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; runs that are there are skipped")
    parser.add_argument("--bits", nargs="+", default=list(BITS), metavar="W/A")
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--ablation", action="store_true", help="instead of --methods: pd-quant with each part off")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", choices=list(PRESETS), default="balanced")
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0])
    parser.add_argument("--wide-residuals", action="store_true", help="of all rows but fp32 and onnxruntime")
    parser.add_argument("--reduce-range", action="store_true", help="of the same rows, where there is no VNNI")
    parser.add_argument("--samples", type=int, help="calibration images, the first ones")
    parser.add_argument("--set", nargs="+", type=parse_setting, action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=1, help="of torch and onnxruntime")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="run nothing; print the tables of --output")
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    if not options.table and None in (options.model, options.calib, options.eval):
        parser.error("a model, --calib and --eval are needed, or --table")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 1 where a run failed, which does not stop the others, and 2 where none can be tried."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    try:
        found = read(options.output)
        if options.table:
            print(tables(found, ROWS, list(ABLATION)))
            return 0
        task = prepare(options)
    except (PdqError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    failed = 0
    for run in plan_runs(
        task.work, list(ABLATION) if options.ablation else options.methods, options.bits, options.seeds
    ):
        label = f"{run.row} {run.bits or ''} seed {run.seed}"
        if run.key in {outcome.run.key for outcome in read(options.output) if outcome.error is None}:
            print(f"{label}: there already", flush=True)
            continue
        try:
            outcome = perform(task, run)
        except Exception as error:  # other tools raise what they like
            failed += 1
            append(options.output, Outcome(run=run, error=f"{type(error).__name__}: {error}"))
            details = str(error) if isinstance(error, PdqError) else traceback.format_exc()
            print(f"{label}: {details}", file=sys.stderr, flush=True)
            continue
        append(options.output, outcome)
        assert outcome.top1 is not None
        print(f"{label}: {100 * outcome.top1:.2f} %, {outcome.wall_seconds or 0:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
