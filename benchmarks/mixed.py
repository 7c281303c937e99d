"""Equal bits for all layers against `--bits auto` at the same cost: agreement with FP32, KL divergence and top-1.

    python -m benchmarks.mixed model.onnx --name mb --calib calib.npz --eval eval.npz --folder mixed --points 3/8 4/4

At W/8 `auto` may take the bytes of the equal file, at others its bit operations (the sum over layers of multiplications
x W x A). Files are run by onnxruntime, on four views of every evaluation image: as it is, mirrored, and shifted by 3
pixels either way. The folder keeps files, as NAME-W-A-u.onnx and NAME-W-A-a.onnx, with -sSEED before the ending for
seeds but 0, which may have it; what lies there already is taken, if it says that it was made as is asked here. It keeps
what was measured as well, as NAME.json and NAME.md, and an interrupted benchmark goes on where it was.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

import pdq_export
from benchmarks.common import Array, markdown, parse_setting
from pdq_export.commands.allotting import plan_widest
from pdq_export.commands.operations import bit_operations, count_multiplications
from pdq_export.commands.settle import choose, plan_options
from pdq_export.config.config import Config, make_config
from pdq_export.config.record import read_record, settings
from pdq_export.config.sections import AUTO
from pdq_export.data import ImageSet, count_shared_digests, image_digests, load_images, sha256_by_input
from pdq_export.errors import DataError, OptionError, PdqError
from pdq_export.export import read_blueprint
from pdq_export.files import write_atomically
from pdq_export.search.budget import Cost
from pdq_export.spec import CARRIER_BITS, BitWidths, Plan, Role
from pdq_export.validate import Session, needed_config
from pdq_export.work import PlannedModel, open_model

VIEWS = 4
_SHIFT = 3  # pixels
_BATCH = 50
_OF_BITS = ("bits", "tensor_bits", "first_last")  # settings in which files with bits of their own differ


def views(images: Array) -> list[Array]:
    """Images [N, C, H, W] as they are, mirrored, and shifted sideways either way, where the edge is repeated."""
    width = images.shape[3]
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (_SHIFT, _SHIFT)), mode="edge")
    shifted = [np.ascontiguousarray(padded[..., start : start + width]) for start in (0, 2 * _SHIFT)]
    return [images, np.ascontiguousarray(images[..., ::-1]), *shifted]


def run_views(content: bytes, images: ImageSet) -> list[NDArray[np.float64]]:
    """Scores [N, K], the first output, as logarithms of probabilities, of every view."""
    session = Session(content, config=needed_config(content))
    found: list[list[NDArray[np.float64]]] = [[] for _ in range(VIEWS)]
    for batch in images.batches(_BATCH):
        for view, scores in zip(views(batch), found, strict=True):
            scores.append(_logarithms(session.run(view)[0]))
    return [np.concatenate(scores) for scores in found]


def _logarithms(scores: Array) -> NDArray[np.float64]:
    wide = scores.astype(np.float64).reshape(len(scores), -1)
    if (wide >= 0).all() and np.allclose(wide.sum(axis=1), 1, atol=1e-3):  # they are probabilities already
        return np.asarray(np.log(np.maximum(wide, 1e-12)))
    return np.asarray(log_softmax(wide, axis=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A file beside FP32, over all views.

    ``agreeing``: of every image, in how many views the class is FP32's. ``kl``: mean divergence in nats. ``top1``: a
    share of the images as they are. ``bit_operations``: over those of 8/8. ``key``: what was measured on what.
    """

    key: str
    point: str
    kind: str
    seed: int
    file: str
    size: int
    bit_operations: float
    agreeing: tuple[int, ...]
    kl: float
    top1: float | None
    float_top1: float | None

    @property
    def agreement(self) -> float:
        """In percent."""
        return 100 * statistics.fmean(self.agreeing) / VIEWS


