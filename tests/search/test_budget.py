"""The solver finds what trying all allotments finds."""

import ctypes
import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from pdq_export.errors import OptionError
from pdq_export.search.budget import Choices, Cost, Limit, Solution, solve

NAMES = ("a", "b", "c", "d")
AMOUNTS = st.integers(0, 50).map(float)


@st.composite
def costs(draw: st.DrawFn, choices: Choices) -> Cost:
    single = {
        name: {width: draw(AMOUNTS) for width in widths} for name, widths in choices.items() if draw(st.booleans())
    }
    couples = [couple for couple in itertools.combinations(choices, 2) if draw(st.booleans())]
    pairs = {(a, b): {(v, w): draw(AMOUNTS) - 10 for v in choices[a] for w in choices[b]} for a, b in couples[:2]}
    users = [(name, width) for name, widths in choices.items() for width in widths]
    shared = {
        frozenset(draw(st.lists(st.sampled_from(users), min_size=1, max_size=5))): 7.0 * number
        for number in range(draw(st.integers(0, 3)))
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
    assert found.gap == 0
    assert all(limit.holds(found.bits) for limit in limits)
    best = min(map(objective.of, feasible))
    assert objective.of(found.bits) <= best + 1e-6 * max(abs(best), 1)
    assert solve(choices, objective, limits) == found


def test_what_is_shared_counts_once_for_widths_that_share_it() -> None:
    cost = Cost(
        single={"a": {2: 1.0, 4: 3.0}, "b": {2: 1.0, 4: 3.0}},
        shared={frozenset({("a", 2), ("b", 2)}): 1.0, frozenset({("a", 2), ("a", 4), ("b", 2), ("b", 4)}): 10.0},
    )
    assert [cost.of({"a": a, "b": b}) for a, b in itertools.product((2, 4), (2, 4))] == [13.0, 15.0, 15.0, 16.0]
    assert solve({"a": (2, 4), "b": (2, 4)}, cost) == Solution(bits={"a": 2, "b": 2})


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
    assert Cost(pairs=together).of(found.bits) <= most
    assert loss.of(found.bits) < loss.of(dict.fromkeys(names, 4))


WIDTHS = range(2, 9)


def hard() -> tuple[Choices, Cost, list[Limit]]:
    """Twenty tensors within bytes and, two by two, bit operations, which takes a tree of more than a node."""
    random = np.random.default_rng(0)
    names = [f"t{number}" for number in range(20)]
    scales, sizes, counts = (
        random.lognormal(0, 2, 20),
        random.integers(300, 500000, 20),
        random.integers(10**5, 10**8, 10),
    )
    loss = {
        name: {w: float(scale * 4.0**-w * random.uniform(0.8, 1.2)) for w in WIDTHS}
        for name, scale in zip(names, scales, strict=True)
    }
    size = {name: {w: float(count * w / 8) for w in WIDTHS} for name, count in zip(names, sizes, strict=True)}
    operations = {
        couple: {(v, w): float(count * v * w) for v in WIDTHS for w in WIDTHS}
        for couple, count in zip(zip(names[::2], names[1::2], strict=True), counts, strict=True)
    }
    limits = [
        Limit(option="--max-size", cost=Cost(single=size), most=0.5 * float(sizes.sum())),
        Limit(option="--max-bit-ops", cost=Cost(pairs=operations), most=20.0 * float(counts.sum())),
    ]
    return dict.fromkeys(names, WIDTHS), Cost(single=loss), limits


def test_a_tree_that_is_not_searched_to_its_end_gives_its_best_with_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a machine that is busy, and none says that there are no bits where that is not known."""
    choices, loss, limits = hard()
    best = solve(choices, loss, limits)
    assert best is not None
    assert best.gap == 0
    monkeypatch.setattr("pdq_export.search.budget._NODES", 1)
    found = solve(choices, loss, limits)
    assert found is not None
    assert 0 < found.gap < 0.1
    assert all(limit.holds(found.bits) for limit in limits)
    assert loss.of(found.bits) * (1 - found.gap) <= loss.of(best.bits) <= loss.of(found.bits)
    assert solve(choices, loss, limits) == found
    monkeypatch.setattr("pdq_export.search.budget._NODES", 0)
    with pytest.raises(OptionError, match=r"no bits were found in the 0 nodes.*such as --allowed-bits 4,8"):
        solve(choices, loss, limits)
    impossible = [dataclasses.replace(limit, most=1.0) for limit in limits]
    assert solve(choices, loss, impossible) is None


def test_what_the_solver_prints_does_not_reach_stdout(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HiGHS has a line for debugging, in C, that no option turns off; what others print at this time is kept."""
    libc = ctypes.CDLL(None)

    def printing(*arguments: Any, **options: Any) -> Any:
        libc.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();")
        os.write(1, b"of another thread\n")
        return milp(*arguments, **options)

    monkeypatch.setattr("pdq_export.search.budget.milp", printing)
    assert solve({"a": (2, 4)}, Cost(single={"a": {2: 2.0, 4: 1.0}})) == Solution(bits={"a": 4})
    libc.puts(b"at the end")
    libc.fflush(None)
    assert capfd.readouterr().out == "of another thread\nat the end\n"
