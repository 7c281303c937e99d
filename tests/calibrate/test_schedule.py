"""What the steps of a block draw: repeatable alone, and different for every seed, block and stream."""

import itertools

import pytest
import torch

from pdq_export.calibrate.schedule import batch_generator, cosine_decay, draw_batches, mask_generator

CPU = torch.device("cpu")


def test_every_seed_block_and_stream_draws_something_else() -> None:
    generators = [
        make
        for seed, position in itertools.product((0, 1, 2, 2**40), range(5))
        for make in (batch_generator(seed, position), mask_generator(seed, position, CPU))
    ]
    draws = {tuple(torch.randint(256, (16,), generator=generator).tolist()) for generator in generators}
    assert len(draws) == len(generators)


def test_a_block_draws_the_same_again() -> None:
    first, second = (draw_batches(20, 4, 6, batch_generator(3, 7)) for _ in range(2))
    assert torch.equal(first, second)
    masks = [torch.rand(5, generator=mask_generator(3, 7, CPU)) for _ in range(2)]
    assert torch.equal(*masks)


@pytest.mark.parametrize(("images", "size"), [(20, 8), (8, 8), (5, 8), (1, 8)])
def test_a_batch_has_no_image_twice(images: int, size: int) -> None:
    batches = draw_batches(images, size, 50, batch_generator(0, 0))
    assert batches.shape == (50, min(images, size))
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)
    assert set(batches.flatten().tolist()) == set(range(images))


def test_the_decay_is_half_a_cosine() -> None:
    rates = [cosine_decay(step, 100) for step in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[50]) == (1.0, pytest.approx(0.5))
    assert 0.0 < rates[-1] < 1e-3
