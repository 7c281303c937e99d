"""The second-order estimate: the loss of a quantization error as the FP32 network's Fisher information sees it.

Around the FP32 network the gradient of the KL divergence is zero, and its Hessian at the scores z is F = diag(p) - p
p^T. An error e of a tensor changes z by J e, which costs (J e)^T F (J e) / 2. With B B^T = F and signs r that are drawn
at random, s = B r has E[s s^T] = F, so that the cost is E[(s^T J e)^2] / 2: one backward pass of s through the network
gives J^T s at every tensor, and after that every width of every tensor is an inner product. Nothing is assumed of the
errors of different elements, as it is where only the diagonal of the Fisher information is kept. For squared errors F
is a multiple of the identity, and what the block gives is compared in the same way, from probes at its outputs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from pdq_export import operators
from pdq_export.calibrate.live import outputs_for
from pdq_export.calibrate.prediction import images_first
from pdq_export.calibrate.subgraph import extract, tensor_nodes
from pdq_export.search.candidates import Effect, Trial
from pdq_export.spec import Bits, Block, Layer, Role

_BATCH = 8
Products = Mapping[tuple[str, Bits], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expansion:
    """``prediction`` and ``block``: by group and width, s^T J e for each probe and image, [P, N]."""

    prediction: Products
    block: Products

    def effects(self) -> dict[tuple[str, Bits], Effect]:
        """What each group does alone."""
        return {
            key: Effect(prediction=float(u.square().mean()) / 2, block=float(self.block[key].square().mean()))
            for key, u in self.prediction.items()
        }

    def interaction(self, first: tuple[str, Bits], second: tuple[str, Bits]) -> float:
        """What two groups do to the prediction together, beyond the sum of what each does."""
        return float((self.prediction[first] * self.prediction[second]).mean())


def expand(trial: Trial, *, probes: int, seed: int, told: Callable[[int, int], None]) -> Expansion:
    """Expand the loss around the FP32 network, a few images at a time; ``told``: of how many are done.

    ``probes``: of the prediction, each a backward pass. The network is gone through block by block, so that no more
    than one block is held with what its backward pass needs.
    """
    passes = _Passes(trial, probes, seed)
    images = len(next(iter(trial.inputs.values())))
    for start in range(0, images, _BATCH):
        stop = min(start + _BATCH, images)
        passes.run({name: x.slice(start, stop) for name, x in trial.inputs.items()}, start, stop)
        told(stop, images)
    return passes.result()


class Tap(nn.Module):
    """Hands a tensor on and keeps it, so that there is a gradient at it."""

    value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.value = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        return self.value


class _Piece:
    """A block with taps at the activations of groups and at the outputs of layers."""

    def __init__(self, trial: Trial, block: Block, later: Sequence[Block]) -> None:
        context, scores = trial.context, trial.scores
        nodes = tensor_nodes(context.network)
        self.block = block
        self.handed_on = outputs_for(block, later)
        self.scores = [name for name in scores.values if _written_by(nodes[name]) in block.nodes]
        self.compared = scores.compared(block, later)
        activations = [point.tensor for point in trial.done.points(block) if point.role is Role.ACTIVATION]
        self.taps = {name: Tap() for name in dict.fromkeys([*activations, *(layer.output for layer in block.layers)])}
        ends = [*self.handed_on, *self.scores, *self.compared]
        self.names = list(dict.fromkeys([*ends, *(layer.input for layer in block.layers)]))
        self.plain = extract(context.network, block.inputs, self.handed_on)
        self.module = extract(
            context.network, block.inputs, self.names, quantizers=self.taps, unquantized=context.plan.unquantized
        )


def _written_by(node: fx.Node) -> str:
    """The ONNX node that a tensor is of, before calibration has put its images first."""
    while not node.meta.get("onnx_node") and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.meta.get("onnx_node", ""))


class _Passes:
    def __init__(self, trial: Trial, probes: int, seed: int) -> None:
        self._scores, self._candidates, self._units = trial.scores, trial.candidates, trial.units
        self._constants = trial.done.constants
        self._probes, self._seed = probes, seed
        network, blocks = trial.context.network, trial.context.plan.blocks
        self._nodes, self._places = tensor_nodes(network), network.meta.get("images", {})
        self._group = {name: group for group in trial.groups for name in group.tensors}
        self._pieces = [_Piece(trial, block, blocks[n + 1 :]) for n, block in enumerate(blocks)]
        self._parts: dict[tuple[str, Bits], list[Tensor]] = {}
        self._sums: dict[tuple[str, Bits], Tensor] = {}  # of the images at hand

    def result(self) -> Expansion:
        joined = {key: torch.cat(parts, 1) for key, parts in self._parts.items()}
        return Expansion(
            prediction={key: u[: self._probes] for key, u in joined.items()},
            block={key: u[self._probes :] for key, u in joined.items()},
        )

    def run(self, inputs: Mapping[str, Tensor], start: int, stop: int) -> None:
        """Add what the images from ``start`` to ``stop`` say."""
        generators = [torch.Generator().manual_seed(_mixed(self._seed, image)) for image in range(start, stop)]
        values = dict(inputs)
        with torch.no_grad():
            for piece in self._pieces:
                given = (values[name] for name in piece.block.inputs)
                values.update(zip(piece.handed_on, piece.plain(*given), strict=True))
        self._sums = {}
        gradients: dict[str, list[Tensor]] = {}
        for piece in reversed(self._pieces):
            self._run(piece, values, gradients, generators)
        for name in inputs:
            if name in self._group and name in gradients:
                self._add_activation(name, inputs[name], gradients[name], None)
        for key, total in self._sums.items():
            self._parts.setdefault(key, []).append(total.cpu())

    def _run(
        self,
        piece: _Piece,
        values: Mapping[str, Tensor],
        gradients: dict[str, list[Tensor]],
        generators: Sequence[torch.Generator],
    ) -> None:
        """Send gradients back through a block, and multiply the errors in it by them."""
        leaves = {name: values[name].detach() for name in piece.block.inputs}
        wanted = [name for name in leaves if leaves[name].is_floating_point()]
        for name in wanted:
            leaves[name].requires_grad_()
        with torch.enable_grad():
            outputs = dict(zip(piece.names, piece.module(*leaves.values()), strict=True))
        taps = [tap.value for tap in piece.taps.values()]
        starts = self._starts(piece, outputs, gradients, generators)
        found: list[tuple[Tensor, ...]] = []
        for number, given in enumerate(starts):
            ends = {name: g for name, g in given.items() if outputs[name].requires_grad}
            back = torch.autograd.grad(
                [outputs[name] for name in ends],
                [*taps, *(leaves[name] for name in wanted)],
                list(ends.values()),
                retain_graph=number + 1 < len(starts),
                materialize_grads=True,
            )
            found.append(back[: len(taps)])
            if number < self._probes:
                for name, g in zip(wanted, back[len(taps) :], strict=True):
                    known = gradients.setdefault(name, [])
                    if number < len(known):
                        known[number] = known[number] + g
                    else:
                        known.append(g)
        with torch.no_grad():
            by_tap = dict(zip(piece.taps, zip(*found, strict=True), strict=True))
            for name, tap in piece.taps.items():
                if name in self._group:
                    self._add_activation(name, tap.value.detach(), by_tap[name], piece.block)
            for layer in piece.block.layers:
                self._add_weight(layer, outputs[layer.input].detach(), by_tap[layer.output], piece.block)

    def _starts(
        self,
        piece: _Piece,
        outputs: Mapping[str, Tensor],
        gradients: Mapping[str, Sequence[Tensor]],
        generators: Sequence[torch.Generator],
    ) -> list[dict[str, Tensor]]:
        """What goes back from the block's outputs: of each probe of the prediction, and of one of the block itself."""
        starts: list[dict[str, Tensor]] = [{} for _ in range(self._probes + 1)]
        for name in piece.scores:
            probes = self._score_probes(name, outputs[name].detach(), generators)
            for number, s in enumerate(probes):
                starts[number][name] = s
        for name in piece.handed_on:
            for number, g in enumerate(gradients.get(name, ())):
                known = starts[number].get(name)
                starts[number][name] = g if known is None else known + g
        for name in piece.compared:
            y = outputs[name].detach()
            size = (y.numel() / len(y)) ** 0.5 * self._units.get(name, 0.0)
            if size > 0:
                starts[-1][name] = _signs(y, generators) / size
        return starts

    def _score_probes(self, name: str, z: Tensor, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Vectors s [B, ...] with E[s s^T] the Hessian of the loss at the scores ``z``."""
        axis = self._scores.class_axes[name]
        positions = z.numel() / len(z)
        if axis is None:
            unit = self._units[name]
            factor = (2 / positions) ** 0.5 / unit if unit else 0.0
            return [_signs(z, generators) * factor for _ in range(self._probes)]
        p = torch.softmax(z, axis)
        root, found = p.sqrt(), []
        for _ in range(self._probes):
            drawn = root * _signs(z, generators)
            found.append((drawn - p * drawn.sum(axis, keepdim=True)) / (positions / z.shape[axis]) ** 0.5)
        return found

    def _add_activation(self, name: str, x: Tensor, gradients: Sequence[Tensor], block: Block | None) -> None:
        errors = {
            width: self._rows(name, candidate.quantizer(x) - x) for width, candidate in self._candidates[name].items()
        }
        self._add(name, self._stack(name, gradients), errors, block)

    def _add_weight(self, layer: Layer, x: Tensor, gradients: Sequence[Tensor], block: Block) -> None:
        node, weight = self._nodes[layer.output], self._constants[layer.weight]
        errors = {}
        for width, candidate in self._candidates[layer.weight].items():
            error = node.target(x, candidate.quantizer() - weight, **node.kwargs)  # type: ignore[operator]
            if candidate.shift is not None:
                error = error + candidate.shift.view(-1, *[1] * (error.ndim - 2 if _is_convolution(layer) else 0))
            errors[width] = self._rows(layer.output, error)
        self._add(layer.weight, self._stack(layer.output, gradients), errors, block)

    def _add(self, name: str, gradients: Tensor, errors: Mapping[Bits, Tensor], block: Block | None) -> None:
        """Multiply errors [B, E] by gradients [P, B, E]; errors of one group add up before they are squared.

        All widths at once, an image at a time: what takes time is reading the gradients.
        """
        group = self._group[name]
        if len(gradients) > self._probes and (block is None or block.name != group.block):
            gradients = gradients[: self._probes]
        shape = len(errors), self._probes + 1, gradients.shape[1]
        products = torch.zeros(shape, dtype=torch.float64, device=gradients.device)
        for image in range(gradients.shape[1]):
            by_width = torch.stack([error[image] for error in errors.values()])
            products[:, : len(gradients), image] = by_width @ gradients[:, image].T
        for width, product in zip(errors, products, strict=True):
            key = group.name, width
            self._sums[key] = self._sums[key] + product if key in self._sums else product

    def _stack(self, name: str, gradients: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._rows(name, g) for g in gradients])

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """A tensor as [B, ...], an image a row."""
        place = self._places.get(name)
        return (x if place is None else images_first(x, place.axis, place.outer, place.inner)).flatten(1)


def _is_convolution(layer: Layer) -> bool:
    return operators.get(layer.op_type).per_image


def _mixed(seed: int, image: int) -> int:
    return (seed * 1_000_003 + image) % 2**63


def _signs(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """-1 or 1 for each element of ``x`` [B, ...], of each image by a generator of its own."""
    if len(x) != len(generators):
        return _draw(x.shape, generators[0]).to(x)
    return torch.stack([_draw(x.shape[1:], generator) for generator in generators]).to(x)


def _draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
