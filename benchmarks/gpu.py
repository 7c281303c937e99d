"""One short session on a GPU: whether calibration is right there, how fast, and in how much memory.

    python -m benchmarks.gpu --output gpu.json [--resnet20 resnet20.onnx --calib calib.npz --eval test.npz]

Seven parts, each kept in ``--output`` as it is finished; the same command goes on with those that are missing, and one
for which the time left (``--seconds``, of this call) does not suffice is left for the next. Nothing is fetched.
``--tiny`` runs every part on the embedded network with a few steps, on any device: what a test proves it with.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import pdq_export
import pdq_export.calib_data as calib_data
from benchmarks.calibration import make_model
from benchmarks.common import markdown, noise
from benchmarks.measure import MEGABYTE, Job, Measurement, measure
from pdq_export.calibrate.device import choose_device, computing_on
from pdq_export.calibrate.precision import settled_torch
from pdq_export.config.method import PRESETS
from pdq_export.data import load_images
from pdq_export.errors import OptionError
from pdq_export.frontend import import_model
from pdq_export.graph.load import load_model
from pdq_export.process import tune_process

Rows = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[1]
# How steps can be taken: what is off by default until it is shown here.
MODES: Mapping[str, Mapping[str, str]] = {
    "as it is": {},
    "captured": {"capture_step": "true"},
    "captured, tf32": {"capture_step": "true", "prediction_precision": "tf32"},
    "captured, bfloat16": {"capture_step": "true", "prediction_precision": "bfloat16"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """What is asked for. ``networks``: names of `benchmarks.architectures`, or files. ``folder``: for what is made."""

    device: torch.device
    tiny: bool
    networks: Sequence[str]
    resnet20: tuple[Path, Path, Path] | None
    folder: Path

    @property
    def budget(self) -> dict[str, str]:
        """What `--tiny` takes in place of a preset's."""
        return {"samples": "8", "iters": "4", "correction_iters": "1", "batch_size": "4"} if self.tiny else {}

    def job(self, model: str, preset: str, budget: Mapping[str, str], max_memory: str | None = None) -> Job:
        """A calibration at 4/4 on this device: the paper's method where the preset is the paper's."""
        return Job(
            model=model,
            preset=preset,
            device=str(self.device),
            bits="4/4",
            method="pd-quant" if preset == "paper" else "pdq",
            overrides={**budget, **self.budget},
            max_memory=max_memory,
            threads=torch.get_num_threads(),
        )

    def path(self, network: str) -> Path:
        """The network's file."""
        return make_model(network, self.folder, resolution=224)[1]


def embedded() -> tuple[Path, Path, Path]:
    """The embedded network, its calibration images and its evaluation images."""
    folder = Path(calib_data.path("fashion_resnet.onnx")).parent
    return folder / "fashion_resnet.onnx", folder / "calib.npz", folder / "eval.npz"


def run_tests(session: Session) -> Rows:
    """The calibration tests, on the GPU alone."""
    chosen = "test_what_the_device" if session.tiny else "cuda"
    command = [sys.executable, "-m", "pytest", "-n", "0", "tests/calibrate", "-k", chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return [{"tests": chosen, "exit code": done.returncode, "last lines": done.stdout.splitlines()[-12:]}]


def compare_accuracy(session: Session) -> Rows:
    """Accuracy of files that are calibrated on the device and on the CPU, and what they differ from the simulation."""
    cases = [("embedded", *embedded(), bits) for bits in (("2/2",) if session.tiny else ("4/4", "2/2"))]
    if session.resnet20 is not None:
        cases.append(("ResNet-20", *session.resnet20, "2/2"))
    rows: Rows = []
    for name, model, calib, judged, bits in cases:
        row: dict[str, Any] = {"network": name, "bits": bits}
        images = load_images(judged, limit=64 if session.tiny else None)
        for device in dict.fromkeys((str(session.device), "cpu")):
            start = time.perf_counter()
            result = pdq_export.quantize(
                model, bits=bits, calib=calib, eval=images, preset="fast", options=session.budget, device=device
            )
            report = result.report.to_dict()
            row[f"{device}, s"] = round(time.perf_counter() - start, 1)
            row[f"{device}, top-1"] = report["accuracy"]["quantized"]["top1"]
            row[f"{device}, off the simulation"] = {o["name"]: o["deviation"] for o in report["outputs"]}
        rows.append(row)
    return rows


def compare_modes(session: Session) -> Rows:
    """The embedded network at 2/2 by each of `MODES`, with kernels of a fixed order: its integers, and its accuracy.

    Captured steps are to give the integers of launched ones; what is rounded gives others, as accurate.
    """
    model, calib, judged = embedded()
    images, reference = load_images(judged, limit=64 if session.tiny else None), b""
    budget = {**session.budget, "iters": "12"} if session.tiny else {}  # so many that some are captured
    rows: Rows = []
    for mode, options in MODES.items():
        start = time.perf_counter()
        with _told() as told, _refused(rows, mode):
            result = pdq_export.quantize(
                model,
                bits="2/2",
                calib=calib,
                eval=images,
                preset="fast",
                options={**budget, **options},
                device=str(session.device),
                deterministic=True,
            )
            graph = result.model.graph.SerializeToString(deterministic=True)
            reference = reference or graph
            accuracy = result.report.to_dict()["accuracy"]["quantized"]["top1"]
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"mode": mode, "s": seconds, "top-1": accuracy, "same integers": graph == reference, **told()})
    return rows


