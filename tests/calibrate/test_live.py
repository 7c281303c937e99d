"""Live tensors: only what later blocks read, FP32 and quantized, the same when a finished block is replayed."""

import torch

from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.initialize import Initializer
from pdq_export.calibrate.journal import Journal
from pdq_export.calibrate.live import Live, read_by
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import extract
from pdq_export.config.method import CalibrationOptions

from .networks import residual

CPU = torch.device("cpu")


def test_live_tensors_are_those_that_later_blocks_read() -> None:
    example = residual(images=20)
    store, blocks = Store(CPU), example.plan.blocks
    context = Context(
        network=example.network,
        plan=example.plan,
        options=CalibrationOptions(iters=0),
        store=store,
        journal=Journal(blocks),
    )
    done = Quantizers(example.network, example.plan, example.network)
    initializer, live = Initializer(context, done), Live(context, done)
    inputs = {"image": store.adopt(example.images)}
    initializer.graph_inputs(inputs)
    live.begin(inputs)
    everything = torch.arange(20)
    for position, block in enumerate(blocks):
        quantized = [live.quantized[name] for name in block.inputs]
        initializer.activations(block, quantized)
        initializer.weights(block)
        done.round_biases(block)
        live.advance(block, blocks[position + 1 :])
        written = {name for earlier in blocks[: position + 1] for name in earlier.outputs}
        names = [name for name in read_by(blocks[position + 1 :]) if name in written]
        assert live.full.keys() == live.quantized.keys() == set(names)
        with torch.no_grad():
            wanted = extract(example.network, ["image"], names)(example.images)
        for name, x in zip(names, wanted, strict=True):
            torch.testing.assert_close(live.full[name][everything], x)
            scale, quantized_x = done.activations[name].scale, live.quantized[name][everything]
            assert torch.equal((quantized_x / scale).round() * scale, quantized_x)
            assert not torch.equal(quantized_x, live.full[name][everything])
