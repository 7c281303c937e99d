"""From soft weights to integers: what learning has left undecided is rounded so that the layer's outputs hardly change.

A few hundred steps leave half of the roundings in a network with depthwise layers undecided; cutting each at one half
gives such a layer up to forty times the error that its weights allow (benchmarks/PROFILE.md). Not in the paper.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.quantizers import SoftRounding, WeightQuantizer
from pdq_export.calibrate.subgraph import tensor_nodes
from pdq_export.calibrate.tiers import Chosen
from pdq_export.frontend.ops.conv import conv, conv_windows
from pdq_export.numerics.rounding import round_compensated
from pdq_export.ranks import ALONE, Ranks
from pdq_export.spec import Block, Layer

# Rows of a layer's inputs that are looked at, the most of one image, images of one pass, and numbers that the rows of
# a pass may take.
_ROWS = 2**15
_ROWS_OF_IMAGE = 128
_BATCH = 16
_ELEMENTS = 2**26
# Inputs of an output channel, with one group: 3 x 3 over 512 channels. The moments of more take gigabytes.
_LARGEST_K = 4608
# Part of the mean squared input that is added to every input's own: the images do not show all directions, the fewer
# the fewer rows there are.
_DAMPING, _DAMPING_OF_FEW = 1e-3, 1e-2


@torch.no_grad()
def harden_block(
    network: fx.GraphModule,
    done: Quantizers,
    block: Block,
    soft: Mapping[str, SoftRounding],
    inputs: Sequence[Cache],
    ranks: Ranks = ALONE,
) -> None:
    """Finish the block's ``soft`` weights (by tensor) layer by layer, each on what the quantized ones before it give.

    ``inputs``: the block's, in the quantized network. An INT32 bias that only this layer reads takes up the mean
    error. A layer that is no product of a weight [O, K] with its inputs (a grouped ConvTranspose, a stack of matrices)
    is rounded weight by weight, and so is one that shares its weight with another or has more than 4,608 inputs (with G
    groups, more than 4,608 / sqrt(G) in each). ``ranks``: have a share of the inputs each.
    """
    nodes = tensor_nodes(network)
    for layer in block.layers:
        if layer.weight not in soft or layer.weight in done.weights:
            continue
        weight, node = soft[layer.weight], nodes[layer.output]
        if done.is_shared(layer.weight) or not is_product(layer, node, weight):
            done.weights[layer.weight] = weight.harden()
            continue
        absorbs = absorbs_error(done, layer, node)
        compensation = Compensation(node, weight, inputs_of(done, block, layer, inputs), absorbs=absorbs, ranks=ranks)
        ((done.weights[layer.weight], shift),) = compensation.round([weight])
        if shift is not None:
            done.shift_bias(layer, shift)
            done.round_bias(layer, soft)


def absorbs_error(done: Quantizers, layer: Layer, node: fx.Node) -> bool:
    """Whether the layer's bias can take up the mean error of its outputs."""
    return done.can_shift_bias(layer) and bool(node.kwargs.get("beta", 1.0) == 1.0)


