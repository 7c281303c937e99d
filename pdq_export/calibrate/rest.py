"""How far predictions move, through the rest of the network behind a block, in less than float32 where that is asked.

Only gradients of the block's outputs come from it: every number that a later block sees is made by other passes, all of
them in full float32.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pdq_export.calibrate.precision import alone_with_torch, tf32_products
from pdq_export.errors import OptionError


def check_precision(precision: str, device: torch.device) -> None:
    """Raise OptionError where the ``device`` has no such precision."""
    if precision == "tf32" and device.type != "cuda":
        raise OptionError(
            f"prediction_precision: tf32 is a precision of NVIDIA's GPUs, and calibration runs on {device.type}; "
            "expected float32 or bfloat16 there; take one of these, or give --device cuda"
        )


def alone_in(precision: str) -> AbstractContextManager[None]:
    """Let no other thread work with torch while predictions are measured in a ``precision`` of the whole process.

    Raises CalibrationError where one does now; one that begins meanwhile raises it.
    """
    return alone_with_torch() if precision == "tf32" else contextlib.nullcontext()


def measured_in(precision: str, compute: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """``compute(inputs)`` [] in ``precision``, "float32", "tf32" or "bfloat16", and so its gradients to ``inputs``.

    Gradients are computed at once and in the same precision, while what ``inputs`` come from is left alone: torch
    keeps TF32 for the whole process, and asks for it once more in the backward pass. Raises as `alone_in` does.
    """
    if precision == "float32":
        return compute(inputs)
    within = tf32_products() if precision == "tf32" else _bfloat16(inputs[0].device)
    result: Tensor = _AtOnce.apply(compute, within, *inputs)  # type: ignore[no-untyped-call]
    return result


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[Sequence[Tensor]], Tensor], within: AbstractContextManager[object], *inputs: Tensor
    ) -> Tensor:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad(), within:
            leaves = [x.detach().requires_grad_(needs) for x, needs in zip(inputs, needed, strict=True)]
            value = compute(leaves)
            found = iter(torch.autograd.grad(value, [x for x in leaves if x.requires_grad], allow_unused=True))
        ctx.save_for_backward(*(next(found) if needs else None for needs in needed))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (above,) = gradients
        return None, None, *(None if own is None else own * above for own in ctx.saved_tensors)


@contextlib.contextmanager
def _bfloat16(device: torch.device) -> Iterator[None]:
    # Without its cache: what is recorded must not read weights that were rounded outside of it.
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        yield
