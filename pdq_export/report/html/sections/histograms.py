"""Histograms of weights and activations with the grid of quantization over them."""

from collections.abc import Iterator

from pdq_export.errors import percent
from pdq_export.report.html.blocks import Block, Card, Cards, Fold, Section, Text
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source
from pdq_export.report.layers import LayerRow
from pdq_export.validate.histograms import WeightHistogram

_MOST = 120  # of each kind: a page has to stay small
_FINEST = 32  # levels that are drawn one by one


def histograms(source: Source, plots: Plots) -> Section | None:
    """Weights in the order of the graph, activations with the worst first."""
    errors = source.errors
    tensors = [row for row in (errors.tensors if errors is not None else ()) if row.histogram and row.quantizer_range]
    blocks = [*_weights(source.weights, plots), *_activations(tensors, plots)]
    return Section(anchor="histograms", title="Weights and activations", blocks=blocks) if blocks else None


def _weights(weights: tuple[WeightHistogram, ...], plots: Plots) -> Iterator[Block]:
    if not weights:
        return
    floats = any(weight.floats is not None for weight in weights)
    first = "filled: FP32 before rounding, in steps of each channel's scale; " if floats else ""
    yield Text(
        text=f"Weights: {first}outline: the integers of the file; lines: the grid, where it has up to {_FINEST} "
        "levels, or its ends. Heights are square roots, so that what is rare shows; one bin far above all others is "
        "cut off.",
        tone="muted",
    )
    yield _fold("weights", [_weight(weight, plots) for weight in weights[:_MOST]], len(weights))


def _weight(weight: WeightHistogram, plots: Plots) -> Card:
    reach = (weight.qmax - weight.qmin + 1) / 4
    span = (weight.qmin - 0.5 - reach, weight.qmax + 0.5 + reach)
    parts = [part for part in (weight.floats, weight.integers) if part is not None]
    parts = parts if weight.floats is not None else [weight.integers, weight.integers]
    svg = plots.histogram(parts, _grid(weight.qmin, weight.qmax, weight.qmax - weight.qmin + 1), span)
    lines = [f"{weight.bits} bits: {weight.qmin} to {weight.qmax}; {weight.elements:,} numbers"]
    return Card(title=weight.layer, svg=svg, lines=lines)


def _activations(tensors: list[LayerRow], plots: Plots) -> Iterator[Block]:
    if not tensors:
        return
    yield Text(
        text="Activations: filled: the FP32 tensor; lines: the grid of its quantizer. What lies beyond the picture "
        "counts to its ends. The worst layers first.",
        tone="muted",
    )
    yield _fold("activations", [_activation(row, plots) for row in tensors[:_MOST]], len(tensors))


def _activation(row: LayerRow, plots: Plots) -> Card:
    assert row.histogram is not None
    assert row.quantizer_range is not None
    found, (low, high), levels = row.histogram, row.quantizer_range, row.levels or 2
    span = (found.start, found.start + found.width * len(found.counts))
    svg = plots.histogram([found], _grid(low, high, levels), span)
    clipped = "" if row.clipped is None else f"; {percent(row.clipped, 2)} clipped"
    lines = [
        f"{levels} levels from {low:.3g} to {high:.3g}",
        f"FP32: {row.range[0]:.3g} to {row.range[1]:.3g}{clipped}",
    ]
    return Card(title=row.tensor, svg=svg, lines=lines)


def _grid(low: float, high: float, levels: int) -> list[float]:
    if not 2 <= levels <= _FINEST:
        return [low, high]
    return [low + (high - low) * level / (levels - 1) for level in range(levels)]


def _fold(what: str, cards: list[Card], count: int) -> Fold:
    some = f"the first {len(cards)} of {count}" if count > len(cards) else str(count)
    return Fold(summary=f"Histograms of {what} ({some})", blocks=[Cards(cards=cards, searched=f"Filter {what}")])