class Compensation:
    """Rounds weights of a layer so that errors make up for each other on its ``inputs``, of which moments are kept.

    ``node``: the layer's. ``weight``: any soft weight of it, which tells shapes. ``absorbs``: the bias takes up the
    mean error. ``rows``: of the inputs, that are enough. ``ranks``: have a share of these inputs each.
    """

    def __init__(
        self,
        node: fx.Node,
        weight: SoftRounding,
        inputs: Iterable[Tensor],
        *,
        absorbs: bool,
        rows: int = _ROWS,
        ranks: Ranks = ALONE,
    ) -> None:
        self._product = _Product(node, weight)
        self._absorbs, self._ranks = absorbs, ranks
        self._moments, self._means, rows = self._product.moments(inputs, rows, ranks)
        diagonal = torch.diagonal(self._moments, dim1=1, dim2=2)
        damping = max(_DAMPING, _DAMPING_OF_FEW * self._moments.shape[1] / rows) * diagonal.mean(1)
        if absorbs:
            self._moments -= self._means[:, :, None] * self._means[:, None, :]
        diagonal += damping.clamp(min=torch.finfo(torch.float64).tiny)[:, None]

    def round(self, weights: Sequence[SoftRounding]) -> list[tuple[WeightQuantizer, Tensor | None]]:
        """The finished weights, each with what is to be added to the bias, [C], or None.

        What learning has decided stays: it knows of the predictions.
        """
        relaxed = torch.cat([self._product.rows(weight.relaxed()) for weight in weights], 1)
        rounded = self._rounded(relaxed)
        errors = (rounded - relaxed) @ self._means[:, :, None]
        return [
            (
                weight.harden(self._product.weight(part)),
                -(error.flatten() * weight.qparams.scale).float() if self._absorbs else None,
            )
            for weight, part, error in zip(
                weights, rounded.chunk(len(weights), 1), errors.chunk(len(weights), 1), strict=True
            )
        ]

    def _rounded(self, relaxed: Tensor) -> Tensor:
        """Integers for ``relaxed`` [G, O, K], of which each rank rounds some groups, or outputs where these are few."""
        ranks, moments = self._ranks, self._moments
        if ranks.is_alone:
            return round_compensated(relaxed, relaxed.floor(), relaxed.ceil(), moments)
        axis = 0 if len(relaxed) >= ranks.size else 1
        own = relaxed.tensor_split(ranks.size, axis)[ranks.rank]
        moments = moments.tensor_split(ranks.size)[ranks.rank] if axis == 0 else moments
        rounded = round_compensated(own, own.floor(), own.ceil(), moments).to(torch.int16)
        return ranks.rows(rounded.movedim(axis, 0)).movedim(0, axis).double()


def hardening_bytes(network: fx.GraphModule, block: Block, soft: Mapping[str, SoftRounding]) -> int:
    """About the memory that `harden_block` takes for these weights, beside that of a forward pass."""
    nodes = tensor_nodes(network)
    largest = 0
    for layer in block.layers:
        if layer.weight in soft and is_product(layer, nodes[layer.output], soft[layer.weight]):
            weight, groups = soft[layer.weight], _groups(nodes[layer.output])
            largest = max(largest, _moments_bytes(groups, _k(weight), weight.alpha.numel()))
    return largest + 3 * 4 * _ELEMENTS


def rounding_bytes(groups: int, k: int, weights: int, positions: int) -> int:
    """About what rounding a layer takes: ``weights`` numbers with ``k`` inputs each, at ``positions`` of an image."""
    if groups * k**2 > _LARGEST_K**2:
        return 0
    return _moments_bytes(groups, k, weights) + 3 * 4 * min(_ELEMENTS, groups * k * positions * _BATCH)


def _moments_bytes(groups: int, k: int, weights: int) -> int:
    """Moments of the inputs, weights and rows of a batch, all in float64."""
    return 8 * (6 * groups * k * k + 7 * weights + 2 * groups * k * _BATCH * _ROWS_OF_IMAGE)


def _k(weight: SoftRounding) -> int:
    assert weight.point.axis is not None
    return weight.alpha.numel() // weight.alpha.shape[weight.point.axis]


def inputs_of(done: Quantizers, block: Block, layer: Layer, inputs: Sequence[Cache]) -> Iterator[Tensor]:
    """The layer's input in the quantized network, a few images at a time, in an order that is always the same."""
    before = done.block(block, [layer.input])
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(0))
    for chosen in order.split(_BATCH):
        rows = Chosen(chosen)
        (x,) = before(*(cache[rows] for cache in inputs))
        yield x


def _groups(node: fx.Node) -> int:
    group: Any = node.kwargs.get("group", 1)
    return int(group)


def is_product(layer: Layer, node: fx.Node, weight: SoftRounding) -> bool:
    """Whether the layer is a product of a weight [O, K] with its inputs, of a size whose moments can be held."""
    if _groups(node) * _k(weight) ** 2 > _LARGEST_K**2:
        return False
    if layer.op_type == "ConvTranspose":
        return _groups(node) == 1
    return layer.op_type == "Conv" or weight.alpha.ndim == 2


