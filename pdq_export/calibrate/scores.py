"""What the FP32 network predicts for all calibration images: the reference of the prediction difference."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.forward import FORWARD_BATCH, run_forward
from pdq_export.calibrate.live import read_by
from pdq_export.calibrate.losses import class_axis
from pdq_export.calibrate.prediction import find_predictions, put_images_first
from pdq_export.calibrate.subgraph import extract, reachable
from pdq_export.errors import CalibrationError
from pdq_export.spec import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """``of_output``: by graph output, the tensors of scores behind it. ``values`` and ``class_axes`` by these tensors.

    A tensor without an axis of classes has None.
    """

    of_output: Mapping[str, Sequence[str]]
    values: Mapping[str, Cache]
    class_axes: Mapping[str, int | None]

    def compared(self, block: Block, later: Sequence[Block]) -> list[str]:
        """The block's outputs whose error counts; for a graph output that nobody reads, the scores behind it."""
        read = read_by(later)
        names = ([name] if name in read else self.of_output.get(name, [name]) for name in block.outputs)
        return list(dict.fromkeys(itertools.chain.from_iterable(names)))

    def behind(self, network: fx.GraphModule, tensors: Sequence[str]) -> tuple[str, ...]:
        """The tensors of scores that depend on one of ``tensors``."""
        return reachable(network, tensors, list(self.values))


def score(context: Context, inputs: Mapping[str, Cache], some: Sequence[Tensor]) -> Scores:
    """Run the FP32 network over all images; ``some``: at least one of them, a tensor for each graph input.

    Nodes that put images first are added to the context's network. Raises CalibrationError for inputs and scores that
    are not finite or have not one row an image, OptionError for scores that cannot be compared as the options say.
    """
    found = {
        name: [put_images_first(context.network, prediction) for prediction in predictions]
        for name, predictions in find_predictions(context.network, [x[:1] for x in some], context.plan.parts).items()
    }
    of_output = {name: [p.tensor for p in predictions] for name, predictions in found.items()}
    # of two outputs with the same scores, one of them behind an ArgMax, that one knows the axis
    by_axis = sorted(itertools.chain.from_iterable(found.values()), key=lambda p: p.class_axis is not None)
    class_axes = {prediction.tensor: prediction.class_axis for prediction in by_axis}
    names = list(dict.fromkeys(itertools.chain.from_iterable(of_output.values())))
    network = extract(context.network, list(inputs), names)
    told = context.journal.images("FP32 network")
    values = run_forward(network, list(inputs.values()), names, context.store, told=told)
    if context.options.prediction_difference:
        loss = context.options.output_loss
        class_axes = {name: class_axis(loss, class_axes[name], x.shape, name) for name, x in values.items()}
    for name, x in (*inputs.items(), *values.items()):
        _check(name, x, len(next(iter(inputs.values()))))
    return Scores(of_output=of_output, values=values, class_axes=class_axes)


def _check(name: str, x: Cache, images: int) -> None:
    if not all(torch.isfinite(batch).all() for batch in x.batches(FORWARD_BATCH)):
        raise CalibrationError(
            f"tensor {name!r}: it holds NaN or infinity on the calibration images, before any quantization; "
            "expected finite numbers; check the images and their normalization"
        )
    if len(x) != images:
        raise CalibrationError(
            f"tensor {name!r}: its first axis has {len(x)} rows for {images} images; expected one an "
            "image; export the network so that axis 0 of what it predicts counts images, or without the nodes "
            "that move or merge it"
        )
