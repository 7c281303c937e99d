"""Finished blocks as plain states, and back: what a run that goes on replays instead of calibrating."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from pdq_export.calibrate.block_state import BlockState
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.quantizers import ActivationQuantizer, WeightQuantizer
from pdq_export.errors import StateError
from pdq_export.numerics.search import QParams
from pdq_export.spec import Block, ChannelStatistics, Point, QuantizedTensor

_MOST_REACHED = 2 * float(np.finfo(np.float32).max)


def state_of(done: Quantizers, block: Block, estimated: Mapping[str, ChannelStatistics]) -> BlockState:
    """What the finished ``block`` leaves behind; ``estimated``: statistics by layer output, of any block."""
    outputs = [layer.output for layer in block.layers]
    changed = [name for name in _shiftable(done, block) if name in done.shifted]
    return BlockState(
        tensors={point.tensor: done.tensor(point) for point in done.settled_by(block)},
        biases={name: done.shifted[name].cpu().numpy() for name in changed},
        statistics={name: estimated[name] for name in outputs if name in estimated},
    )


def restore(done: Quantizers, block: Block, state: BlockState) -> None:
    """Put into ``done`` what `state_of` has taken from it. Raises StateError for another network's state."""
    wanted = {point.tensor: point for point in done.settled_by(block)}
    _check_names(block, "quantized tensors", state.tensors, wanted, missing=set(wanted) - set(state.tensors))
    _check_names(block, "changed biases", state.biases, _shiftable(done, block))
    device = next((x.device for x in done.constants.values()), torch.device("cpu"))
    for name, point in wanted.items():
        tensor = state.tensors[name]
        _check_tensor(block, point, tensor, None if point.axis is None else done.constants[name].shape)
        scale, zero_point = (
            torch.from_numpy(np.array(x, np.float32)).to(device) for x in (tensor.scale, tensor.zero_point)
        )
        qparams = QParams(scale=scale, zero_point=zero_point)
        if tensor.integers is None:
            done.activations[name] = ActivationQuantizer(point, qparams)
        else:
            q = torch.from_numpy(tensor.integers.astype(np.float32)).to(device)
            done.weights[name] = WeightQuantizer(point, q, qparams)
    for name, bias in state.biases.items():
        _check_shape(block, name, bias.shape, done.constants[name].shape)
        if not np.isfinite(bias).all():
            raise StateError(
                f"block {block.name!r}: the state of an earlier run has a bias {name!r} with numbers that are not "
                "finite; expected finite ones; calibrate without it"
            )
        done.shifted[name] = done.constants[name] = torch.from_numpy(np.array(bias, np.float32)).to(device)
    done.round_biases(block)


def _shiftable(done: Quantizers, block: Block) -> list[str]:
    return [layer.bias for layer in block.layers if layer.bias is not None and done.can_shift_bias(layer)]


def _check_tensor(block: Block, point: Point, tensor: QuantizedTensor, weight: Sequence[int] | None) -> None:
    """``weight``: its shape; None for an activation."""
    if tensor.point != point:
        raise StateError(
            f"block {block.name!r}: the state of an earlier run has {tensor.point} where the plan has {point}; "
            "expected a state of this very plan; calibrate without it"
        )
    shape = () if weight is None else (weight[point.axis or 0],)
    _check_shape(block, point.tensor, None if tensor.integers is None else tensor.integers.shape, weight)
    for values in (tensor.scale, tensor.zero_point):
        _check_shape(block, point.tensor, np.shape(values), shape)
    integers = [tensor.zero_point, tensor.zero_point if tensor.integers is None else tensor.integers]
    inside = all(
        point.qmin <= int(x.min(initial=point.qmax)) and int(x.max(initial=point.qmin)) <= point.qmax for x in integers
    )
    # What a scale reaches is what FP32 holds, up to rounding; a comparison with NaN fails.
    reached = tensor.scale.astype(np.float64) * (point.qmax - point.qmin)
    usual = (tensor.scale > 0) & (reached <= _MOST_REACHED)
    if not (inside and usual.all()):
        raise StateError(
            f"block {block.name!r}: the state of an earlier run has numbers for {point.tensor!r} that are no "
            f"quantization; expected scales above 0 that keep within FP32, integers from {point.qmin} to "
            f"{point.qmax}; calibrate without it"
        )


def _check_names(
    block: Block, what: str, given: Iterable[str], known: Iterable[str], missing: Iterable[str] = ()
) -> None:
    if wrong := sorted({*missing, *(set(given) - set(known))}):
        raise StateError(
            f"block {block.name!r}: the state of an earlier run has {what} {', '.join(sorted(given)) or 'none'}, which "
            f"differ from the block's in {', '.join(wrong)}; expected a state of this network; calibrate without it"
        )


def _check_shape(block: Block, name: str, given: Sequence[int] | None, wanted: Sequence[int] | None) -> None:
    if (given is None) != (wanted is None) or tuple(given or ()) != tuple(wanted or ()):
        sizes = None if wanted is None else list(wanted)
        raise StateError(
            f"block {block.name!r}: the state of an earlier run has shape {given} for {name!r}; expected {sizes}; "
            "calibrate without it"
        )
