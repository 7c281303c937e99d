"""Top-1 in onnxruntime of FP32, onnxruntime's own INT8 and every method, by bit widths, and the time it takes.

    python -m benchmarks.accuracy model.onnx --calib calib.npz --eval test.npz --folder results
    python -m benchmarks.accuracy model.onnx --calib calib.npz --eval test.npz --folder results --ablation

The second command compares the default method with itself where one part is off, as in the paper, or as it was
before, and with two others; what follows ``--ablation`` are the rows, where not all are wanted.

The runs are a sweep (`pdq_export.commands.sweep`): the folder keeps what comes of each, the same command prints the
tables again, and an interrupted benchmark goes on where it was, here or on a Ray cluster. A run that fails is told; the
others go on, and the next command tries it again. The time of a calibration runs from the call to the export (load,
plan, calibrate), without evaluation.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import pdq_export
from benchmarks.common import parse_setting, quantize_with_onnxruntime
from benchmarks.results import Outcome, Run, Work, tables
from pdq_export.commands.sweep import find_jobs, run_sweep
from pdq_export.config.method import METHODS, PRESETS, choose_options
from pdq_export.config.sections import WEIGHTS
from pdq_export.config.sweep import Sweep
from pdq_export.data import count_shared_digests, image_digests, load_images
from pdq_export.errors import DataError, OptionError, PdqError
from pdq_export.files import write_atomically
from pdq_export.report.report import versions
from pdq_export.report.sweep import Finished, SweepTable
from pdq_export.spec import MAX_BITS

FLOAT = "fp32"
OWN_INT8 = "onnxruntime"
ROWS = (FLOAT, OWN_INT8, *reversed(list(METHODS)))
FULL = "pdq"  # what the rows of the ablation are compared with
# The default method with one part alone off, as in the paper, or as it was before, and two others.
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "prediction difference off": {"prediction_difference": False},
    "correction off": {"correction_iters": 0},
    "drops off": {"keep_probability": 0.0, "mix_probability": 1.0},
    "activation-scale learning off": {"learn_scales": False},
    "compensated rounding off": {"compensate_rounding": False},
    "equalized channels off": {"equalize_channels": False},
    "lambda_r 0.1": {"lambda_r": 0.1},
    "predictions at every step": {"prediction_interval": 1},
    "one rate for all scales": {"scale_lr": 4e-4},
    "all steps at 4 bits": {"iters_share": 1.0, "correction_share": 1.0},
    "qdrop": {"method": "qdrop"},
    "pd-quant": {"method": "pd-quant"},
}
BITS = ("8/8", "4/4", "2/4", "4/2", "2/2")
COMPARED = 50  # images on which the file is compared with its simulation


def sweep_of(options: argparse.Namespace) -> Sweep:
    """The runs of pdq-export's methods: by bits, and with a seed where something is drawn."""
    given = {
        "preset": options.preset,
        "weights": options.weights,
        "wide_residuals": options.wide_residuals,
        "reduce_range": options.reduce_range,
        "device": options.device,
        "calib": str(options.calib),
        "eval": str(options.eval),
        "simulated_images": COMPARED,
        **({} if options.samples is None else {"samples": options.samples}),
        **options.set,
    }
    ablation = options.ablation is not None
    methods = (FULL,) if ablation else tuple(row for row in options.methods if row in METHODS)
    axes = {"bits": tuple(options.bits), "method": methods, "seed": tuple(options.seeds)}
    changes = {row: ABLATION[row] for row in options.ablation or (ABLATION if ablation else ())}
    return Sweep(models=(str(options.model),), base=given, axes=axes, changes=changes, strict=False)


def check_images(options: argparse.Namespace) -> int:
    """The number of evaluation images. Raises PdqError for images that tell nothing of accuracy."""
    if options.calib.resolve() == options.eval.resolve():
        raise OptionError("--calib and --eval are the same; expected evaluation images that calibration never sees")
    chosen = choose_options(preset=options.preset, overrides=_numbers(options))
    calib, judged = load_images(options.calib, limit=chosen.samples), load_images(options.eval)
    if judged.labels is None:
        raise OptionError(f"--eval {options.eval}: it has no labels; expected one an image, for accuracy")
    if shared := count_shared_digests(*image_digests(calib, judged)):
        raise DataError(
            f"--eval {options.eval}: {shared:,} of its {len(judged):,} images are among the {len(calib):,} of --calib "
            f"{options.calib}, pixel for pixel; expected images that calibration never sees; leave them out"
        )
    return len(judged)


def _numbers(options: argparse.Namespace) -> dict[str, Any]:
    return {**({} if options.samples is None else {"samples": options.samples}), **options.set}


