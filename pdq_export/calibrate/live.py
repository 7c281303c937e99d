"""The tensors that later blocks read, over all calibration images, moved on block by block."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.forward import FORWARD_BATCH, run_forward
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

    def advance(self, block: Block, later: Sequence[Block]) -> None:
        """Compute what ``later`` blocks read of the finished ``block``, in one network after the other.

        What none of them reads is forgotten.
        """
        needed = read_by(later)
        outputs = [name for name in block.outputs if name in needed]
        plain = extract(self._network, block.inputs, outputs)
        finished = self._done.block(block, outputs)
        for what, live, module, quantizers in (
            ("FP32 pass", self.full, plain, {}),
            ("quantized pass", self.quantized, finished, self._done.activations),
        ):
            inputs = [live[name] for name in block.inputs]
            if outputs:
                told = self._journal.images(what)
                live.update(run_forward(module, inputs, outputs, self._store, quantizers=quantizers, told=told))
            del inputs
            for name in set(live) - set(needed):
                del live[name]


def read_by(blocks: Iterable[Block]) -> dict[str, None]:
    """Everything that one of the blocks reads from outside, in order."""
    return dict.fromkeys(name for block in blocks for name in block.inputs)
