"""How far images are from the statistics that BatchNormalization has gathered."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from pdq_export.spec import ChannelStatistics
from pdq_export.synthesis import Distance, usable

from .networks import normalized, photographs


def statistics(mean: list[float], std: list[float], gain: list[float]) -> ChannelStatistics:
    values = (np.asarray(value, np.float32) for value in (mean, std, gain))
    return ChannelStatistics(**dict(zip(("mean", "std", "gain"), values, strict=True)))


class _Input(nn.Module):
    """A network whose one layer gives what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def of_input(known: ChannelStatistics) -> Distance:
    network = fx.symbolic_trace(_Input())
    names = {"placeholder": "image", "call_function": "layer"}
    for node in network.graph.nodes:
        if node.op in names:
            node.meta["tensor"] = names[node.op]
    return Distance.of(network, {"layer": known})


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_it_is_that_of_means_and_deviations_over_the_batch(size: float) -> None:
    x = torch.randn(12, 3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1) + 0.5
    mean, std = [0.25, -1.0, 5.0], [0.5, 4.0, 0.0]
    alive = x[:, :2].transpose(0, 1).flatten(1).numpy()
    shift = (alive.mean(1) - mean[:2]) / std[:2]
    spread = alive.std(1) / std[:2] - 1
    expected = float(np.mean(shift**2 + spread**2))
    scaled = [[value * size for value in values] for values in (mean, std)]
    found = of_input(statistics(*scaled, [1.0, 1.0, 0.0]))((x * size).float())
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_outputs_without_positions() -> None:
    x = torch.randn(40, 2)
    shift = ((x.mean(0) - 1) ** 2).numpy()
    spread = ((x.std(0, unbiased=False) - 1) ** 2).numpy()
    found = of_input(statistics([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]))(x)
    assert float(found) == pytest.approx(float(np.mean(shift + spread)), rel=1e-4)


def test_channels_that_never_vary_tell_nothing() -> None:
    alive, dead = statistics([0.0], [1.0], [1.0]), statistics([0.0, 1.0], [0.0, 1e-9], [0.0, 0.0])
    assert usable({"a": alive, "b": dead}) == ("a",)


def test_images_as_those_that_were_seen_are_near(distance: Distance) -> None:
    pixels = photographs(256, seed=1)
    assert float(distance(normalized(pixels))) < 0.01
    assert float(distance(normalized(255 * pixels))) > 1.0
    assert float(distance(torch.randn(256, 3, 16, 16))) > 0.05