def time_steps(session: Session) -> Rows:
    """Milliseconds of a step of each block, by each of `MODES`, and of one of the whole FP32 network, on a batch of 32.

    Of the networks after the first, and of a tiny one, without what is rounded.
    """
    rows: Rows = []
    # Of each of the four kinds three are launched before one is recorded. Those with the rounding term and predictions,
    # at every fourth of the steps from the 18th on, are the last, at step 33: from the report of step 41 on captured
    # ones are played.
    steps, first = {"samples": "64", "iters": "81"}, 1 if session.tiny else 41
    for network in session.networks:
        path = session.path(network)
        plain = _plain_step(path, session)
        for mode in list(MODES)[: 2 if session.tiny or network != session.networks[0] else None]:
            with _told() as told, _refused(rows, mode, network=network):
                job = session.job(network, "balanced", {**steps, **MODES[mode]})
                found = measure(job, path, extrapolates=False, first=first)
                of_blocks = [block.step_seconds for block in found.blocks]
                row: dict[str, Any] = {
                    "network": network,
                    "mode": mode,
                    "FP32 step, ms": 1e3 * plain,
                    "all blocks, ms": _milliseconds(found.step_seconds),
                    "by block, ms": {b.block: _milliseconds(b.step_seconds) for b in found.blocks},
                    "a step over FP32's": None if None in of_blocks else max(filter(None, of_blocks)) / plain,
                }
                rows.append({**row, **told()})
    return rows


def time_runs(session: Session) -> Rows:
    """Whole calibrations, and what the paper's would take, from 200 steps a block."""
    rows: Rows = []
    for network in session.networks:
        for preset in list(PRESETS)[-1 if session.tiny else 0 :]:
            budget = {"samples": "256", "iters": "200", "correction_iters": "50"} if preset == "paper" else {}
            job = session.job(network, preset, budget)
            found = measure(job, session.path(network))
            row = {"network": network, "preset": preset, "method": job.method, "whole preset, s": found.extrapolated()}
            rows.append({**row, **_figures(found)})
    return rows


def measure_memory(session: Session) -> Rows:
    """Peak memory, also of a run whose host memory is limited."""
    rows: Rows = []
    for network in session.networks[:1]:
        for limit in ("8GB",) if session.tiny else (None, "8GB"):
            few = {"samples": "256", "iters": "20", "correction_iters": "2"}
            job = session.job(network, "balanced", few, limit)
            found = measure(job, session.path(network), extrapolates=False)
            rows.append({"network": network, "--max-memory": limit, **_figures(found)})
    return rows


