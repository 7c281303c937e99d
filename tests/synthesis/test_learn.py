"""Images that are learned: near to what was seen, in the range that is known, the same for the same seed."""

from typing import Any

import pytest
import torch

from pdq_export.synthesis import Distance, Learned, Range, batch_images, learn_images, measure

from .conftest import distance_of
from .networks import MEAN, SIDE, STD, photographs, seen

SHAPE = (3, SIDE, SIDE)
KNOWN = Range(
    low=torch.tensor([(0 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]),
    high=torch.tensor([(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]),
)


def learn(distance: Distance, count: int = 24, **given: Any) -> Learned:
    arguments: dict[str, Any] = {"known": KNOWN, "batch": 8, "seed": 0, "device": torch.device("cpu"), **given}
    return learn_images(distance, count, SHAPE, **arguments)


@pytest.fixture(scope="module")
def learned(distance: Distance) -> Learned:
    return learn(distance)


def test_they_come_near_to_what_was_seen(distance: Distance, learned: Learned) -> None:
    assert learned.images.shape == (24, *SHAPE)
    assert learned.distance < 0.02
    assert learned.distance == pytest.approx(measure(distance, learned.images, 8))
    assert measure(distance, torch.randn(24, *SHAPE), 8) > 3 * learned.distance
    assert (learned.layers, learned.steps) == (2, 100)
    assert learned.to_dict()["images"] == 24


def test_they_differ_from_each_other(learned: Learned) -> None:
    flat = learned.images.flatten(1)
    apart = torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))
    assert float(apart.min()) > 0.2 * float(flat.std()) * flat.shape[1] ** 0.5


def test_they_stay_in_a_range_that_is_known(learned: Learned) -> None:
    low, high = (values.view(1, 3, 1, 1) for values in (KNOWN.low, KNOWN.high))
    assert (learned.images >= low - 1e-5).all()
    assert (learned.images <= high + 1e-5).all()


def test_equal_seeds_give_equal_bytes(distance: Distance, learned: Learned) -> None:
    assert learn(distance).images.numpy().tobytes() == learned.images.numpy().tobytes()
    assert not torch.equal(learn(distance, seed=1).images, learned.images)


def test_a_range_that_nobody_tells_is_found() -> None:
    pixels = 255 * photographs(256)
    found = learn(distance_of(seen(pixels), pixels[:1]), known=None)
    assert found.distance < 0.05
    assert float(found.images.std()) == pytest.approx(float(pixels.std()), rel=0.5)


def test_progress_and_steps_grow_with_the_images(distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("pdq_export.synthesis.learn._FEWEST_STEPS", 20)
    few = learn(distance, 3, batch=2, told=lambda *at: told.append(at))
    assert told == [(step, 32) for step in range(1, 33)]
    assert len(few.images) == 3
    assert learn(distance, 4, batch=4).steps == 20


def test_images_a_step() -> None:
    assert batch_images(256, (32, 32)) == 64
    assert batch_images(256, (224, 224)) == 16
    assert batch_images(5, (224, 224)) == 5
