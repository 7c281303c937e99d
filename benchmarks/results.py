"""The Markdown tables of `benchmarks.accuracy`, made of its runs."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from benchmarks.common import markdown

_NAMED = ("iters", "correction_iters")  # options that a title has words for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What all rows of one table share. The numbers of steps are pdq's, the easy ones those of
    blocks in which nothing has fewer than 4 bits.

    Files go by name. ``versions``: of what decides the result.
    """

    model: str
    calib: str
    eval: str
    eval_images: int
    preset: str
    weights: str
    samples: int
    iters: int
    correction_iters: int
    easy_iters: int
    easy_correction_iters: int
    overrides: Mapping[str, str]
    threads: int
    device: str
    versions: Mapping[str, str]
    wide_residuals: bool = False
    reduce_range: bool = False

    def __str__(self) -> str:
        shown = {name: value for name, value in self.overrides.items() if name not in _NAMED}
        extra = ", wide residuals" * self.wide_residuals + ", reduced range" * self.reduce_range
        extra += "".join(f", {name}={value}" for name, value in shown.items())
        easy = (self.easy_iters, self.easy_correction_iters)
        steps = f"{self.iters:,} steps a block and {self.correction_iters:,} of correction"
        if easy != (self.iters, self.correction_iters):
            steps += f" ({easy[0]:,} and {easy[1]:,} where nothing has fewer than 4 bits)"
        return (
            f"{self.model}: {self.eval_images:,} images of {self.eval}; "
            f"calibrated on {self.samples:,} of {self.calib}, preset {self.preset}, {steps}, "
            f"{self.weights} weights{extra}; "
            f"{self.device}, threads: {self.threads}; "
            f"{', '.join(f'{package} {version}' for package, version in self.versions.items())}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement. ``seed`` is None where nothing is drawn, ``bits`` for FP32."""

    work: Work
    row: str
    bits: str | None
    seed: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave. ``wall_seconds`` and ``cpu_seconds``: of calibration alone, without export and evaluation.

    ``agreement``: the share of images of FP32's class. ``error``: why there is nothing else.
    """

    run: Run
    top1: float | None = None
    agreement: float | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    error: str | None = None


_Value = Callable[[Outcome], float | None]


def tables(outcomes: Sequence[Outcome], rows: Sequence[str], *, against: str | None = None) -> str:
    """For every piece of work its accuracy, agreement with FP32 and seconds by row and bits; rows in the order given.

    ``against``: a row that all others are compared with, by seed.
    """
    works = list({str(o.run.work): o.run.work for o in outcomes}.values())
    return "\n\n".join(
        text for work in works for text in _work([o for o in outcomes if o.run.work == work], rows, against)
    )


def _work(outcomes: Sequence[Outcome], rows: Sequence[str], against: str | None) -> Iterator[str]:
    seeds = sorted({o.run.seed for o in outcomes if o.run.seed is not None})
    yield f"**{outcomes[0].run.work}; seeds {', '.join(map(str, seeds)) or 'none'}**"
    spread = "mean (lowest–highest)" if len(seeds) > 1 else "one seed"
    if against is not None:
        of_seeds = f", {spread}" if len(seeds) > 1 else ""
        spread += f"; in brackets the points to {against} with the same seed{of_seeds}"

    def shares(value: _Value) -> Callable[[Sequence[Outcome]], str]:
        full = {(o.run.bits, o.run.seed): value(o) for o in outcomes if o.run.row == against}
        return lambda cell: _share(cell, value, len(seeds)) + _difference(cell, value, against, full)

    yield f"Top-1 in %, {spread}:"
    yield _grid(outcomes, rows, shares(lambda o: o.top1))
    if any(o.agreement is not None for o in outcomes):
        compared = [o for o in outcomes if o.agreement is not None or o.error is not None]
        yield f"Images of FP32's class in %, {spread}:"
        yield _grid(compared, rows, shares(lambda o: o.agreement))
    yield "Seconds of calibration, wall / CPU, mean:"
    yield _grid([o for o in outcomes if o.wall_seconds is not None], rows, _seconds)


def _grid(outcomes: Sequence[Outcome], rows: Sequence[str], cell: Callable[[Sequence[Outcome]], str]) -> str:
    columns = sorted({o.run.bits for o in outcomes if o.run.bits is not None}, key=_precision)
    lines = []
    for row in rows:
        own = [o for o in outcomes if o.run.row == row]
        if own:
            cells = [[o for o in own if o.run.bits in (column, None)] for column in columns]
            lines.append([row, *(cell(found) if found else "" for found in cells)])
    return markdown(["row", *columns], lines)


def _precision(bits: str) -> tuple[int, int]:
    """8/8, 4/4, 2/4, 4/2, 2/2: by activations, then weights, downwards."""
    weights, activations = (int(part) for part in bits.split("/"))
    return -activations, -weights


def _share(cell: Sequence[Outcome], value: _Value, seeds: int) -> str:
    values = [100 * share for o in cell if (share := value(o)) is not None]
    if not values:
        return "failed"
    drawn = cell[0].run.seed is not None
    missing = f"; {len(values)} of {seeds} seeds" if drawn and len(values) < seeds else ""
    spread = f"{min(values):.2f}–{max(values):.2f}" if len(values) > 1 else ""
    detail = f" ({(spread + missing).removeprefix('; ')})" if spread or missing else ""
    return f"{statistics.fmean(values):.2f}{detail}"


def _seconds(cell: Sequence[Outcome]) -> str:
    means = (_mean(o.wall_seconds for o in cell), _mean(o.cpu_seconds for o in cell))
    return " / ".join(f"{mean:.1f}" if mean < 10 else f"{mean:.0f}" for mean in means)


def _mean(values: Iterable[float | None]) -> float:
    return statistics.fmean(value for value in values if value is not None)


def _difference(
    cell: Sequence[Outcome],
    value: _Value,
    against: str | None,
    full: Mapping[tuple[str | None, int | None], float | None],
) -> str:
    """What the ``cell`` is above the row ``against``, whose values ``full`` has by bits and seed; FP32 has no seed."""
    if cell[0].run.row == against:
        return ""
    pairs = ((value(o), full.get((o.run.bits, o.run.seed))) for o in cell)
    points = [100 * (own - other) for own, other in pairs if own is not None and other is not None]
    if not points:
        return ""
    spread = f" ({min(points):+.2f} to {max(points):+.2f})" if len(points) > 1 else ""
    return f" [{statistics.fmean(points):+.2f}{spread}]"