def compare_bytes(session: Session) -> Rows:
    """Two runs with ``deterministic``: whether the files are equal."""
    rows: Rows = []
    few = {"samples": "64", "iters": "20", "correction_iters": "5", **session.budget}
    for network in session.networks:
        path, written = session.path(network), []
        for _ in range(2):
            images = noise(path, int(few["samples"]))
            result = pdq_export.quantize(
                path,
                bits="4/4",
                calib=images,
                preset="fast",
                options=few,
                device=str(session.device),
                deterministic=True,
            )
            written.append(result.model.SerializeToString(deterministic=True))
        rows.append({"network": network, "bytes": len(written[0]), "equal": written[0] == written[1]})
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What `run` gives; ``seconds``: what has to be left before it is begun on a GPU."""

    run: Callable[[Session], Rows]
    seconds: float


# In the order of what a session is to show first: what is right, then how fast.
PARTS: Mapping[str, Part] = {
    "tests": Part(run=run_tests, seconds=60),
    "accuracy": Part(run=compare_accuracy, seconds=60),
    "bytes": Part(run=compare_bytes, seconds=40),
    "modes": Part(run=compare_modes, seconds=40),
    "steps": Part(run=time_steps, seconds=50),
    "runs": Part(run=time_runs, seconds=240),
    "memory": Part(run=measure_memory, seconds=30),
}


@contextlib.contextmanager
def _told() -> Iterator[Callable[[], dict[str, Any]]]:
    """What a run warns of captures, for its row: a step that cannot be captured is launched."""
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "capture_step" in record.getMessage():
                heard.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("pdq_export")
    logger.addHandler(handler)
    try:
        yield lambda: {"told": heard} if heard else {}
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _refused(rows: Rows, mode: str, **others: str) -> Iterator[None]:
    """A row for what the device does not have, as a CPU."""
    try:
        yield
    except OptionError as error:
        rows.append({**others, "mode": mode, "refused": str(error)})


def _plain_step(path: Path, session: Session) -> float:
    """Seconds of a forward and a backward pass of the FP32 network, eager, after a warm-up."""
    batch, repeats = (4, 1) if session.tiny else (32, 20)
    with settled_torch(), computing_on(session.device):
        network = import_model(load_model(path)).to(session.device)
        images = torch.from_numpy(noise(path, batch).array()).to(session.device).requires_grad_(True)
        start = 0.0
        for repeat in range(repeats + 3):
            if repeat == 3:
                _wait(session.device)
                start = time.perf_counter()
            network(images)[0].square().mean().backward()
        _wait(session.device)
        return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _figures(found: Measurement) -> dict[str, Any]:
    device = found.device_memory
    return {
        "seconds": found.seconds,
        "host peak, MB": found.peak_memory / MEGABYTE,
        "GPU peak, MB": None if device is None else device / MEGABYTE,
    }


def run_parts(session: Session, output: Path, seconds: float, chosen: Sequence[str]) -> dict[str, Any]:
    """Run the parts that ``output`` does not have, as far as the time suffices; everything that it has then.

    A part that fails is kept with its error, and tried again by the next call.
    """
    end = time.monotonic() + seconds
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    found.setdefault("machine", _machine(session.device))
    for name in chosen:
        if "rows" in found.get(name, {}):
            continue
        left = end - time.monotonic()
        if left < (0 if session.tiny else PARTS[name].seconds):
            found[name] = {"left out": f"{left:.0f} s were left, {PARTS[name].seconds:.0f} are needed"}
            continue
        start = time.monotonic()
        try:
            found[name] = {"rows": PARTS[name].run(session)}
        except Exception as error:  # the others are to run, and this one is told
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        found[name]["seconds"] = round(time.monotonic() - start, 1)
        _write(output, found)
        print(f"{name}: {found[name].get('failed', 'done')}, {found[name]['seconds']} s", file=sys.stderr, flush=True)
    _write(output, found)
    return found


def _machine(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": str(device), "name": name, "torch": torch.__version__, "CUDA": str(torch.version.cuda)}


def _write(output: Path, found: Mapping[str, Any]) -> None:
    """All at once: a call that is killed leaves what the one before has written."""
    beside = output.with_name(f"{output.name}.new")
    beside.write_text(json.dumps(found, indent=1, default=str) + "\n")
    beside.replace(output)


def tables(found: Mapping[str, Any]) -> str:
    """A table for each part, in Markdown."""
    texts = []
    for name in PARTS:
        part = found.get(name, {})
        rows = part.get("rows", [])
        told = {key: value for key, value in part.items() if key != "rows"}
        texts.append(f"## {name}\n\n" + ", ".join(f"{key}: {value}" for key, value in told.items()))
        if rows:
            head = list(dict.fromkeys(key for row in rows for key in row))
            texts.append(markdown(head, [[_cell(row.get(key)) for key in head] for row in rows]))
    return "\n\n".join(texts)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON; parts that are there are not run again")
    parser.add_argument("--device", type=_device, default="cuda")
    parser.add_argument("--networks", nargs="+", help="instead of ResNet-18 and ResNet-50")
    parser.add_argument("--resnet20", type=Path, help="a file, with --calib and --eval: judged at 2/2 as well")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=530, help="of this call")
    parser.add_argument("--tiny", action="store_true", help="a few steps of the embedded network, on any device")
    options = parser.parse_args(arguments)
    given = [options.resnet20, options.calib, options.eval]
    if any(given) and not all(given):
        parser.error("--resnet20, --calib and --eval go together")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where a part failed or was left out."""
    options = parse_arguments(arguments)
    tune_process(deterministic=True)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            device=options.device,
            tiny=options.tiny,
            networks=options.networks or ([str(embedded()[0])] if options.tiny else ["resnet18", "resnet50"]),
            resnet20=None if options.resnet20 is None else (options.resnet20, options.calib, options.eval),
            folder=Path(folder),
        )
        found = run_parts(session, options.output, options.seconds, options.parts)
    print(tables(found))
    good = all("rows" in found[name] for name in options.parts)
    tested = all(row["exit code"] == 0 for row in found.get("tests", {}).get("rows", []))
    return 0 if good and tested else 1


if __name__ == "__main__":
    sys.exit(main())