def work_of(options: argparse.Namespace, images: int) -> Work:
    """What all rows share, for the title of their table."""
    chosen = choose_options(preset=options.preset, overrides=_numbers(options))
    return Work(
        model=options.model.name,
        calib=options.calib.name,
        eval=options.eval.name,
        eval_images=images,
        preset=options.preset,
        weights=options.weights,
        wide_residuals=options.wide_residuals,
        reduce_range=options.reduce_range,
        samples=chosen.samples,
        iters=chosen.iters,
        correction_iters=chosen.correction_iters,
        easy_iters=chosen.for_block(MAX_BITS).iters,
        easy_correction_iters=chosen.for_block(MAX_BITS).correction_iters,
        overrides={name: value for name, value in sorted(options.set.items()) if name != "samples"},
        threads=options.threads,
        device=options.device,
        versions={name: versions()[name] for name in ("pdq-export", "onnxruntime", "onnx", "torch")},
    )


def outcomes(work: Work, table: SweepTable, rows: Sequence[str]) -> Iterator[Outcome]:
    """The runs as rows of the tables, and FP32 of any of them."""
    known = [run.figures["float_top1"] for run in table.runs if run.error is None]
    if FLOAT in rows and known:
        yield Outcome(run=Run(work=work, row=FLOAT, bits=None, seed=None), top1=known[0])
    for run in table.runs:
        row = run.change or run.varied["method"]
        yield Outcome(
            run=Run(work=work, row=row, bits=run.varied["bits"], seed=run.varied.get("seed")),
            top1=run.figures["top1"],
            agreement=run.figures["agreement"],
            wall_seconds=run.calibration_seconds,
            cpu_seconds=run.calibration_cpu_seconds,
            error=run.error,
        )


def own_int8(options: argparse.Namespace, work: Work) -> Outcome:
    """Onnxruntime's static quantization on the same images, kept beside the runs under the key of one."""
    base = {"calib": str(options.calib), "eval": str(options.eval), "samples": work.samples, "method": "nearest"}
    asked = Sweep(models=(str(options.model),), base={**base, "reduce_range": options.reduce_range})
    (job,) = find_jobs(asked.runs(), options.folder, threads=options.threads)
    path = options.folder / f"{OWN_INT8}-{job.key[:16]}.json"
    if not path.exists():
        calib = load_images(options.calib, limit=work.samples).images
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            file = quantize_with_onnxruntime(options.model, calib, Path(folder), reduce_range=options.reduce_range)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            report = pdq_export.validate_models(options.model, file, data=options.eval)
        found = job.ended(report=json.loads(report.to_json()), calibration_seconds=wall, calibration_cpu_seconds=cpu)
        write_atomically(path, json.dumps(dataclasses.asdict(found)).encode())
    found = Finished(**json.loads(path.read_text(encoding="utf-8")))
    return Outcome(
        run=Run(work=work, row=OWN_INT8, bits="8/8", seed=None),
        top1=found.figures["top1"],
        agreement=found.figures["agreement"],
        wall_seconds=found.calibration_seconds,
        cpu_seconds=found.calibration_cpu_seconds,
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="the FP32 ONNX file")
    parser.add_argument("--calib", type=Path, required=True, help="calibration images: .npz, .npy or folder")
    parser.add_argument("--eval", type=Path, required=True, help="labelled evaluation images: others than --calib")
    parser.add_argument("--folder", type=Path, required=True, help="keeps what comes of each run")
    parser.add_argument("--bits", nargs="+", default=list(BITS), metavar="W/A")
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument(
        "--ablation",
        nargs="*",
        choices=list(ABLATION),
        metavar="ROW",
        help="instead of --methods: what pdq's parts are worth",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", choices=list(PRESETS), default="balanced")
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0])
    parser.add_argument("--wide-residuals", action="store_true", help="of all rows but fp32 and onnxruntime")
    parser.add_argument("--reduce-range", action="store_true", help="of the same rows, where there is no VNNI")
    parser.add_argument("--samples", type=int, help="calibration images, the first ones")
    parser.add_argument("--set", nargs="+", type=parse_setting, action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=1, help="of torch, and cores of a run with --ray")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ray", metavar="ADDRESS|local", help="make the runs on a Ray cluster")
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables; 1 where a run failed, and 2 where none can be tried."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    try:
        work = work_of(options, check_images(options))
        table = run_sweep(sweep_of(options), options.folder, ray=options.ray, cores=options.threads, told=_tell)
        found = list(outcomes(work, table, options.methods))
        if OWN_INT8 in options.methods and "8/8" in options.bits and options.ablation is None:
            found.insert(1, own_int8(options, work))
    except (PdqError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.ablation is None:
        print(tables(found, ROWS))
    else:
        print(tables(found, [FLOAT, FULL, *ABLATION], against=FULL))
    return 1 if table.failed else 0


def _tell(run: Finished, done: int, total: int) -> None:
    top1, seconds = run.figures["top1"], run.calibration_seconds
    told = run.error if run.error else f"{100 * (top1 or 0):.2f} %, {seconds or 0:.0f} s"
    print(f"{done} of {total}: {run}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
