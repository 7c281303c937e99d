"""What quantizing single tensors does to the network: the data that bits are allotted by."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pdq_export.spec import Bits, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors that have to share a width; at present each is alone (`search.groups` says why).

    ``tensors``: names of points, all of ``role``, which is a weight or a learned activation. ``layers``: names of the
    nodes that read the weight, or that end in one of the activations; none where an activation is behind none.
    ``block``: the name of the first block that has one of these layers, or that writes the activation.
    """

    role: Role
    tensors: tuple[str, ...]
    layers: tuple[str, ...]
    block: str

    @property
    def name(self) -> str:
        """The first of its tensors, which no other group has."""
        return self.tensors[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """By group and width, what quantizing that group alone does.

    ``prediction``: to the network's scores: the mean KL divergence in nats, or the squared error over the mean square,
    as ``measure`` says, summed over outputs. ``block``: to what the group's block gives, as squared error over its mean
    square. ``images``: how many it was measured on. ``estimate``: "measured", each by running what comes behind, or
    "fisher", by the second-order expansion around the FP32 network. ``pairs``: by two groups of one block and their
    widths, what both together do to the prediction beyond the sum of each; empty where that was not asked for.
    """

    groups: tuple[Group, ...]
    measure: Literal["kl", "mse", "kl and mse"]
    images: int
    prediction: Mapping[str, Mapping[Bits, float]]
    block: Mapping[str, Mapping[Bits, float]]
    estimate: Literal["fisher", "measured"] = "fisher"
    pairs: Mapping[tuple[str, str], Mapping[tuple[Bits, Bits], float]] = dataclasses.field(default_factory=dict)
