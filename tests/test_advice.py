"""What is advised fits how a file was made."""

from pdq_export.advice import HowMade, allot_bits, calibrate_more, widen_activations


def test_activations_are_widened_where_that_is_free() -> None:
    wide = widen_activations(HowMade(settings={"bits": "4/4"}, free_activations=True))
    assert wide is not None
    assert wide.line == "--bits 4/8"
    assert widen_activations(HowMade(settings={"bits": "4/4"})) is None


def test_bits_by_budget_are_not_given_by_hand_as_well() -> None:
    """quantize refuses --bits W/A beside a budget and beside a file of bits."""
    settings = {"bits": "4/4", "tensor_bits": ["conv.weight=2"]}
    assert widen_activations(HowMade(settings=settings, free_activations=True)) is None


def test_a_search_is_not_proposed_at_the_size_that_a_search_has_found() -> None:
    (remedy,) = allot_bits(HowMade(settings={"bits": "4/8"}), 1000)
    assert remedy.line == "--bits auto --max-size 1000"
    assert list(allot_bits(HowMade(settings={"bits": "4/8"}, instead=()), 1000)) == []
    assert list(allot_bits(HowMade(settings={"bits": "4/8"}, shrinks=False), 1000)) == []


def test_steps_are_counted_as_a_block_takes_them() -> None:
    """Ten of 200 where a share of 0.05 is given."""
    few = HowMade(settings={"bits": "4/4", "method": "pdq", "iters": 200, "iters_share": 0.05}, images=512)
    assert [remedy.why for remedy in calibrate_more(few)] == ["50 steps a block, not 10"]
    enough = HowMade(settings={"bits": "4/4", "method": "pdq", "iters": 200, "iters_share": 0.25}, images=512)
    assert list(calibrate_more(enough)) == []
