"""The solver finds what trying all allotments finds."""

import itertools
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from pdq_export.search.budget import Choices, Cost, Limit, solve

NAMES = ("a", "b", "c", "d")
AMOUNTS = st.integers(0, 50).map(float)


@st.composite
def costs(draw: st.DrawFn, choices: Choices) -> Cost:
    single = {
        name: {width: draw(AMOUNTS) for width in widths} for name, widths in choices.items() if draw(st.booleans())
    }
    couples = [couple for couple in itertools.combinations(choices, 2) if draw(st.booleans())]
    pairs = {(a, b): {(v, w): draw(AMOUNTS) - 10 for v in choices[a] for w in choices[b]} for a, b in couples[:2]}
    shared = {
        width: {name: 7.0 * number for number, name in enumerate("xyz", 1) if draw(st.booleans())}
        for width in (2, 3, 8)
    }
    return Cost(constant=draw(AMOUNTS), single=single, pairs=pairs, shared=shared)


def allotments(choices: Choices) -> list[Mapping[str, int]]:
    return [dict(zip(choices, widths, strict=True)) for widths in itertools.product(*choices.values())]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_it_is_the_best_of_all(data: st.DataObject) -> None:
    widths = st.lists(st.sampled_from((2, 3, 4, 8)), min_size=1, max_size=3, unique=True).map(sorted)
    choices = {name: data.draw(widths, name) for name in NAMES[: data.draw(st.integers(1, 4))]}
    objective = data.draw(costs(choices))
    limits = [
        Limit(option="--max", cost=data.draw(costs(choices)), most=data.draw(st.integers(0, 150)))
        for _ in range(data.draw(st.integers(0, 2)))
    ]
    feasible = [bits for bits in allotments(choices) if all(limit.holds(bits) for limit in limits)]
    found = solve(choices, objective, limits)
    if not feasible:
        assert found is None
        return
    assert found is not None
    assert all(limit.holds(found) for limit in limits)
    best = min(map(objective.of, feasible))
    assert objective.of(found) <= best + 1e-6 * max(abs(best), 1)
    assert solve(choices, objective, limits) == found


def test_what_is_shared_counts_once_for_widths_that_share_it() -> None:
    cost = Cost(
        single={"a": {2: 1.0, 4: 3.0}, "b": {2: 1.0, 4: 3.0}}, shared={2: {"x": 10.0, "y": 1.0}, 4: {"x": 10.0}}
    )
    assert [cost.of({"a": a, "b": b}) for a, b in itertools.product((2, 4), (2, 4))] == [13.0, 15.0, 15.0, 16.0]
    assert solve({"a": (2, 4), "b": (2, 4)}, cost) == {"a": 2, "b": 2}


def test_a_network_of_many_layers_is_solved_at_once() -> None:
    """Two hundred tensors, each with seven widths, and pairs of neighbours, as bit operations have them."""
    names = [f"t{number}" for number in range(200)]
    choices = {name: range(2, 9) for name in names}
    loss = Cost(single={name: {w: (1 + n % 13) * 4.0**-w for w in range(2, 9)} for n, name in enumerate(names)})
    together = {
        (a, b): {(v, w): float((1 + n % 7) * v * w) for v in range(2, 9) for w in range(2, 9)}
        for n, (a, b) in enumerate(zip(names[::2], names[1::2], strict=True))
    }
    most = Cost(pairs=together).of(dict.fromkeys(names, 4))
    found = solve(choices, loss, [Limit(option="--max-bit-ops", cost=Cost(pairs=together), most=most)])
    assert found is not None
    assert Cost(pairs=together).of(found) <= most
    assert loss.of(found) < loss.of(dict.fromkeys(names, 4))
