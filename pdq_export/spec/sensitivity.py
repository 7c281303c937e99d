"""What quantizing single tensors does to the network: the data that bits are allotted by."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pdq_export.spec import Bits, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors that have to share a width: one weight, or the activations that an Add or a Concat joins.

    ``tensors``: names of points, all of ``role``. ``layers``: names of the nodes that read the weight, or that end in
    one of the activations. ``block``: the name of the first block that has one of these layers.
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
    as ``measure`` says. ``block``: to what the block gives, as squared error over its mean square. ``pairs``: by two
    groups of one block and their widths, what both together do to the prediction beyond the sum of each. ``images``:
    how many it was measured on.
    """

    groups: tuple[Group, ...]
    measure: Literal["kl", "mse"]
    images: int
    prediction: Mapping[str, Mapping[Bits, float]]
    block: Mapping[str, Mapping[Bits, float]]
    pairs: Mapping[tuple[str, str], Mapping[tuple[Bits, Bits], float]] = dataclasses.field(default_factory=dict)
