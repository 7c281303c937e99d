"""PD-Quant over a whole network: the walk over its blocks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pdq_export.calibrate.block import BlockCalibrator
from pdq_export.calibrate.block_state import BlockState, Checkpoint
from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.collapse import look_for_collapse
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.device import computing_on
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.forward import FORWARD_BATCH, spread
from pdq_export.calibrate.initialize import Initializer
from pdq_export.calibrate.journal import BlockProgress, Journal
from pdq_export.calibrate.live import Live
from pdq_export.calibrate.memory import trim_heap
from pdq_export.calibrate.precision import settled_torch
from pdq_export.calibrate.replay import restore, state_of
from pdq_export.calibrate.requirements import find_requirements
from pdq_export.calibrate.rest import alone_in
from pdq_export.calibrate.scores import score
from pdq_export.calibrate.shares import check_enough, some_of
from pdq_export.calibrate.sizes import FOLDING_IMAGES, fold_sizes
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import input_tensors
from pdq_export.calibrate.teacher import Teacher
from pdq_export.calibrate.tiers import Chosen, Source
from pdq_export.config.method import CalibrationOptions
from pdq_export.ranks import ALONE, Ranks
from pdq_export.spec import Block, ChannelStatistics, Plan, QuantizedTensors

# What to do where ranks compute something else from the same.
UNLIKE = "take machines of one kind with the same versions, and on GPUs --deterministic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What calibration gives.

    ``tensors``: what was learned. ``biases``: those that it has changed, by tensor. ``simulation``: the quantized
    network in torch, in the runtime's integer arithmetic; returns the graph's outputs in order. ``predictions``: by
    output, the tensors at which its prediction difference was measured; empty where it was not.
    """

    tensors: QuantizedTensors
    biases: Mapping[str, NDArray[np.float32]]
    simulation: fx.GraphModule
    predictions: Mapping[str, Sequence[str]]


@settled_torch()
def calibrate(
    network: fx.GraphModule,
    plan: Plan,
    statistics: Mapping[str, ChannelStatistics],
    inputs: Sequence[Tensor | Source],
    options: CalibrationOptions,
    *,
    device: torch.device,
    deterministic: bool = False,
    max_memory: int | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks = ALONE,
) -> Calibrated:
    """Calibrate ``network`` (FP32, imported from ONNX) on ``inputs``, one tensor [N, ...] per graph input, or a
    `Source` that makes its rows as they are needed.

    ``deterministic``: on a GPU too, the same bits each time, see `computing_on`.
    ``statistics`` by layer output; layers without them get estimates over the calibration set. ``max_memory``: bytes
    of host memory that the whole process shall keep to; block inputs and outputs beyond it go to files, and the result
    stays the same bit for bit. ``checkpoint``: has the states of blocks that an earlier run with the same arguments has
    finished, and gets those of the others; the result is that of a run without it, bit for bit. ``ranks``: processes
    that call this together, each with the ``inputs`` that it has a share of (`Ranks.mine`), and get the same; the
    first's ``checkpoint`` counts. ``options``: that the device takes, see `check_precision` and `check_capture`. Raises
    CalibrationError where a loss diverges, the disk has no room, a state is not of this network or another thread
    shares a precision that it must not, OptionError where ``max_memory`` cannot hold what a pass or a step takes and
    where there are more ranks than images, RankError where another rank has ended or finds other integers.
    """
    check_enough(ranks, options, sum(ranks.gather(len(inputs[0]))))
    options = dataclasses.replace(options, search_samples=some_of(ranks, options.search_samples))
    with alone_in(options.prediction_precision), computing_on(device, deterministic=deterministic):
        network = network.to(device)
        store = Store.of_process(device, max_memory)
        try:
            folded = fold_sizes(network, [x[:FOLDING_IMAGES].to(device) for x in inputs])
            journal = Journal(plan.blocks, progress)
            context = Context(network=folded, plan=plan, options=options, store=store, journal=journal, ranks=ranks)
            done = Quantizers(folded, plan, network)
            named = zip(input_tensors(folded), (store.adopt(x) for x in inputs), strict=True)
            return _walk(context, done, statistics, dict(named), checkpoint)
        finally:
            store.close()
            trim_heap()


def _walk(
    context: Context,
    done: Quantizers,
    statistics: Mapping[str, ChannelStatistics],
    inputs: Mapping[str, Cache],
    checkpoint: Checkpoint | None,
) -> Calibrated:
    """Calibrate or replay one block after the other, each on what the ones before it give."""
    options, blocks, ranks = context.options, context.plan.blocks, context.ranks
    images = len(next(iter(inputs.values())))
    chosen = Chosen(spread(images, some_of(ranks, FORWARD_BATCH)))
    some = [x[chosen] for x in inputs.values()]
    least = _require_memory(context, some, images)
    scores = score(context, inputs, some)
    initializer, teacher = Initializer(context, done), Teacher(context, statistics)
    initializer.graph_inputs(inputs)
    live = Live(context, done)
    live.begin(inputs)
    calibrator = BlockCalibrator(context, done, live, scores, teacher, initializer, least)
    for position, block in enumerate(blocks):
        later = blocks[position + 1 :]
        context.journal.begin(position, block, calibrator.options(block).iters)
        if _take_up(done, position, block, checkpoint, ranks):
            context.journal.tell("finished in an earlier run")
        else:
            record = calibrator.calibrate(position, block, later)
            state = state_of(done, block, teacher.estimated)
            if not ranks.is_alone:
                ranks.check_same(f"block {block.name!r}", state.text, UNLIKE)
            if checkpoint is not None:
                checkpoint.save(position, block, state, record)
        live.advance(block, later)
    outputs = _output_tensors(context.network)
    look_for_collapse(context, done, list(inputs), outputs, some)
    return Calibrated(
        tensors=done.tensors(),
        biases={name: bias.cpu().numpy() for name, bias in done.shifted.items()},
        simulation=done.simulation(list(inputs), outputs),
        predictions=scores.of_output if options.prediction_difference else {},
    )


def _take_up(done: Quantizers, position: int, block: Block, checkpoint: Checkpoint | None, ranks: Ranks) -> bool:
    """Put what the first rank's checkpoint has of a block into ``done``; whether it has any."""

    def load() -> BlockState | None:
        state = None if checkpoint is None else checkpoint.load(position, block)
        if state is not None:
            restore(done, block, state)  # before others have it: a wrong one is this rank's to tell
        return state

    state = ranks.done_by_first(load)
    if state is not None and not ranks.is_first:
        restore(done, block, state)
    return state is not None


def _require_memory(context: Context, some: Sequence[Tensor], images: int) -> Mapping[str, int]:
    """Refuse a limit that cannot hold a pass or a step; by block, the bytes that its steps take in any case."""
    if not context.store.limited:
        return {}
    own = dataclasses.replace(context.options, batch_size=context.batch_size)
    needed = find_requirements(context.network, context.plan, [x[:1] for x in some], own, images)
    context.store.require(needed.most, needed.passes, context.options.batch_size)
    return needed.steps


def _output_tensors(network: fx.GraphModule) -> list[str]:
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    return [argument.meta["tensor"] for argument in output.args[0]]
