"""Adam (Kingma and Ba, 2015) with all its numbers as tensors: to the bit as torch.optim has it, whose own reads rates
and the number of the step on the host.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moves ``groups`` of parameters in place, so many operators a step for any number of them.

    The parameters of a group share a rate, or have one shape and a rate each.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]) -> None:
        self._groups = [list(group) for group in groups]
        self._first, self._second = ([[torch.zeros_like(x) for x in group] for group in groups] for _ in range(2))

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Sequence[Tensor | None]], rates: Sequence[Tensor | Sequence[Tensor]], root: Tensor
    ) -> None:
        """One update; what has no gradient stays.

        ``rates``: by group, one [] for all or one for each; over the bias of the first moment, 1 - BETA1^t. ``root``:
        of the second moment's, 1 - BETA2^t.
        """
        known = [[g is not None for g in group] for group in gradients]
        x, first, second = (_all(groups, known) for groups in (self._groups, self._first, self._second))
        found = [g for group in gradients for g in group if g is not None]
        if not found:
            return
        torch._foreach_lerp_(first, found, 1 - BETA1)
        torch._foreach_mul_(second, BETA2)
        torch._foreach_addcmul_(second, found, found, value=1 - BETA2)
        moves: list[Tensor] = []
        for group, rate, with_gradient in zip(self._first, rates, known, strict=True):
            some = [m for m, has in zip(group, with_gradient, strict=True) if has]
            if some:
                own = (
                    rate if isinstance(rate, Tensor) else [r for r, has in zip(rate, with_gradient, strict=True) if has]
                )
                moves.extend(torch._foreach_mul(some, own))
        roots = list(torch._foreach_sqrt(second))
        torch._foreach_div_(roots, root)
        torch._foreach_add_(roots, EPSILON)
        torch._foreach_addcdiv_(x, moves, roots, value=-1)


def _all(groups: Sequence[Sequence[Tensor]], known: Sequence[Sequence[bool]]) -> list[Tensor]:
    """The members of all groups that are known to have a gradient."""
    return [x for group, has in zip(groups, known, strict=True) for x, one in zip(group, has, strict=True) if one]


def clamp_each_(parameters: Sequence[Tensor], low: Sequence[Tensor], high: Sequence[Tensor]) -> None:
    """Keep each of the ``parameters`` between its bounds, in place and all at once."""
    foreach: Any = torch  # whose stubs know numbers alone
    foreach._foreach_clamp_min_(list(parameters), list(low))
    foreach._foreach_clamp_max_(list(parameters), list(high))
