"""Widths for tensors, one each, that lose least within budgets: solved exactly, as a mixed-integer linear program."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from pdq_export.errors import OptionError
from pdq_export.process import without_stdout_lines
from pdq_export.spec import Bits

Choices = Mapping[str, Sequence[Bits]]  # by tensor, the widths that it may have
Widths = Mapping[str, Bits]
# Of the search tree; no limit of time, which would find other bits on a machine that is busy. A hundred tensors with
# seven widths each and 50 products of two take 200 and some seconds.
_NODES = 1000
_GAP = 1e-6  # of the objective: what is nearer to the bound is taken as optimal
_INFEASIBLE = 2  # of milp
_DEBUGGING = b"HighsMipSolverData::"  # lines that HiGHS prints, whatever its options are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What an allotment costs, of whatever kind, as a sum.

    ``constant``: whatever is chosen. ``single``: by tensor and its width. ``pairs``: by two tensors and both widths.
    ``shared``: by tensors and widths, once where any of these tensors has its width.
    """

    constant: float = 0.0
    single: Mapping[str, Mapping[Bits, float]] = dataclasses.field(default_factory=dict)
    pairs: Mapping[tuple[str, str], Mapping[tuple[Bits, Bits], float]] = dataclasses.field(default_factory=dict)
    shared: Mapping[frozenset[tuple[str, Bits]], float] = dataclasses.field(default_factory=dict)

    def of(self, bits: Widths) -> float:
        """Of an allotment that names every tensor."""
        single = sum(by_width[bits[name]] for name, by_width in self.single.items())
        pairs = sum(by_widths[bits[a], bits[b]] for (a, b), by_widths in self.pairs.items())
        shared = sum(size for users, size in self.shared.items() if any(bits[name] == width for name, width in users))
        return self.constant + single + pairs + shared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """A cost that has to stay within ``most``; ``option``: who asks for that."""

    option: str
    cost: Cost
    most: float

    def holds(self, bits: Widths) -> bool:
        """Whether an allotment keeps it, but for rounding."""
        return self.cost.of(bits) <= self.most + 1e-9 * max(abs(self.most), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """An allotment; ``gap``: the share of its objective by which another could be smaller, 0 where none is."""

    bits: dict[str, Bits]
    gap: float = 0.0


def solve(choices: Choices, objective: Cost, limits: Iterable[Limit] = ()) -> Solution | None:
    """The allotment of the least ``objective`` within all limits; None where none keeps them.

    ``choices``: of every tensor that a cost names. Equal arguments give equal allotments, on whatever machine: where
    the tree is too large to be searched, its first part is, and the solution tells its gap. Raises OptionError where
    that part has none.
    """
    program = _Program(choices)
    program.minimize(objective)
    for limit in limits:
        program.keep(limit)
    return program.solve()


class _Program:
    """Binary variables: one for each tensor and width; one for two tensors and both widths; one for what is shared.

    The last two would be whole numbers by the constraints alone; that they are said to be makes it faster.
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._column: dict[object, int] = {}
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._objective: dict[int, float] = {}
        for name, widths in choices.items():
            columns = [self._variable(name, width) for width in widths]
            self._rows.append((dict.fromkeys(columns, 1.0), 1.0, 1.0))

    def minimize(self, cost: Cost) -> None:
        """Take a cost as the objective."""
        terms = self._terms(cost)
        unit = max(map(abs, terms.values()), default=0.0) or 1.0
        self._objective = {column: value / unit for column, value in terms.items()}

    def keep(self, limit: Limit) -> None:
        """Keep a cost within its limit."""
        terms, most = self._terms(limit.cost), limit.most - limit.cost.constant
        unit = max(map(abs, terms.values()), default=0.0) or 1.0
        self._rows.append(({column: value / unit for column, value in terms.items()}, -np.inf, most / unit + 1e-9))

    def solve(self) -> Solution | None:
        """The widths, or None where no choice keeps all limits. Raises OptionError as `budget.solve` does."""
        count = len(self._column)
        objective = np.zeros(count)
        objective[list(self._objective)] = list(self._objective.values())
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        for number, (terms, _, _) in enumerate(self._rows):
            rows += [number] * len(terms)
            columns += terms.keys()
            values += terms.values()
        places = np.asarray((rows, columns), np.int32)  # scipy before 1.15 takes no wider ones
        matrix = csr_array((values, tuple(places)), shape=(len(self._rows), count))
        with without_stdout_lines(_DEBUGGING):
            found = milp(
                objective,
                integrality=np.ones(count),
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(
                    matrix, [low for _, low, _ in self._rows], [high for _, _, high in self._rows]
                ),
                options={"node_limit": _NODES, "mip_rel_gap": _GAP},
            )
        if found.status == _INFEASIBLE:
            return None
        if found.x is None:
            raise OptionError(
                f"--bits auto: no bits were found in the {_NODES:,} nodes of the solver's tree that are searched, and "
                "it is not known that there are none; expected fewer to choose from, such as --allowed-bits 4,8, or "
                "equal bits for all, such as --bits 4/8"
            )
        bits: dict[str, Bits] = {
            name: max(widths, key=lambda width, name=name: found.x[self._column[name, width]])  # type: ignore[misc]
            for name, widths in self._choices.items()
        }
        return Solution(bits=bits, gap=0.0 if found.success else float(found.mip_gap))

    def _variable(self, *key: object) -> int:
        return self._column.setdefault(key, len(self._column))

    def _terms(self, cost: Cost) -> dict[int, float]:
        """A cost by column."""
        terms: dict[int, float] = {}
        for name, by_width in cost.single.items():
            for width in self._choices[name]:
                _add(terms, self._variable(name, width), by_width[width])
        for (a, b), by_widths in cost.pairs.items():
            for v, w in self._pair(a, b):
                _add(terms, self._variable(a, b, v, w), by_widths[v, w])
        for column, value in self._shared(cost):
            _add(terms, column, value)
        return terms

    def _pair(self, a: str, b: str) -> list[tuple[Bits, Bits]]:
        """The widths of two tensors, with a variable for each: it is 1 where both have these."""
        widths = list(itertools.product(self._choices[a], self._choices[b]))
        if (a, b, *widths[0]) in self._column:
            return widths
        for v, w in widths:
            self._variable(a, b, v, w)
        for v in self._choices[a]:
            terms = {self._variable(a, b, v, w): 1.0 for w in self._choices[b]}
            self._rows.append(({**terms, self._variable(a, v): -1.0}, 0.0, 0.0))
        for w in self._choices[b]:
            terms = {self._variable(a, b, v, w): 1.0 for v in self._choices[a]}
            self._rows.append(({**terms, self._variable(b, w): -1.0}, 0.0, 0.0))
        return widths

    def _shared(self, cost: Cost) -> Iterator[tuple[int, float]]:
        for users, size in cost.shared.items():
            possible = sorted((name, width) for name, width in users if width in self._choices[name])
            if not possible:
                continue
            known = ("shared", *possible) in self._column
            column = self._variable("shared", *possible)
            yield column, size
            for name, width in () if known else possible:
                self._rows.append(({column: 1.0, self._variable(name, width): -1.0}, 0.0, np.inf))


def _add(terms: dict[int, float], column: int, value: float) -> None:
    terms[column] = terms.get(column, 0.0) + value
