import pytest
import torch

from pdq_export.calibrate.losses import class_axis, prediction_difference
from pdq_export.errors import OptionError


@pytest.mark.parametrize(
    ("output_loss", "found", "shape", "axis"),
    [
        ("auto", None, [8, 10], 1),
        ("auto", None, [8, 1], None),
        ("auto", None, [8, 21, 32, 32], 1),
        ("auto", None, [8, 1, 32, 32], None),
        ("auto", None, [8, 40, 97], None),  # nobody can tell which axis counts classes
        ("auto", 2, [8, 40, 97], 2),
        ("auto", -1, [8, 32, 32, 21], 3),
        ("auto", 0, [8, 40], None),  # a Sigmoid
        ("auto", None, [8, 3, 20, 20, 85], None),
        ("auto", None, [8], None),
        ("mse", 1, [8, 10], None),
        ("kl", None, [8, 10], 1),
        ("kl", -1, [8, 40, 97], 2),
    ],
)
def test_the_axis_of_classes(output_loss: str, found: int | None, shape: list[int], axis: int | None) -> None:
    assert class_axis(output_loss, found, shape, "y") == axis


@pytest.mark.parametrize(("found", "shape"), [(None, [8, 1]), (None, [8, 40, 97]), (0, [8, 10]), (None, [8])])
def test_kl_needs_an_axis_of_classes(found: int | None, shape: list[int]) -> None:
    with pytest.raises(OptionError, match=r"--output-loss kl: output 'y'.*use --output-loss mse"):
        class_axis("kl", found, shape, "y")


def test_kl_is_over_the_axis_and_squared_error_over_the_power() -> None:
    generator = torch.Generator().manual_seed(0)
    target, output = torch.randn(2, 3, 4, 5, generator=generator)
    expected = torch.nn.functional.kl_div(
        (output / 2).log_softmax(2), (target / 2).log_softmax(2), reduction="none", log_target=True
    )
    kl = prediction_difference([output], [target], [2], 2.0)
    torch.testing.assert_close(kl, expected.sum(2).mean())
    both = prediction_difference([output, output], [target, target], [2, None], 2.0)
    torch.testing.assert_close(both - kl, (output - target).square().mean() / target.square().mean())
