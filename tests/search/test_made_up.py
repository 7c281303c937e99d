"""What blocks behind make up for: an error counts for no more than what reads it would lose."""

import pytest

from pdq_export.search.made_up import left_after_learning
from pdq_export.spec import Block, Role
from pdq_export.spec.sensitivity import Group, Sensitivity


def block(name: str, inputs: str, outputs: str) -> Block:
    return Block(name=name, inputs=tuple(inputs), outputs=tuple(outputs), nodes=(name,), layers=())


def losses(blocks: list[Block], rates: dict[str, float], outputs: str, role: Role = Role.WEIGHT) -> dict[str, float]:
    """Of a tensor in each block that makes a tenth of an error there; ``rates``: what that loses of the prediction."""
    groups = tuple(Group(role=role, tensors=(name,), layers=(name,), block=name) for name in rates)
    found = Sensitivity(
        groups=groups,
        measure="kl",
        images=1,
        prediction={name: {4: 0.1 * rate, 8: 0.0} for name, rate in rates.items()},
        block={name: {4: 0.1, 8: 0.0} for name in rates},
    )
    left = left_after_learning(found, blocks, outputs)
    assert all(by_width[8] == 0 for by_width in left.values())
    return {name: 10 * by_width[4] for name, by_width in left.items()}


def test_what_is_made_up_for() -> None:
    chain = [block("p", "i", "x"), block("q", "x", "y"), block("r", "y", "z")]
    assert losses(chain, {"p": 50.0, "q": 2.0, "r": 3.0}, "z") == pytest.approx({"p": 2.0, "q": 2.0, "r": 3.0})
    assert losses(chain, {"p": 1.0, "q": 9.0, "r": 3.0}, "z") == pytest.approx({"p": 1.0, "q": 3.0, "r": 3.0})
    # What an output shows, nobody makes up for; a block without a group hands on what is behind it.
    assert losses(chain, {"p": 50.0, "q": 2.0, "r": 3.0}, "xz") == pytest.approx({"p": 50.0, "q": 2.0, "r": 3.0})
    assert losses(chain, {"p": 50.0, "r": 3.0}, "z") == pytest.approx({"p": 3.0, "r": 3.0})


def test_blocks_side_by_side_lose_together() -> None:
    fork = [block("p", "i", "x"), block("q", "x", "y"), block("r", "x", "z")]
    assert losses(fork, {"p": 50.0, "q": 2.0, "r": 3.0}, "yz") == pytest.approx({"p": 5.0, "q": 2.0, "r": 3.0})


def test_half_of_what_activations_lose_is_left_where_blocks_are_behind() -> None:
    chain = [block("p", "i", "x"), block("q", "x", "y")]
    found = losses(chain, {"p": 50.0, "q": 2.0}, "y", role=Role.ACTIVATION)
    assert found == pytest.approx({"p": 25.0, "q": 2.0})
    found = losses(chain, {"p": 50.0, "q": 2.0}, "xy", role=Role.ACTIVATION)
    assert found == pytest.approx({"p": 50.0, "q": 2.0})
