"""PP-OCR's direction classifier and text detector, quantized and judged on rendered text, in onnxruntime.

    python -m benchmarks.ocr --classifier cls.onnx --detector det.onnx --output ocr.jsonl
    python -m benchmarks.ocr --output ocr.jsonl --table

Calibration and evaluation images differ in seed, texts and fonts (`benchmarks.text_images`); options are to be chosen
on a third split, `--split tuning`. Every finished run is a line of the output at once, and a run that is there already
is skipped.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pdq_export
from benchmarks.common import Array, StageClock, append_line, digest, markdown, open_session, parse_setting, read_lines
from benchmarks.text_images import SPLITS, TextRenderer
from pdq_export.config.method import METHODS, PRESETS
from pdq_export.errors import PdqError
from pdq_export.validate import time_files

CLASSIFIER, DETECTOR = "classifier", "detector"
BITS = ("8/8", "4/4")
LINES = 1000  # evaluation images of the classifier
PAGES, PAGE = 20, (480, 480)  # and of the detector
TEXT = 0.3  # PP-OCR takes a pixel for text from this probability on
BATCH = 50
# Heights and widths, each at two batch sizes, that one file has to run at.
SIZES: Mapping[str, Sequence[tuple[int, int]]] = {
    CLASSIFIER: [(48, 192), (48, 96), (32, 320)],
    DETECTOR: [(320, 320), (480, 640), (64, 96)],
}
BATCHES = (1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is asked of one run; ``page``: height and width of the detector's calibration pages."""

    network: str
    model: str
    model_sha256: str
    bits: str
    method: str
    preset: str
    samples: int
    page: int | None
    overrides: Mapping[str, str]
    seed: int
    split: str
    threads: int


def plan_runs(options: argparse.Namespace) -> list[tuple[Path, Run]]:
    """The models that are given, each at all bits."""
    runs = []
    for network, model in ((CLASSIFIER, options.classifier), (DETECTOR, options.detector)):
        for bits in options.bits if model else ():
            lines = options.samples or int(PRESETS[options.preset]["samples"])
            run = Run(
                network=network,
                model=model.name,
                model_sha256=digest(model.read_bytes()),
                bits=bits,
                method=options.method,
                preset=options.preset,
                samples=lines if network == CLASSIFIER else options.pages,
                page=None if network == CLASSIFIER else options.page_size,
                overrides=dict(sorted(options.set.items())),
                seed=options.seed,
                split=options.split,
                threads=options.threads,
            )
            runs.append((model, run))
    return runs


def perform(model: Path, run: Run) -> dict[str, Any]:
    """Quantize and judge; the figures, in plain types."""
    renderer = TextRenderer("calibration", seed=run.seed)
    images = renderer.lines(run.samples)[0] if run.page is None else renderer.pages(run.samples, run.page, run.page)
    searched = {"search_samples": run.samples} if run.samples < 256 else {}
    with tempfile.TemporaryDirectory() as folder:
        path, clock = Path(folder) / "quantized.onnx", StageClock()
        result = pdq_export.quantize(
            model,
            bits=run.bits,
            calib=images,
            output=path,
            method=run.method,
            preset=run.preset,
            options={"samples": run.samples, **searched, **_seed(run), **run.overrides},
            device="cpu",
            progress=clock,
        )
        kernels = result.report.kernels
        assert kernels is not None  # the target is onnxruntime
        judged = TextRenderer(run.split, seed=run.seed)
        judge = judge_classifier if run.network == CLASSIFIER else judge_detector
        return {
            **judge(model, path, judged, run.threads),
            "shapes": run_at_shapes(model, path, SIZES[run.network], run.threads),
            "latency_ratio": latency_ratios(model, path, images, run.threads),
            "size_ratio": result.report.size_ratio,
            "between_pairs": dict(kernels.between_pairs),
            "floating": dict(kernels.floating),
            "cpu_seconds": clock.until("export")[1],
        }


def _seed(run: Run) -> dict[str, int]:
    iters = run.overrides.get("iters", METHODS[run.method].get("iters"))
    return {} if iters in (0, "0") else {"seed": run.seed}  # nearest draws nothing


def judge_classifier(model: Path, quantized: Path, renderer: TextRenderer, threads: int) -> dict[str, Any]:
    """How often FP32 and the quantized file give the same direction, and the right one."""
    images, labels = renderer.lines(LINES)
    sessions = [open_session(path, threads) for path in (model, quantized)]
    whole, few = (
        np.concatenate([_run(session, images[start : start + BATCH]) for start in range(0, LINES, BATCH)]).argmax(1)
        for session in sessions
    )
    return {
        "images": LINES,
        "agreement": float((whole == few).mean()),
        "float_accuracy": float((whole == labels).mean()),
        "quantized_accuracy": float((few == labels).mean()),
    }


