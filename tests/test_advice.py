"""What is advised fits how a file was made."""

from pdq_export.advice import HowMade, widen_activations


def test_activations_are_widened_where_that_is_free() -> None:
    wide = widen_activations(HowMade(settings={"bits": "4/4"}, free_activations=True))
    assert wide is not None
    assert wide.line == "--bits 4/8"
    assert widen_activations(HowMade(settings={"bits": "4/4"})) is None


def test_bits_by_budget_are_not_given_by_hand_as_well() -> None:
    """quantize refuses --bits W/A beside a budget and beside a file of bits."""
    settings = {"bits": "4/4", "tensor_bits": ["conv.weight=2"]}
    assert widen_activations(HowMade(settings=settings, free_activations=True)) is None
