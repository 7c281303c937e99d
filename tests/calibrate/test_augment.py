"""Random views: inside the image, of its size, and nothing but bilinear sampling of it."""

import torch

from pdq_export.calibrate.augment import random_views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Channels with each pixel's row and column."""
    rows = torch.arange(height).view(1, height, 1).expand(count, height, width)
    columns = torch.arange(width).view(1, 1, width).expand(count, height, width)
    return torch.stack([rows, columns], 1).float()


def test_views_are_rectangles_of_the_image() -> None:
    views = random_views(ramps(200, 24, 32), generator())
    rows, columns = views[:, 0], views[:, 1]
    assert views.shape == (200, 2, 24, 32)
    assert (rows.min(), columns.min()) >= (0, 0)
    assert rows.max() <= 23
    assert columns.max() <= 31
    # A row of a view is a row of the image, at even steps, and likewise its columns.
    assert torch.allclose(rows, rows[:, :, :1].expand_as(rows), atol=1e-4)
    assert torch.allclose(columns, columns[:, :1].expand_as(columns), atol=1e-4)
    inner = rows[:, 2:-2, 0]
    steps = inner.diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-3)
    height, width = steps[:, 0], columns[:, 0, 2:-2].diff(dim=1)[:, 0]
    area, aspect = height * width.abs(), height / width.abs()
    assert (area > 0.39).all()
    assert (area < 1.01).all()
    assert (aspect < 1.35).all()
    assert (aspect > 0.74).all()
    assert 60 < int((width < 0).sum()) < 140, "about half of them are mirrored"
    assert (height > 0).all(), "none stands on its head"


def test_the_generator_decides() -> None:
    images = torch.randn(4, 3, 8, 8, generator=generator())
    assert torch.equal(random_views(images, generator(1)), random_views(images, generator(1)))
    assert not torch.equal(random_views(images, generator(1)), random_views(images, generator(2)))


def test_a_constant_image_stays_constant() -> None:
    assert torch.allclose(random_views(torch.full((8, 1, 5, 7), 3.0), generator()), torch.tensor(3.0))
