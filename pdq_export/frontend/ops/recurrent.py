"""LSTM, GRU and RNN, step by step: clear, differentiable, and the same for every variant that ONNX has."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.registry import converter

# One step: (X_t W^T + bias of W, recurrent weight, its bias, states (h, c)) -> new states.
States = tuple[Tensor, Tensor]
Cell = Callable[[Tensor, Tensor, Tensor, States], States]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "softsign": F.softsign,
}
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _convert(node: OnnxNode) -> Call:
    if node.attribute("clip") is not None or node.attribute("input_forget"):
        raise node.unsupported("attribute clip or input_forget", "export the model without it")
    directions = 2 if node.attribute("direction") == "bidirectional" else 1
    names = _DEFAULTS[node.op_type] * directions
    given = (node.attribute("activations") or [])[: len(names)]  # RNN's default names two for one direction, too
    names[: len(given)] = given
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    if unknown:
        raise node.unsupported(f"activation {unknown[0]!r}", f"use one of {', '.join(_ACTIVATIONS)}")
    options = {
        "kind": node.op_type,
        "direction": node.attribute("direction"),
        "activations": [name.lower() for name in names],
        "batch_first": bool(node.attribute("layout")),
        "linear_before_reset": bool(node.attribute("linear_before_reset")),
    }
    positions = range(8 if node.op_type == "LSTM" else 6)
    inputs = [None if _is_zero_state(node, position) else node.tensor(position) for position in positions]
    return Call(recurrent, inputs, options, outputs=True)


def _is_zero_state(node: OnnxNode, position: int) -> bool:
    """A constant zero state names the file's batch size; without it the layer runs at any."""
    value = node.constant(position) if position in (5, 6) else None
    return value is not None and not value.any()


for _op_type in _DEFAULTS:
    converter(_op_type, (7, 14, 22))(_convert)


def recurrent(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peephole: Tensor | None = None,
    *,
    kind: str,
    direction: str,
    activations: Sequence[str],
    batch_first: bool,
    linear_before_reset: bool,
) -> tuple[Tensor, ...]:
    """ONNX LSTM, GRU and RNN: Y [T, D, N, H], Y_h [D, N, H] and for LSTM Y_c, D directions, G gates.

    x [T, N, C], weight [D, G H, C], recurrence [D, G H, H], bias [D, 2 G H], lengths [N], states [D, N, H], peephole
    [D, 3 H]. With ``batch_first`` N comes first in x, Y and the states.
    """
    if batch_first:
        x = x.transpose(0, 1)
        initial_h, initial_c = (s if s is None else s.transpose(0, 1) for s in (initial_h, initial_c))
    functions = [_ACTIVATIONS[name] for name in activations]
    count = len(_DEFAULTS[kind])
    results = []
    for d in range(weight.shape[0]):
        size = recurrence.shape[2]
        biases = (x.new_zeros(()), x.new_zeros(())) if bias is None else bias[d].chunk(2)
        cell = _cell(kind, functions[d * count : (d + 1) * count], linear_before_reset, _at(peephole, d))
        zeros = x.new_zeros(x.shape[1], size)
        h, c = (zeros if s is None else s[d].expand_as(zeros) for s in (initial_h, initial_c))
        gates = x @ weight[d].t() + biases[0]
        backwards = direction == "reverse" or d == 1
        results.append(_scan(cell, gates, recurrence[d], biases[1], (h, c), lengths, backwards))
    y, y_h, y_c = (torch.stack(parts, 1 if k == 0 else 0) for k, parts in enumerate(zip(*results, strict=True)))
    if batch_first:
        y, y_h, y_c = y.permute(2, 0, 1, 3), y_h.transpose(0, 1), y_c.transpose(0, 1)
    return (y, y_h, y_c) if kind == "LSTM" else (y, y_h)


def _at(tensor: Tensor | None, direction: int) -> Tensor | None:
    return None if tensor is None else tensor[direction]


def _scan(
    cell: Cell,
    gates: Tensor,
    recurrence: Tensor,
    bias: Tensor,
    states: States,
    lengths: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every hidden state [T, N, H] and the last states; beyond a sequence's length states stay and outputs are 0."""
    outputs = [states[0]] * len(gates)
    for t in reversed(range(len(gates))) if backwards else range(len(gates)):
        h, c = cell(gates[t], recurrence, bias, states)
        outputs[t] = h
        if lengths is not None:
            inside = (t < lengths.to(h.device)).unsqueeze(1)
            outputs[t] = torch.where(inside, h, torch.zeros_like(h))
            h, c = torch.where(inside, h, states[0]), torch.where(inside, c, states[1])
        states = (h, c)
    y = torch.stack(outputs) if outputs else states[0].new_zeros(0, *states[0].shape)
    return y, *states


def _cell(
    kind: str, functions: Sequence[Callable[[Tensor], Tensor]], linear_before_reset: bool, peephole: Tensor | None
) -> Cell:
    def rnn(gates: Tensor, recurrence: Tensor, bias: Tensor, states: States) -> States:
        return functions[0](gates + states[0] @ recurrence.t() + bias), states[1]

    def lstm(gates: Tensor, recurrence: Tensor, bias: Tensor, states: States) -> States:
        (f, g, out), (h, c) = functions, states
        i_t, o_t, f_t, c_t = (gates + h @ recurrence.t() + bias).chunk(4, 1)
        p_i, p_o, p_f = (0.0, 0.0, 0.0) if peephole is None else peephole.chunk(3)
        new = f(f_t + p_f * c) * c + f(i_t + p_i * c) * g(c_t)
        return f(o_t + p_o * new) * out(new), new

    def gru(gates: Tensor, recurrence: Tensor, bias: Tensor, states: States) -> States:
        (f, g), h = functions, states[0]
        size = h.shape[1]
        b = bias.expand(3 * size)
        z, r = f(gates[:, : 2 * size] + h @ recurrence[: 2 * size].t() + b[: 2 * size]).chunk(2, 1)
        if linear_before_reset:
            carried = r * (h @ recurrence[2 * size :].t() + b[2 * size :])
        else:
            carried = (r * h) @ recurrence[2 * size :].t() + b[2 * size :]
        new = g(gates[:, 2 * size :] + carried)
        return (1 - z) * new + z * h, states[1]

    return {"RNN": rnn, "LSTM": lstm, "GRU": gru}[kind]
