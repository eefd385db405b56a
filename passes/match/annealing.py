"""Where a descent over groups begins: units as far as they are known, at a falling temperature.

Let a tensor of the reference be that of the model after an element of the groups, and noise. Then
how likely an element is grows exponentially with the agreement, divided by the variance of the
noise. What is expected of it, given what is expected of all others, is nothing where nothing is
known, so that what was not decided yet does not mislead what comes next. The variance falls from
what tensors hold to a small part of that (mean-field annealing; for assignments: Gold and
Rangarajan, A graduated assignment algorithm for graph matching, 1996).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxrebasin.elements import sources_of
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.match.best_elements import Agreement, Best, best
from fxrebasin.passes.match.expected_elements import expected
from fxrebasin.passes.match.group_descent import Family, GroupDescent, families_of
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.seats import Seat, Seats
from fxrebasin.places import with_rows
from fxrebasin.solvers.weight_search import Report

_HOT, _COLD = 1.0, 0.05
"""Variances at the start and at the end, as shares of what tensors hold."""
_SWEEPS = 20
_MOST = 2**24
"""No start is looked for in this way where expected elements hold more numbers than this."""


def annealed(problem: GroupProblem, seats: Seats, report: Report) -> Element | None:
    """An element that a descent may begin with; None if it would take too much memory.

    Args:
        problem: between balanced states.
        seats: of its classes.
        report: called with the number of sweeps.
    """
    families = families_of(problem, seats)
    if sum(c.count * c.size**2 for c in _expected_of(families)) > _MOST:
        return None
    state_b = dict(problem.state_b)
    found = _Annealing(problem, seats, problem.state_a, state_b, problem.identity())
    for number in range(_SWEEPS):
        report("looking for a start", number, _SWEEPS)
        found.temperature = _HOT * (_COLD / _HOT) ** (number / (_SWEEPS - 1))
        for family in families:
            found.take(family)
    return found.decided()


def _expected_of(families: Sequence[Family]) -> Iterator[PermutationClass]:
    """Classes that are not decided: all but those that others are inside of, such as heads."""
    outer = {family.head.name for family in families if family.inner}
    for c in dict.fromkeys(c for f in families for c in (f.head, *f.inner)):
        if c.name not in outer:
            yield c


@dataclass
class _Annealing(GroupDescent):
    """A descent that takes heads as decided, and of what is inside them, and others, what is known.

    Attributes:
        temperature: how much of a tensor is taken for noise.
        known: expected maps by the name of their class, of shape (copies, 1 or 2, units, units).
    """

    temperature: float = _HOT
    known: dict[str, Tensor] = field(init=False)
    _factors: dict[str, Tensor] = field(init=False, default_factory=dict)
    _sizes: Mapping[str, float] = field(init=False)
    _on: dict[str, list[tuple[str, Seat]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sizes = _sizes(self.problem)
        self.known = {}
        for c in _expected_of(self._families):
            zero = torch.zeros(c.count, c.size, c.size, dtype=torch.float64)
            self.known[c.name] = expected(self._kind(c), Agreement(zero, zero)).maps
            for seat in self.seats[c.name]:
                self._on.setdefault(seat.place.state, []).append((c.name, seat))

    def take(self, family: Family) -> None:
        """What is expected of a family, given what is expected of all others.

        Args:
            family: to be looked at.
        """
        if not family.inner and family.head.name not in self.known:
            return
        step = self._step(family, None, unit=False)
        new = {name: item for name, item in step.elements.items() if name in self.known}
        for c in self.problem.classes:
            if c.name in self.known and c.within:
                copies = torch.tensor(sources_of(step.permutation, c))[:, 0] // c.size
                self.known[c.name] = self.known[c.name][copies]
        self.known |= new
        self._move(Element(step.permutation), family.names)

    def decided(self) -> Element:
        """With what fits best in place of what is expected."""
        found = {}
        for c in _expected_of(self._families):
            agreement = self._agreement(self.seats[c.name], c, 1, unit=False)
            found[c] = best(self._kind(c), agreement)
        self.known = {}
        return self.problem.combined(self._element(found), self.element)

    def _move(self, step: Element, names: frozenset[str]) -> None:
        held = self.problem.touched(self.current, sorted(names))
        self.current = {**self.current, **self.problem.moved(step, held)}
        self.element = self.problem.combined(step, self.element)

    def _best(self, c: PermutationClass, agreement: Agreement) -> Best:
        """See `GroupDescent`."""
        if c.name not in self.known:
            return best(self._kind(c), agreement)
        found = expected(self._kind(c), agreement, self._factors.get(c.name))
        if found.factors is not None:
            self._factors[c.name] = found.factors
        return Best(found.gain, None, found.maps)

    def _shape(self, c: PermutationClass) -> tuple[int, ...]:
        """See `GroupDescent`."""
        return tuple(self.known[c.name].shape) if c.name in self.known else super()._shape(c)

    def _rows(self, seat: Seat) -> tuple[Tensor, Tensor]:
        """See `GroupDescent`: the model's behind what is expected of all others, by its noise."""
        name = seat.place.state
        tensor = self.current[name]
        for c, other in self._on.get(name, ()):
            if other is not seat:
                group = other.layout[name][other.place.group]
                rows = self.known[c][:, -1 if other.odd else 0] @ other.rows({name: tensor})
                rows = rows.reshape(*other.positions.shape, -1)
                tensor = with_rows(tensor, group, other.positions, rows)
        noise = self.temperature * self._sizes[name]
        rows = seat.rows({name: tensor})
        return seat.rows(self.a), rows / noise if noise else torch.zeros_like(rows)


def _sizes(problem: GroupProblem) -> dict[str, float]:
    """How large a number of each tensor is, squared: halfway from the tensor's own to that of all.

    By their own sizes alone all tensors would count alike, and by that of all a few would decide.
    """
    a, b = problem.state_a, problem.state_b
    products = {name: float(a[name].norm() * b[name].norm()) for name in problem.compared}
    count = sum(a[name].numel() for name in products)
    mean = sum(products.values()) / count if count else 0.0
    return {
        name: (mean * own / a[name].numel()) ** 0.5 if own else 0.0
        for name, own in products.items()
    }
