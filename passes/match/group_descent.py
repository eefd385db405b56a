"""Coordinate descent over the groups of all classes, on the agreement of two balanced states."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fxrebasin.indexing import identity_arrays
from fxrebasin.kinds import ClassKind
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.match.best_elements import Agreement, Best, best
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.moments import Moments
from fxrebasin.passes.match.seats import Seat, Seats
from fxrebasin.solvers.assignment import assign_batch
from fxrebasin.solvers.weight_search import Report

_NOTHING = 1e-26
_LITTLE = 5e-4
"""A sweep is the last one if it gains less than this share of what is still missing, or if nothing
is, up to rounding: models that lie close to each other are not left before they are one."""


@dataclass(frozen=True, eq=False)
class Family:
    """Classes that are decided together: one, and those inside its units.

    Attributes:
        head: the outer class, or the only one.
        inner: classes of which each unit of the head has a copy.
    """

    head: PermutationClass
    inner: tuple[PermutationClass, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Of all its classes."""
        return frozenset((self.head.name, *(c.name for c in self.inner)))


@dataclass
class GroupDescent:
    """One descent.

    Attributes:
        problem: what to match.
        seats: of its classes.
        a: the reference, balanced.
        current: the model, balanced, after what was found so far.
        element: what was found so far.
        names: of the only classes that move; all when left out.
        shown: what data show of the units of some classes; these are decided once.
        sweeps: over all families.
    """

    problem: GroupProblem
    seats: Seats
    a: Mapping[str, Tensor]
    current: dict[str, Tensor]
    element: Element
    names: Collection[str] | None = None
    shown: Mapping[str, Moments] = field(default_factory=dict)
    sweeps: int = 0
    _families: tuple[Family, ...] = field(init=False)
    _most: float = field(init=False)

    def __post_init__(self) -> None:
        names = self.problem.compared
        sizes = (float(own[n].square().sum()) for own in (self.a, self.current) for n in names)
        self._most = sum(sizes) / 2
        self._families = families_of(self.problem, self.seats, self.names)

    # Stages -----------------------------------------------------------------------------------

    def decide(self) -> None:
        """Decide one family after another, each from what is decided, the clearest first.

        What no class is on comes first: embeddings for a stream. Tensors count alike, whatever
        their size, since what is known of each is as yet only a hint.
        """
        open_families = list(self._families)
        moving = {name for family in self._families for name in family.names}
        decided = {c.name for c in self.problem.classes} - moving
        while open_families:
            family = max(open_families, key=lambda item: self._evidence(item, decided))
            known = self._evidence(family, decided) > 0
            self._take(family, decided if known else None, unit=True)
            open_families.remove(family)
            decided |= family.names

    def sweep(self, most: int, report: Report) -> None:
        """Go over all families until nothing is gained.

        Args:
            most: number of sweeps.
            report: called with how many there were.
        """
        for _ in range(most):
            report("matching", self.sweeps, None)
            self.sweeps += 1
            before = self._missing()
            for family in self._families:
                for part in (family, *(Family(c) for c in family.inner)):
                    if part.names.isdisjoint(self.shown):
                        self._take(part, None, unit=False, only_better=True)
            after = self._missing()
            if after <= _NOTHING * self._most or before - after <= _LITTLE * after:
                break

    def agreement(self, names: Iterable[str] | None = None) -> float:
        """The sum of the inner products of both models.

        Args:
            names: of tensors; all that are compared when left out.
        """
        compared = self.problem.compared
        names = compared if names is None else [name for name in names if name in compared]
        return sum(float((self.a[name] * self.current[name]).sum()) for name in names)

    def _missing(self, names: Iterable[str] | None = None) -> float:
        """By how much the agreement is less than its most, exact also where it is next to it.

        Args:
            names: of tensors; all that are compared when left out.
        """
        compared = self.problem.compared
        names = compared if names is None else [name for name in names if name in compared]
        return sum(float((self.a[name] - self.current[name]).square().sum()) for name in names) / 2

    def share(self) -> float:
        """The agreement as a share of what no element can exceed."""
        return self.agreement() / self._most if self._most else 1.0

    # Steps ------------------------------------------------------------------------------------

    def _evidence(self, family: Family, decided: set[str]) -> float:
        """The share of what the classes of a family hold that can be compared already."""
        seats = [seat for name in sorted(family.names) for seat in self.seats[name]]
        usable = [seat for seat in seats if seat.others <= decided | family.names]
        size = [sum(self.a[seat.place.state].numel() for seat in some) for some in (usable, seats)]
        return size[0] / size[1] if size[1] else 0.0

    def _take(
        self,
        family: Family,
        decided: set[str] | None,
        *,
        unit: bool,
        only_better: bool = False,
    ) -> None:
        """The best element for a family, with all others as they are.

        Args:
            family: to be decided.
            decided: the other classes that are; all when left out.
            unit: whether tensors count alike.
            only_better: whether an element is kept only if it raises the agreement.
        """
        names = None if decided is None else decided | family.names
        step = self._step(family, names, unit)
        held = self.problem.touched(self.current, sorted(family.names))
        before = self._missing(held)
        moved = self.problem.moved(step, held)
        kept = self.current
        self.current = {**self.current, **moved}
        if only_better and self._missing(held) > before:
            self.current = kept
        else:
            self.element = self.problem.combined(step, self.element)

    def _step(self, family: Family, decided: set[str] | None, unit: bool) -> Element:
        head, counted = family.head, set[tuple[object, ...]]()
        found: dict[str, Best] = {}
        copies = head.count
        gains = torch.zeros(copies, head.size, head.size, dtype=torch.float64)
        for c in family.inner:
            seats = self._usable(c, decided)
            keys = {_key(seat) for seat in seats}
            if not seats or keys & counted:
                continue  # follows its units; decided on its own afterwards
            counted |= keys
            found[c.name] = self._best(c, self._all(seats, c, head.size, unit))
            gains = gains + found[c.name].gain.reshape(gains.shape)
        seats = [seat for seat in self._usable(head, decided) if _key(seat) not in counted]
        own = self._all(seats, head, 1, unit)
        if not family.inner:
            return self._element({head: _first(self._best(head, own))})
        gains = gains + own.even.reshape(gains.shape) + own.odd.reshape(gains.shape)
        order = torch.from_numpy(np.asarray(assign_batch(gains.numpy()), np.int64))
        chosen = {c: _chosen(found[c.name], order) for c in family.inner if c.name in found}
        return self._element({head: Best(gains, order, None), **chosen})

    def _kind(self, c: PermutationClass) -> ClassKind:
        return self.problem.groups.kinds[c.name]

    def _best(self, c: PermutationClass, agreement: Agreement) -> Best:
        return best(self._kind(c), agreement)

    def _shape(self, c: PermutationClass) -> tuple[int, ...]:
        """Of what acts on a class."""
        wide = (c.size,) if self._kind(c).kind.has_matrices else ()
        return (c.count, c.size, *wide)

    def _rows(self, seat: Seat) -> tuple[Tensor, Tensor]:
        """What units hold in the reference and in the model."""
        return seat.rows(self.a), seat.rows(self.current)

    def _usable(self, c: PermutationClass, decided: set[str] | None) -> list[Seat]:
        return [s for s in self.seats[c.name] if decided is None or s.others <= decided]

    def _all(self, seats: Sequence[Seat], c: PermutationClass, among: int, unit: bool) -> Agreement:
        """How much units agree by all that is known of them."""
        if c.name in self.shown:
            return self._shown(seats, c, among)
        return self._agreement(seats, c, among, unit)

    def _agreement(
        self, seats: Sequence[Seat], c: PermutationClass, among: int, unit: bool
    ) -> Agreement:
        """How much units agree, of each copy with all copies in the same outer one.

        Returns:
            Of shape (outer copies, among, among, units, units).
        """
        shape = (c.count // among, among, among, c.size, c.size)
        sums = {odd: torch.zeros(shape, dtype=torch.float64) for odd in (False, True)}
        for seat in seats:
            a, b = self._rows(seat)
            if unit:
                norm = float(a.norm() * b.norm())
                b = b / norm if norm else b
            a, b = (item.reshape(c.count // among, among, *item.shape[1:]) for item in (a, b))
            sums[seat.odd] += torch.einsum("kiux,kjvx->kijuv", a, b)
        return Agreement(sums[False], sums[True])

    def _shown(self, seats: Sequence[Seat], c: PermutationClass, among: int) -> Agreement:
        """The same of what data show of units; weights, which few data leave open, count alike."""
        weights = self._agreement(seats, c, among, unit=False).even
        squares = [
            sum(float(seat.rows(state).square().sum()) for seat in seats)
            for state in (self.a, self.current)
        ]
        size = (squares[0] * squares[1]) ** 0.5
        even = self.shown[c.name].of_copies(among) + (weights / size if size else weights)
        return Agreement(even, torch.zeros_like(even))

    def _element(self, found: Mapping[PermutationClass, Best]) -> Element:
        permutation = self.problem.identity().permutation
        arrays = identity_arrays(permutation.classes)
        elements = {}
        for c, item in found.items():
            if item.order is not None:
                arrays[c.name] = item.order.numpy().reshape(arrays[c.name].shape)
            if item.element is not None:
                elements[c.name] = item.element.reshape(self._shape(c))
        return Element(self.problem.plain.permutation(arrays), elements)


def families_of(
    problem: GroupProblem, seats: Seats, names: Collection[str] | None = None
) -> tuple[Family, ...]:
    """The families of all classes that may move.

    Args:
        problem: what to match.
        seats: of its classes; those without are left as they are.
        names: of the only classes that move; all when left out.
    """
    classes = [c for c in problem.classes if problem.free(c) and seats[c.name]]
    classes = [c for c in classes if names is None or c.name in names]
    inner: dict[str, list[PermutationClass]] = {}
    for c in classes:
        for head in classes:
            if c.within and c.within == (*head.within, head.name):
                inner.setdefault(head.name, []).append(c)
    taken = {c.name for own in inner.values() for c in own}
    found = []
    for c in classes:
        own = sorted(inner.get(c.name, ()), key=lambda item: not _mixes(problem, item))
        if c.name not in taken or own:
            found.append(Family(c, tuple(own)))
    return tuple(found)


def _mixes(problem: GroupProblem, c: PermutationClass) -> bool:
    return problem.groups.kinds[c.name].kind.has_matrices


def _key(seat: Seat) -> tuple[object, ...]:
    """Equal for seats of several classes that are on the same numbers."""
    positions, _ = seat.positions.flatten().sort()
    return seat.place.state, positions.numpy().tobytes()


def _first(item: Best) -> Best:
    """Without the axes for pairs of copies."""
    order, element = item.order, item.element
    return Best(
        item.gain,
        None if order is None else order[:, 0, 0],
        None if element is None else element[:, 0, 0],
    )


def _chosen(item: Best, order: Tensor) -> Best:
    """For each copy of the reference, what was found for its copy of the model."""
    outer, copy = torch.meshgrid(*(torch.arange(size) for size in order.shape), indexing="ij")
    return Best(
        item.gain,
        None if item.order is None else item.order[outer, copy, order],
        None if item.element is None else item.element[outer, copy, order],
    )
