"""What quantizing each group of tensors alone does to the network, at every width."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, fx

from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.journal import BlockProgress, Journal
from pdq_export.calibrate.memory import trim_heap
from pdq_export.calibrate.precision import settled_torch
from pdq_export.calibrate.scores import Scores
from pdq_export.calibrate.sizes import FOLDING_IMAGES, fold_sizes
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import input_tensors
from pdq_export.calibrate.tiers import Source
from pdq_export.config.method import CalibrationOptions
from pdq_export.search.candidates import Trial
from pdq_export.search.fisher import Expansion, expand
from pdq_export.search.measured import measure
from pdq_export.spec import ALL_BITS, Bits, Plan
from pdq_export.spec.sensitivity import Group, Sensitivity

PROBES = 4
Estimate = Literal["fisher", "measured"]


@settled_torch()
def measure_sensitivity(
    network: fx.GraphModule,
    plan: Plan,
    groups: Sequence[Group],
    inputs: Sequence[Tensor | Source],
    options: CalibrationOptions,
    *,
    device: torch.device,
    symmetric_weights: bool = False,
    widths: Sequence[Bits] = ALL_BITS,
    estimate: Estimate = "fisher",
    pairs: bool = False,
    probes: int = PROBES,
    max_memory: int | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
    told: Callable[[int, int], None] = lambda *_: None,
) -> Sensitivity:
    """What each of ``groups`` does to the predictions of ``network`` (FP32, imported from ONNX) on ``inputs``.

    ``inputs``: one tensor [N, ...] per graph input, or a `Source`; all of them are used. ``options``: of these,
    ``search_samples``, ``output_loss`` and ``seed`` count. ``widths``: that each group is tried at.
    ``symmetric_weights``: those of fewer than 8 bits as well. ``estimate``: "fisher", the second-order expansion, from
    ``probes`` backward passes; or "measured", the real thing, for each group and width a forward pass from its block
    on. ``pairs``: also what two groups of one block do together, which the expansion knows at no cost. ``progress``: of
    the walk over the blocks; ``told``: of the images, or with "measured" of groups and widths. Memory is as in
    `calibrate`. Raises as `calibrate.scores.score` does.
    """
    network = network.to(device)
    store = Store.of_process(device, max_memory)
    try:
        folded = fold_sizes(network, [x[:FOLDING_IMAGES].to(device) for x in inputs])
        journal = Journal(plan.blocks, progress)
        # Methods that calibrate without it are measured by what they do to classes as well.
        options = dataclasses.replace(options, prediction_difference=True)
        context = Context(network=folded, plan=plan, options=options, store=store, journal=journal)
        named = dict(zip(input_tensors(folded), (store.adopt(x) for x in inputs), strict=True))
        done = Quantizers(folded, plan, network)
        trial = Trial.of(context, done, named, groups, widths, symmetric_weights=symmetric_weights)
        together: dict[tuple[str, str], dict[tuple[Bits, Bits], float]] = {}
        if estimate == "measured":
            effects = measure(trial, told)
        else:
            expansion = expand(trial, probes=probes, seed=options.seed, told=told)
            effects = expansion.effects()
            together = _pairs(groups, widths, expansion) if pairs else {}
        return Sensitivity(
            groups=tuple(groups),
            measure=_kind(trial.scores),
            images=len(inputs[0]),
            estimate=estimate,
            prediction=_by_group(groups, widths, {key: effect.prediction for key, effect in effects.items()}),
            block=_by_group(groups, widths, {key: effect.block for key, effect in effects.items()}),
            pairs=together,
        )
    finally:
        store.close()
        trim_heap()


def _by_group(
    groups: Sequence[Group], widths: Sequence[Bits], values: Mapping[tuple[str, Bits], float]
) -> dict[str, dict[Bits, float]]:
    return {group.name: {width: values[group.name, width] for width in widths} for group in groups}


def _pairs(
    groups: Sequence[Group], widths: Sequence[Bits], expansion: Expansion
) -> dict[tuple[str, str], dict[tuple[Bits, Bits], float]]:
    """What two groups of one block do together, beyond the sum."""
    inside = [(a.name, b.name) for a, b in itertools.combinations(groups, 2) if a.block == b.block]
    return {(a, b): {(v, w): expansion.interaction((a, v), (b, w)) for v in widths for w in widths} for a, b in inside}


def _kind(scores: Scores) -> Literal["kl", "mse", "kl and mse"]:
    kinds = {axis is not None for axis in scores.class_axes.values()}
    if len(kinds) > 1:
        return "kl and mse"
    return "kl" if kinds == {True} else "mse"