class Bench:
    """One network with its images: makes what is missing and measures what is new."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.base = make_config({**options.set, "reduce_range": options.reduce_range, "calib": str(options.calib)})
        self.calib, self.judged = self._images()
        self.file, session = open_model(options.model)
        self.planned = plan_widest(self.file, self.base)
        del session
        names = self.planned.index.inputs
        self.digests = sha256_by_input(self.calib, names)
        data = f"{self.file.sha256} {sha256_by_input(self.judged, names)}"
        self._data = hashlib.sha256(data.encode()).hexdigest()
        first = self.calib.head(1).inputs()
        counts = count_multiplications(self.planned.prepared, self.planned.plan.layers, first)
        self.operations: Cost = bit_operations(self.planned.plan, counts)
        self._float: list[NDArray[np.float64]] | None = None

    def _images(self) -> tuple[ImageSet, ImageSet]:
        given = self.options
        calib = load_images(given.calib, limit=choose(self.base).samples)
        judged = load_images(given.eval)
        if shared := count_shared_digests(*image_digests(calib, judged)):
            raise DataError(
                f"--eval {given.eval}: {shared:,} of its {len(judged):,} images are among the {len(calib):,} of --calib"
                f" {given.calib}; expected images that calibration never sees; leave them out"
            )
        return calib, judged

    def path(self, point: BitWidths, kind: str, seed: int) -> Path:
        """Where a file is, or is to be."""
        stem = f"{self.options.name}-{point.weight}-{point.activation}-{kind}"
        named: Path = self.options.folder / f"{stem}-s{seed}.onnx"
        return named if seed or named.exists() else self.options.folder / f"{stem}.onnx"

    def config(self, point: BitWidths, kind: str, seed: int) -> Config:
        """How a file is made; of one with bits of its own once the equal one is there."""
        if kind == "u":
            return make_config({"bits": str(point), "seed": seed}, base=self.base)
        if point.activation == CARRIER_BITS:
            budget: dict[str, Any] = {"max_size": self.path(point, "u", seed).stat().st_size}
        else:
            budget = {"max_bit_ops": self.operations_of(self._planned(point).plan)}
        return make_config({"bits": AUTO, "seed": seed, **budget}, base=self.base)

    def operations_of(self, plan: Plan) -> float:
        """Bit operations of a plan over those of 8/8."""
        return self.operations.of({n: p.bits for n, p in plan.points.items() if p.role is not Role.CARRIER})

    def _planned(self, point: BitWidths) -> PlannedModel:
        config = make_config({"bits": str(point)}, base=self.base)
        return PlannedModel.of(self.file, plan_options(config, choose(config)), config.file, told=False)

    def make(self, point: BitWidths, kind: str, seed: int) -> Path:
        """The file, taken where there is one. Raises OptionError where that was made in another way."""
        path, config = self.path(point, kind, seed), self.config(point, kind, seed)
        if path.exists():
            self._check(path, config)
            return path
        blocks = self.options.folder / "unfinished" / path.stem
        begun = any(blocks.rglob("block-*"))
        own = {"work_dir": blocks, "resume": begun, "output": path, "report": path.with_suffix(".json")}
        report = {} if kind == "u" else {"bits_to": path.with_suffix(".toml")}
        # Of an interrupted run nothing but blocks is left: the three are written together.
        made = make_config({**own, **report, "overwrite": True}, base=config)
        pdq_export.quantize(self.options.model, calib=self.calib, config=made)
        shutil.rmtree(blocks, ignore_errors=True)
        return path

    def _check(self, path: Path, config: Config) -> None:
        properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        record = read_record(properties, str(path))
        planned = plan_options(config, choose(config))
        decided = {"weights": planned.section.weights, "first_last": str(planned.first_last)}
        asked = settings(config, choose(config, family=self.planned.family), **decided)
        searched = config.plan.bits == AUTO
        different = [
            f"{name} {record.settled[name]!r}, not {value!r}"
            for name, value in asked.items()
            if name in record.settled and record.settled[name] != value and not (searched and name in _OF_BITS)
        ]
        if record.made_by.get("model", {}).get("sha256") != self.file.sha256:
            different.append("another model")
        if record.made_by.get("calibration") != self.digests:
            different.append("other calibration images")
        if different:
            raise OptionError(
                f"{path}: was made with {'; '.join(different)}; expected what is asked here; move it away, or ask for "
                "what it was made with"
            )

    def measure(self, path: Path, point: BitWidths, kind: str, seed: int, known: Mapping[str, Measured]) -> Measured:
        """What a file does, of ``known`` where it was measured before on the same images."""
        content = path.read_bytes()
        key = hashlib.sha256(f"{self._data} {point} {kind} {seed}".encode() + content).hexdigest()
        if key in known:
            return known[key]
        if self._float is None:
            self._float = run_views(self.file.content, self.judged)
        found = run_views(content, self.judged)
        return Measured(
            key=key,
            point=str(point),
            kind=kind,
            seed=seed,
            file=path.name,
            size=len(content),
            bit_operations=self.operations_of(read_blueprint(onnx.load_from_string(content)).quantized.plan),
            **compare(self._float, found, self.judged.labels),
        )


def compare(
    reference: Sequence[NDArray[np.float64]], found: Sequence[NDArray[np.float64]], labels: NDArray[np.int64] | None
) -> dict[str, Any]:
    """The figures of `Measured`, of logarithms of probabilities [N, K] by view; labels [N] are of the first."""
    pairs = list(zip(reference, found, strict=True))
    agreeing = sum((a.argmax(1) == b.argmax(1)).astype(int) for a, b in pairs)
    divergences = [(xlogy(np.exp(a), np.exp(a)) - np.exp(a) * b).sum(axis=1).mean() for a, b in pairs]
    top1 = [None if labels is None else float((x[0].argmax(1) == labels).mean()) for x in (found, reference)]
    return {
        "agreeing": tuple(np.asarray(agreeing).tolist()),
        "kl": float(np.mean(divergences)),
        "top1": top1[0],
        "float_top1": top1[1],
    }


def table(found: Sequence[Measured]) -> str:
    """Rows by point and kind, means over seeds; the difference is paired, image by image."""
    rows = []
    for point in dict.fromkeys(one.point for one in found):
        equal, auto = ([one for one in found if (one.point, one.kind) == (point, kind)] for kind in "ua")
        rows += [_row(f"{point}", equal, "")] if equal else []
        rows += [_row(f"auto at {point}", auto, _gain(equal, auto))] if auto else []
    labelled = "" if found[0].float_top1 is None else f" ({100 * found[0].float_top1:.2f} in FP32)"
    head = ["bits", "bytes", "bit operations, × 8/8", "agreement, %", "points", "KL, nats", f"top-1{labelled}, %"]
    return markdown([*head, "seeds"], rows)


def _row(name: str, runs: Sequence[Measured], gain: str) -> list[str]:
    def mean(values: Iterable[float], digits: int) -> str:
        numbers = list(values)
        spread = f" ({min(numbers):.{digits}f}–{max(numbers):.{digits}f})" if len(numbers) > 1 else ""
        return f"{statistics.fmean(numbers):.{digits}f}{spread}"

    known = [100 * run.top1 for run in runs if run.top1 is not None]
    return [
        name,
        f"{statistics.fmean(run.size for run in runs):,.0f}",
        f"{statistics.fmean(run.bit_operations for run in runs):.4f}",
        mean((run.agreement for run in runs), 2),
        gain,
        mean((run.kl for run in runs), 4),
        mean(known, 2) if known else "",
        ", ".join(str(run.seed) for run in runs),
    ]


def _gain(equal: Sequence[Measured], auto: Sequence[Measured]) -> str:
    """Points of agreement more than equal bits have, with the standard error over images, on seeds that both have."""
    shared = {run.seed for run in equal} & {run.seed for run in auto}
    if not shared:
        return ""
    means = [np.mean([run.agreeing for run in runs if run.seed in shared], axis=0) for runs in (equal, auto)]
    points = 100 / VIEWS * (means[1] - means[0])
    error = float(points.std(ddof=1)) / math.sqrt(len(points)) if len(points) > 1 else math.nan
    return f"{points.mean():+.2f} ± {error:.2f}"


def read_known(path: Path) -> dict[str, Measured]:
    """What was measured before, by key."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {one["key"]: Measured(**{**one, "agreeing": tuple(map(int, one["agreeing"]))}) for one in content["files"]}


