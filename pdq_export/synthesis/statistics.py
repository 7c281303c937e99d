"""How far images are from the statistics that BatchNormalization has gathered in training."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from pdq_export.calibrate.subgraph import extract, input_tensors, tensor_nodes
from pdq_export.numerics.moments import spatial_moments
from pdq_export.spec import ChannelStatistics

_TINY = 1e-12  # of a variance in units of the expected one
_ORDINARY = 2.0**30  # beyond it, and below its inverse, squares leave float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Expected:
    """Of a layer's output: the channels that are ``alive``, their ``mean`` in units of ``std``, and that; all [C].

    ``unit``: what outputs are divided by before they are squared; None where they are of ordinary size.
    """

    alive: Tensor
    mean: Tensor
    std: Tensor
    unit: float | None

    @classmethod
    def of(cls, statistics: ChannelStatistics, device: torch.device) -> "_Expected":
        alive = _alive(statistics)
        std = statistics.std[alive].astype(np.float64)
        largest = float(std.max())
        unit = None if 1 / _ORDINARY < largest < _ORDINARY else largest
        values = alive, statistics.mean[alive] / std, std / (unit or 1.0)
        chosen, mean, std_tensor = (torch.from_numpy(v).to(device) for v in values)
        return cls(alive=chosen, mean=mean.float(), std=std_tensor.float(), unit=unit)

    def distance(self, z: Tensor) -> Tensor:
        """Of ``z`` [N, C, ...]: squares of the differences of means and standard deviations, averaged over channels.

        In expected standard deviations; moments are those over all images and positions.
        """
        z = z if self.unit is None else z / self.unit
        moments = spatial_moments(z if z.ndim > 2 else z.unsqueeze(2))
        means, deviations = (values[:, self.alive] / self.std for values in moments)
        variance = deviations.square().mean(0) + means.var(0, unbiased=False)
        shift, spread = means.mean(0) - self.mean, (variance + _TINY).sqrt() - 1
        return (shift.square() + spread.square()).mean()


class Distance(nn.Module):
    """Of images [N, C, H, W] from what layers expect, averaged over layers: 0 is what was seen in training."""

    def __init__(
        self, layer_outputs: fx.GraphModule, expected: Mapping[str, _Expected], *, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.layer_outputs = layer_outputs
        self.expected = expected
        self.channels_last = channels_last

    @classmethod
    def of(
        cls, network: fx.GraphModule, statistics: Mapping[str, ChannelStatistics], *, channels_last: bool = False
    ) -> "Distance":
        """At the outputs of those layers of ``network`` (FP32, imported from ONNX) whose ``statistics`` are `usable`.

        ``channels_last``: whether it takes images [N, H, W, C].
        """
        known = tensor_nodes(network)
        names = [name for name in usable(statistics) if name in known]
        layer_outputs = extract(network, input_tensors(network), names)
        tensors = (*layer_outputs.parameters(), *layer_outputs.buffers())
        device = tensors[0].device if tensors else torch.device("cpu")
        expected = {name: _Expected.of(statistics[name], device) for name in names}
        return cls(layer_outputs, expected, channels_last=channels_last)

    def through(self, change: Callable[[fx.GraphModule], fx.GraphModule]) -> "Distance":
        """The same at the outputs of a network that is changed."""
        return Distance(change(self.layer_outputs), self.expected, channels_last=self.channels_last)

    @property
    def layers(self) -> int:
        """How many are compared."""
        return len(self.expected)

    def forward(self, images: Tensor) -> Tensor:
        images = images.permute(0, 2, 3, 1) if self.channels_last else images
        outputs = zip(self.layer_outputs(images), self.expected.values(), strict=True)
        return torch.stack([expected.distance(z) for z, expected in outputs]).mean()


def usable(statistics: Mapping[str, ChannelStatistics]) -> tuple[str, ...]:
    """The layers whose statistics tell something: they have channels that vary."""
    return tuple(name for name, one in statistics.items() if _alive(one).size)


def _alive(statistics: ChannelStatistics) -> np.ndarray:
    return np.flatnonzero((statistics.gain > 0) & (statistics.std > 0))
