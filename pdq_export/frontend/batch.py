"""Whether an imported network runs at any batch size: calibration draws batches of its own."""

import logging
import math
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, fx

from pdq_export.errors import ModelError
from pdq_export.frontend.importer import import_model
from pdq_export.frontend.trial import NodeRunner
from pdq_export.graph.batch_axis import BatchAxes, fixed_batch, follow
from pdq_export.graph.lookup import GraphIndex, describe
from pdq_export.graph.passes import free_batch, tidy
from pdq_export.spec import Place

logger = logging.getLogger(__name__)

# Of the largest magnitude. What is not mixed up differs by the order of sums.
_TOLERANCE = 0.01
_WRONG_SHAPES = (RuntimeError, IndexError, ValueError)


_PROBE = 7  # images, to follow a batch of any size


def import_network(model: onnx.ModelProto | GraphIndex) -> fx.GraphModule:
    """A prepared model, given with or without its index, freed of a fixed batch size, as `import_model` has it.

    ``meta["images"]``: by tensor, the place of images that do not have axis 0 for themselves.
    """
    index = GraphIndex.of(model)
    network = import_model(free_batch.run(index.model))
    network.meta["images"] = find_images(index)
    return network


def find_images(model: onnx.ModelProto | GraphIndex) -> dict[str, Place]:
    """The places of images that do not have axis 0 for themselves, by tensor name.

    It is empty if all outputs begin with the batch, as far as shapes tell, because the rest is seldom asked for.
    """
    index = GraphIndex.of(model)
    batch = fixed_batch(index)
    if batch is None:
        sizes = {shape[0] if (shape := index.shape(name)) else None for name in index.inputs}
        symbol = sizes.pop() if len(sizes) == 1 else None
        first = [shape[0] if (shape := index.shape(name)) else symbol for name in index.outputs]
        if all(size == symbol for size in first if size is not None):
            return {}
        batch, index = _PROBE, GraphIndex(_with_batch(index.model, _PROBE))
    places = follow(index, batch).places
    return {name: place for name, place in places.items() if place != Place(axis=0)}


