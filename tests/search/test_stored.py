"""Sensitivities on the disk: the same back, and nothing that is not one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.search.stored import read_sensitivity, write_sensitivity
from pdq_export.spec import MAX_BITS, MIN_BITS, Role
from pdq_export.spec.sensitivity import Group, Sensitivity

LOSSES = st.floats(min_value=0, max_value=1e6, allow_nan=False)


@st.composite
def sensitivities(draw: st.DrawFn) -> Sensitivity:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    bits = st.integers(MIN_BITS, MAX_BITS)
    widths = sorted(draw(st.sets(bits, min_size=1)))
    groups = tuple(
        Group(role=draw(st.sampled_from([Role.WEIGHT, Role.ACTIVATION])), tensors=(name,), layers=("a",), block="b")
        for name in names
    )
    prediction, block = ({name: {width: draw(LOSSES) for width in widths} for name in names} for _ in range(2))
    pairs = {}
    if len(names) > 1:
        pairs[names[0], names[1]] = {(v, w): draw(LOSSES) - draw(LOSSES) for v in widths for w in widths}
    return Sensitivity(
        groups=groups,
        measure=draw(st.sampled_from(["kl", "mse"])),
        images=draw(st.integers(1, 1000)),
        estimate=draw(st.sampled_from(["fisher", "measured"])),
        prediction=prediction,
        block=block,
        pairs=pairs,
    )


@given(sensitivities())
def test_the_same_comes_back(found: Sensitivity) -> None:
    assert read_sensitivity(write_sensitivity(found)) == found


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prediction": [[1.0, -1.0]]}, "prediction"),
        ({"prediction": [[1.0]]}, "a loss for every group and width"),
        ({"block": []}, "a loss for every group and width"),
        ({"widths": [2, 9]}, "widths"),
        ({"pairs": [{"first": "w", "second": "v", "together": [[0.0, 0.0], [0.0, 0.0]]}]}, "pairs of groups"),
        ({"pairs": [{"first": "w", "second": "w", "together": [[0.0]]}]}, "pairs of groups"),
        ({"version": 2}, "version"),
        ({"more": 1}, "more"),
    ],
)
def test_anything_else_is_refused(changed: dict[str, object], told: str) -> None:
    group = Group(role=Role.WEIGHT, tensors=("w",), layers=("a",), block="b")
    losses = {"w": {2: 1.0, 4: 0.5}}
    found = Sensitivity(groups=(group,), measure="kl", images=1, prediction=losses, block=losses)
    text = json.dumps({**json.loads(write_sensitivity(found)), **changed})
    with pytest.raises(ValueError, match=told):
        read_sensitivity(text)


def test_losses_that_are_not_finite_are_not_written() -> None:
    group = Group(role=Role.WEIGHT, tensors=("w",), layers=("a",), block="b")
    losses = {"w": {2: float("nan")}}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_sensitivity(Sensitivity(groups=(group,), measure="kl", images=1, prediction=losses, block=losses))