def run(options: argparse.Namespace) -> Iterator[Measured]:
    """Every point and seed, equal bits first; what came of each is kept at once."""
    options.folder.mkdir(parents=True, exist_ok=True)
    bench, path = Bench(options), options.folder / f"{options.name}.json"
    known = read_known(path)
    for point in options.points:
        for seed in options.seeds:
            for kind in "ua":
                found = bench.measure(bench.make(point, kind, seed), point, kind, seed, known)
                known[found.key] = found
                stored = [
                    {**dataclasses.asdict(one), "agreeing": "".join(map(str, one.agreeing))} for one in known.values()
                ]
                content = json.dumps({"model": bench.file.name, "eval": str(bench.judged), "files": stored}, indent=1)
                write_atomically(path, (content + "\n").encode(), overwrite=True)
                yield found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="the FP32 ONNX file, a classifier of images")
    parser.add_argument("--name", help="begins the names of files; by default the model's")
    parser.add_argument("--calib", type=Path, required=True, help="calibration images: .npz, .npy or folder")
    parser.add_argument("--eval", type=Path, required=True, help="evaluation images: others than --calib")
    parser.add_argument("--folder", type=Path, required=True, help="keeps files and what was measured")
    parser.add_argument("--points", nargs="+", type=BitWidths.parse, default=["3/8", "2/8", "4/4"], metavar="W/A")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--reduce-range", action="store_true", help="for processors without VNNI")
    parser.add_argument("--set", nargs="+", type=_setting, action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args(arguments)
    options.points = [p if isinstance(p, BitWidths) else BitWidths.parse(p) for p in options.points]
    options.set, options.name = dict(options.set), options.name or options.model.stem
    return options


def _setting(text: str) -> tuple[str, Any]:
    name, value = parse_setting(text)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(arguments: Sequence[str] | None = None) -> int:
    """Make and measure what is missing, and print the table; 2 where something cannot be had."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    found = []
    try:
        for one in run(options):
            print(f"{one.file}: {one.agreement:.2f} %, {one.size:,} bytes", file=sys.stderr, flush=True)
            found.append(one)
            write_atomically(options.folder / f"{options.name}.md", f"{table(found)}\n".encode(), overwrite=True)
    except (PdqError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
