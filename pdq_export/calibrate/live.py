"""The tensors that later blocks read, over all calibration images, moved on block by block."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import fx

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.forward import FORWARD_BATCH, run_forward
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import extract
from pdq_export.spec import Block


class Live:
    """Live tensors by name: ``full`` in FP32, ``quantized`` in the network whose earlier blocks are quantized.

    They follow from the images and the finished quantizers by forward passes alone, so that a block that was calibrated
    in an earlier run is replayed by `advance` like any other.
    """

    def __init__(self, context: Context, done: Quantizers) -> None:
        self._network, self._store, self._done = context.network, context.store, done
        self._journal = context.journal
        self.full: dict[str, Cache] = {}
        self.quantized: dict[str, Cache] = {}

    @torch.no_grad()
    def begin(self, inputs: Mapping[str, Cache]) -> None:
        """Start with the graph's inputs, as the finished quantizers give them where they are points."""
        for name, x in inputs.items():
            self.full[name] = self.quantized[name] = x
            if (quantizer := self._done.activations.get(name)) is None:
                continue
            if (streamed := self._store.quantized(x, quantizer)) is not None:
                self.quantized[name] = streamed
            else:
                self.quantized[name] = self._store.new(x.shape, x.dtype, quantizer)
                for batch in x.batches(FORWARD_BATCH):
                    self.quantized[name].append(quantizer(batch))
                self.quantized[name].verify()

    def advance(self, block: Block, later: Sequence[Block]) -> None:
        """Compute what ``later`` blocks read of the finished ``block``, in one network after the other.

        What none of them reads is forgotten.
        """
        outputs = outputs_for(block, later)
        plain = extract(self._network, block.inputs, outputs)
        finished = self._done.block(block, outputs)
        for what, live, module, quantizers in (
            ("FP32 pass", self.full, plain, {}),
            ("quantized pass", self.quantized, finished, self._done.activations),
        ):
            advance(live, module, block, later, self._store, quantizers, self._journal.images(what))


def advance(
    live: dict[str, Cache],
    module: fx.GraphModule,
    block: Block,
    later: Sequence[Block],
    store: Store,
    quantizers: Mapping[str, ActivationQuantizer],
    told: Callable[[int, int], None],
) -> None:
    """Turn what ``block`` reads into what ``later`` blocks read; ``module``: computes `outputs_for` them.

    ``quantizers``: by tensor, those that have put it out.
    """
    outputs = outputs_for(block, later)
    inputs = [live[name] for name in block.inputs]
    if outputs:
        live.update(run_forward(module, inputs, outputs, store, quantizers=quantizers, told=told))
    del inputs
    for name in set(live).difference(read_by(later)):
        del live[name]


def outputs_for(block: Block, later: Sequence[Block]) -> list[str]:
    """The block's outputs that ``later`` blocks read."""
    needed = read_by(later)
    return [name for name in block.outputs if name in needed]


def read_by(blocks: Iterable[Block]) -> dict[str, None]:
    """Everything that one of the blocks reads from outside, in order."""
    return dict.fromkeys(name for block in blocks for name in block.inputs)