def judge_detector(model: Path, quantized: Path, renderer: TextRenderer, threads: int) -> dict[str, Any]:
    """Mean absolute difference of the probability maps, over all pages and of the worst one."""
    sessions = [open_session(path, threads) for path in (model, quantized)]
    differences, same, text = [], [], []
    for _ in range(PAGES):
        page = renderer.pages(1, *PAGE)
        whole, few = (_run(session, page) for session in sessions)
        differences.append(float(np.abs(whole - few).mean()))
        same.append(float(((whole > TEXT) == (few > TEXT)).mean()))
        text.append(float((whole > TEXT).mean()))
    return {
        "images": PAGES,
        "mean_difference": statistics.mean(differences),
        "largest_difference": max(differences),
        "text_agreement": statistics.mean(same),
        "text_share": statistics.mean(text),
    }


def run_at_shapes(model: Path, quantized: Path, sizes: Sequence[tuple[int, int]], threads: int) -> list[list[int]]:
    """The input shapes at which the quantized file gives an output of FP32's shape: all that are tried."""
    sessions = [open_session(path, threads) for path in (model, quantized)]
    ran = []
    for (height, width), batch in itertools.product(sizes, BATCHES):
        x = np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
        whole, few = (_run(session, x) for session in sessions)
        if whole.shape != few.shape:
            raise RuntimeError(f"{quantized}: gives {few.shape} for {x.shape}; expected {whole.shape}, as FP32 does")
        ran.append(list(x.shape))
    return ran


def latency_ratios(model: Path, quantized: Path, images: Array, threads: int) -> dict[str, list[float]]:
    """Median and quartiles of the time relative to FP32, by batch size."""
    found = {}
    for batch in (1, 8):
        x = np.resize(images, (batch, *images.shape[1:]))
        floating, low = time_files([model, quantized], x, threads=threads, rounds=21, least=0.02)
        ratio = low.ratio(floating)
        found[str(batch)] = [ratio.median, ratio.low, ratio.high]
    return found


def _run(session: Any, x: Array) -> Array:
    (result, *_) = session.run(None, {session.get_inputs()[0].name: x})
    output: Array = result
    return output


def table(network: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The runs of one network as a Markdown table."""
    if network == CLASSIFIER:
        head = ["agrees with FP32", "accuracy", "accuracy of FP32"]
        names = ["agreement", "quantized_accuracy", "float_accuracy"]
        cells = [[f"{100 * line[name]:.1f} %" for name in names] for line in lines]
    else:
        head = ["mean difference", "worst page", "text or not agrees"]
        names = ["mean_difference", "largest_difference"]
        cells = [[*(f"{line[n]:.4f}" for n in names), f"{100 * line['text_agreement']:.2f} %"] for line in lines]
    shared = ["bits", "method", "preset", "samples", "seed", "split"]
    tail = ["x FP32 at batch 1", "at batch 8", "size", "CPU s", "shapes run"]
    rows = []
    for line, own in zip(lines, cells, strict=True):
        ratios = [f"{line['latency_ratio'][batch][0]:.2f}" for batch in ("1", "8")]
        costs = [*ratios, f"{line['size_ratio']:.2f}", f"{line['cpu_seconds']:.0f}", str(len(line["shapes"]))]
        rows.append([*(str(line["run"][name]) for name in shared), *own, *costs])
    return markdown([*shared, *head, *tail], rows)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classifier", type=Path, help="ch_ppocr_mobile_v2.0_cls_infer.onnx")
    parser.add_argument("--detector", type=Path, help="ch_PP-OCRv4_det_infer.onnx")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; runs that are there are skipped")
    parser.add_argument("--bits", nargs="+", default=list(BITS), metavar="W/A")
    parser.add_argument("--method", choices=list(METHODS), default="pdq")
    parser.add_argument("--preset", choices=list(PRESETS), default="balanced")
    parser.add_argument("--samples", type=int, help="calibration lines of the classifier; the preset's by default")
    parser.add_argument("--pages", type=int, default=64, help="calibration pages of the detector")
    parser.add_argument("--page-size", type=int, default=320, help="their height and width, a multiple of 32")
    parser.add_argument("--set", nargs="+", type=parse_setting, action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seed", type=int, default=0, help="of images and calibration")
    parser.add_argument("--split", choices=[name for name in SPLITS if name != "calibration"], default="evaluation")
    parser.add_argument("--threads", type=int, default=1, help="of torch and onnxruntime")
    parser.add_argument("--table", action="store_true", help="run nothing; print the tables of --output")
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    if not options.table and not (options.classifier or options.detector):
        parser.error("--classifier, --detector or both are needed, or --table")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet and print the tables. Returns the exit code."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    try:
        for model, run in [] if options.table else plan_runs(options):
            known = dataclasses.asdict(run)
            label = f"{run.network} {run.bits}"
            if any(line["run"] == known for line in read_lines(options.output)):
                print(f"{label}: there already", flush=True)
                continue
            append_line(options.output, json.dumps({"run": known, **perform(model, run)}))
            print(f"{label}: done", flush=True)
    except (PdqError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for network in (CLASSIFIER, DETECTOR):
        if lines := [line for line in read_lines(options.output) if line["run"]["network"] == network]:
            print(f"\n{network}\n\n{table(network, lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