def _with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model without its weights and for one batch size, to ask for shapes."""
    probe = tidy.without_weights(model)
    for value in probe.graph.input:
        if any(value.name == own.name for own in model.graph.input):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    return onnx.shape_inference.infer_shapes(probe, data_prop=True)


def find_batch_blockers(freed: onnx.ModelProto, model: onnx.ModelProto | GraphIndex) -> dict[str, str]:
    """The nodes that tie the network to one batch size, by name, with the reason.

    They take images apart or mix them. ``freed``: ``model`` freed of its batch size, with operators that can be
    imported.
    """
    index = GraphIndex.of(model)
    batch = fixed_batch(index)
    blockers = {} if batch is None else dict(follow(index, batch).blockers)
    if not blockers:
        return {}
    reason, _ = _examine(import_model(freed), index)
    return blockers if reason else {}


def check_batch(network: fx.GraphModule, model: onnx.ModelProto | GraphIndex) -> None:
    """Raise ModelError if a network of a fixed batch size does not run at another.

    All other sizes of its inputs have to be known. ``network``: ``model`` freed of its batch size. Warns if images
    influence each other in ``model`` itself as well.
    """
    index = GraphIndex.of(model)
    reason, mixed = _examine(network, index)
    if reason:
        raise _refusal(index, reason)
    if mixed:
        logger.warning(
            "output %r: images that are run together influence each other; calibration runs many at a time, and "
            "may learn the wrong thing; expected a network that treats images alike",
            mixed,
        )


@torch.no_grad()
def _examine(network: fx.GraphModule, index: GraphIndex) -> tuple[str, str]:
    """Why a network does not run at another batch size, and which output mixes images up in its model as well."""
    batch = fixed_batch(index)
    shapes = [shape for name in index.inputs if (shape := index.static_shape(name)) is not None]
    if batch is None or len(shapes) < len(index.inputs):
        return "", ""
    axes = follow(index, batch)
    images = [torch.zeros(batch + 1, *shape[1:]) for shape in shapes]
    runner = NodeRunner(network)
    try:
        results = runner.run(*images)
    except _WRONG_SHAPES as error:
        return f"node {runner.node!r}: {' '.join(str(error).split())[:200]}", ""
    if kept := _kept_batch(index, axes, results, batch):
        return f"output {kept!r} keeps {batch} images", ""
    mixed = _mixed_output(network, index, shapes, batch, axes.places)
    if mixed is None:
        return "", ""
    try:
        import_model(index.model)(*images)
    except _WRONG_SHAPES:  # so they were mixed up on the way to the freed network
        return f"output {mixed!r} mixes up the images", ""
    return "", mixed


def _refusal(index: GraphIndex, reason: str) -> ModelError:
    batch = fixed_batch(index)
    assert batch is not None
    axes = follow(index, batch)
    start = f"model: its batch size is fixed at {batch}, and it does not run at {batch + 1}"
    node = next((index.nodes[name] for name in axes.blockers if name in index.nodes), None)
    if node is None:
        return ModelError(
            f"{start} ({reason}); expected a network that treats images alike; export it with a dynamic batch axis"
        )
    cut = next((name for name in node.input if name in axes.places), node.input[0])
    return ModelError(
        f"{start}, as calibration needs it: {describe(node)} {axes.blockers[node.name]} ({reason}); expected a network "
        "that treats images alike; keep their axis there and export with a dynamic batch axis, or quantize the part "
        f"before it: onnx.utils.extract_model(file, part, {list(index.inputs)}, [{cut!r}])"
    )


def _kept_batch(index: GraphIndex, axes: BatchAxes, results: Sequence[Tensor], batch: int) -> str | None:
    """An output that has not grown with the batch, of those in which images are known to lie or to be lost."""
    for name, y in zip(index.outputs, results, strict=True):
        place, known = axes.places.get(name), index.shape(name)
        if not known:
            continue
        if name not in axes.places and axes.blockers:
            kept = y.numel() == math.prod(size for size in known if isinstance(size, int)) and None not in known
        else:
            axis, times = (0, 1) if place is None else (place.axis, place.outer * place.inner)
            before = known[axis] if axis < len(known) else None
            kept = axis < y.ndim and before == batch * times == y.shape[axis]
        if kept:
            return str(name)
    return None


def _mixed_output(
    network: fx.GraphModule,
    index: GraphIndex,
    shapes: Sequence[tuple[int, ...]],
    batch: int,
    places: Mapping[str, Place],
) -> str | None:
    """An output whose values for some random images depend on one that is run with them; None where none does."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(batch + 1, *shape[1:], generator=generator) for shape in shapes]
    for x in images:
        x[batch:] = 4 * x[batch:] + 2  # noise has the same averages as other noise
    try:
        together, alone = network(*images), network(*(x[:batch] for x in images))
    except _WRONG_SHAPES:  # noise need not be what the network takes, such as indices
        return None
    for name, y, own in zip(index.outputs, together, alone, strict=True):
        if y.ndim and _differ(_first_images(y, places.get(name), batch), own):
            return str(name)
    return None


def _first_images(y: Tensor, place: Place | None, batch: int) -> Tensor:
    """Those of ``batch`` + 1 images that are not the last."""
    place = place or Place(axis=0)
    if place.axis >= y.ndim or y.shape[place.axis] != place.outer * (batch + 1) * place.inner:
        return y[:batch]
    split = y.unflatten(place.axis, (place.outer, batch + 1, place.inner))
    first: Tensor = split.narrow(place.axis + 1, 0, batch).flatten(place.axis, place.axis + 2)
    return first


def _differ(result: Tensor, expected: Tensor) -> bool:
    """Whether finite values are others; of shapes that are no images' nothing can be said."""
    if not expected.is_floating_point() or result.shape != expected.shape or not expected.numel():
        return False
    error = (result - expected).abs().nan_to_num(0.0, 0.0)
    return bool(error.max() > _TOLERANCE * expected.abs().nan_to_num(0.0, 0.0).max())
