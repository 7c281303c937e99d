"""What tests of images that are made share."""

import pytest
from torch import nn

from pdq_export.frontend import import_network
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.synthesis import Distance
from pdq_export.torch_module import export_module

from .networks import normalized, photographs, seen


def distance_of(module: nn.Module, images: object) -> Distance:
    prepared = prepare(export_module(module, images))
    return Distance.of(import_network(GraphIndex(prepared.model)), prepared.statistics)


@pytest.fixture(scope="module")
def distance() -> Distance:
    """Of images from what a network has seen: normalized photographs."""
    images = normalized(photographs(256))
    return distance_of(seen(images), images[:1])