class _Product:
    """A layer as a product of its weight [G, O, K], G groups, with rows of inputs [G, K].

    Rows of a Conv are its windows. Those of others come from the operator itself: given a weight of K output channels,
    each of which picks one element, it puts out what it would multiply, whatever its attributes.
    """

    def __init__(self, node: fx.Node, weight: SoftRounding) -> None:
        assert weight.point.axis is not None
        self._node, self._axis = node, weight.point.axis
        first = weight.alpha.detach().movedim(self._axis, 0)
        self._shape, self._k = first.shape, _k(weight)
        self._groups = _groups(node)
        self._device = first.device
        self._channels = 1 if first.ndim > 2 else -1  # the axis of a Conv's output, of a Gemm's or MatMul's

    def rows(self, weight: Tensor) -> Tensor:
        """[G, O, K] in float64 from the weight's shape."""
        return weight.movedim(self._axis, 0).reshape(self._groups, -1, self._k).double()

    def weight(self, rows: Tensor) -> Tensor:
        """The weight's shape in float32 from [G, O, K]."""
        return rows.float().reshape(self._shape).movedim(0, self._axis).contiguous()

    def moments(
        self, inputs: Iterable[Tensor], enough: int = _ROWS, ranks: Ranks = ALONE
    ) -> tuple[Tensor, Tensor, int]:
        """Second [G, K, K] and first [G, K] moments of the rows, float64, and their number.

        Random positions of one image after the other, until there are ``enough`` rows, of which each of the ``ranks``
        takes its share.
        """
        generator = torch.Generator().manual_seed(0)
        second: Tensor | float = 0.0
        first: Tensor | float = 0.0
        count = 0
        rows_of = self._windows if self._node.target is conv else self._picked
        for x in itertools.chain.from_iterable(map(self._pieces, inputs)):
            part = rows_of(x, generator).double()
            second, first = second + part @ part.transpose(1, 2), first + part.sum(2)
            count += part.shape[2]
            if count >= ranks.share_of(enough):
                break
        assert isinstance(second, Tensor)
        assert isinstance(first, Tensor)
        second, first = ranks.sum_over(second, first)
        count = sum(ranks.gather(count))
        return second / count, first / count, count

    def _windows(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What a Conv multiplies at some of its positions, [G, K, count]."""
        attributes: Any = self._node.kwargs
        windows = conv_windows(x, self._shape[2:], **attributes)
        axes = len(self._shape) - 2
        places = (len(x), *windows.shape[2 : 2 + axes])
        some = torch.stack(torch.unravel_index(_some(math.prod(places), len(x), generator), places)).to(x.device)
        rows = windows.movedim(1, 1 + axes)[some.unbind()]  # [count, C, kernel]
        return rows.reshape(len(rows), self._groups, self._k).permute(1, 2, 0).contiguous()

    def _picked(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What any layer multiplies at some of its positions, likewise."""
        positions = self._pick(x, slice(0, 1)).shape[2]
        some = _some(positions, len(x), generator).to(x.device)
        size = max(1, _ELEMENTS // (self._groups * positions))
        return torch.cat([self._pick(x, slice(k, k + size))[:, :, some] for k in range(0, self._k, size)], 1)

    def _pick(self, x: Tensor, chosen: slice) -> Tensor:
        """The ``chosen`` ones of the K elements at every position, [G, k, positions]."""
        eye = torch.eye(self._k, device=self._device).view(self._k, *self._shape[1:])[chosen]
        picks = eye.repeat(self._groups, *[1] * (eye.ndim - 1)).movedim(0, self._axis).contiguous()
        picked = self._node.target(x, picks, **self._node.kwargs)  # type: ignore[operator]
        channels_first: Tensor = picked.movedim(self._channels, 0).flatten(1)
        return channels_first.view(self._groups, len(eye), -1)

    def _pieces(self, x: Tensor) -> Sequence[Tensor]:
        positions = math.prod(x.shape[2:]) if self._channels == 1 else math.prod(x.shape[1:-1])
        return torch.split(x, max(1, _ELEMENTS // (self._groups * self._k * positions)))


def _some(positions: int, images: int, generator: torch.Generator) -> Tensor:
    """Indices of random positions, on the CPU."""
    return torch.randperm(positions, generator=generator)[: _ROWS_OF_IMAGE * images]
