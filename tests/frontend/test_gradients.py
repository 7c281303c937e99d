"""Gradients of every differentiable operator of the table, against finite differences in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from pdq_export.frontend import import_model, supported_operators

from .models import Array, one_node
from .operator_cases import Case, cases, f64, inputs_of, model_of

# Piecewise constant, or of whole numbers, truth values and shapes.
WITHOUT_GRADIENT = {
    *("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"),
    *("ArgMax", "ArgMin", "Floor", "Ceil", "Round", "Sign"),
    *("Shape", "Size", "Constant", "ConstantOfShape", "Range"),
}


def parameters() -> list[Any]:
    return [pytest.param(found, id=f"{found[0]}-{number}") for number, found in enumerate(cases())]


@pytest.mark.parametrize("found", parameters())
def test_gradient(found: Case) -> None:
    module = import_model(model_of(found))
    tensors = [torch.from_numpy(value.copy()) for value in inputs_of(found)]
    # Running statistics and a type donor have no gradient in any framework.
    frozen = {"BatchNormalization": (3, 4), "CastLike": (1,)}.get(found[0], ())
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index not in frozen)

    def differentiable(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(result for result in module(*values) if result.is_floating_point())

    assert all(result.requires_grad for result in differentiable(*tensors))
    assert torch.autograd.gradcheck(differentiable, tensors)


def test_weights_that_are_constants_get_gradients() -> None:
    """A pass may turn a buffer into something that is learned: it is read by the graph, not baked into it."""
    inputs = [f64(2, 3, 5, 5), f64(4, 3, 3, 3), f64(4)]
    module = import_model(one_node("Conv", inputs, 19, constants=(1, 2)))
    buffers = dict(module.named_buffers())
    for name in buffers:
        setattr(module, name, buffers[name].requires_grad_())
    module(torch.from_numpy(inputs[0]))[0].sum().backward()
    assert all(getattr(module, name).grad is not None for name in buffers)


ROOTS = [
    ("Sqrt", [f64(4, 4)], {}),
    ("Pow", [f64(4, 4), np.array(0.5)], {}),
    ("Pow", [f64(4, 4), np.full((4, 4), 0.3)], {}),
    ("ReduceL2", [f64(4, 4), np.array([1], np.int64)], {}),
    ("LpNormalization", [f64(4, 4)], {"axis": 1}),
    ("LpPool", [f64(1, 1, 4, 4)], {"kernel_shape": [2, 2]}),
    ("GlobalLpPool", [f64(1, 4, 1, 1)], {}),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes"), ROOTS)
def test_a_slope_that_is_infinite_at_zero_counts_as_zero(
    op_type: str, inputs: list[Array], attributes: dict[str, Any]
) -> None:
    """What a Relu in front of a root or a norm makes common; the infinite slope times 0 was NaN, and the end."""
    opset = 19 if op_type == "ReduceL2" else 17
    module = import_model(one_node(op_type, inputs, opset, attributes, constants=range(1, len(inputs))))
    x = torch.zeros(inputs[0].shape, dtype=torch.float64, requires_grad=True)
    (y,) = module(torch.relu(x))
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_every_operator_is_checked_or_has_no_gradient() -> None:
    checked = {found[0] for found in cases()}
    assert checked.isdisjoint(WITHOUT_GRADIENT)
    assert checked | WITHOUT_GRADIENT == set(supported_operators())
